"""Wait for the nodes of a Ray cluster, list them, and name the node of every engine.

A start script waits with `ballast nodes`; `train` prints the nodes of its engines. Runs in the
process of either command. Starts no node.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util import placement_group_table

from orchestrator.telemetry.counting import counted

PROBE_S = 2.0


def wait_for_nodes(address: str, *, count: int, timeout_s: float) -> list[dict[str, Any]]:
    """Wait until `count` nodes live in the cluster at `address`; return the living ones.

    Raises:
        ValueError: not all have joined in `timeout_s` seconds; the message names those that have.
    """
    deadline = time.monotonic() + timeout_s
    host, _, port = address.rpartition(":")
    while not _listens(host, int(port)):  # Ray itself gives up on a head that is not there yet
        if time.monotonic() > deadline:
            raise ValueError(
                f"no Ray head at {address} after {timeout_s:g} s; start it: ray start --head"
            )
        time.sleep(PROBE_S)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        while len(nodes := _living()) < count:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{len(nodes)} of {counted(count, 'node')} joined {address} in "
                    f"{timeout_s:g} s: {', '.join(node['NodeManagerAddress'] for node in nodes)}; "
                    "look at the others' log of ray start"
                )
            time.sleep(PROBE_S)
        return nodes
    finally:
        ray.shutdown()


def _living() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=PROBE_S).close()
    except OSError:
        return False
    return True


def table(nodes: Sequence[dict[str, Any]]) -> str:
    """Return a line per node: address, id, logical CPUs, GPUs."""
    rows = []
    for node in nodes:
        have = node["Resources"]
        rows.append(
            f"{node['NodeManagerAddress']:<16} {node['NodeID'][:8]}  "
            f"{counted(have.get('CPU', 0), 'CPU')}  {counted(have.get('GPU', 0), 'GPU')}"
        )
    return "\n".join(rows)


def engine_nodes(placement: Any, num_engines: int) -> list[str]:
    """Return the node of every engine as `address (id)`.

    The engines have the first bundles of the placement group.
    """
    names = {
        node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        for node in ray.nodes()
    }
    placed = placement_group_table(placement)["bundles_to_node_id"]
    return [names[placed[bundle]] for bundle in range(num_engines)]


def describe_engines(nodes: Sequence[str]) -> str:
    """Return a line such as `4 engines on 2 nodes: 10.0.0.1 (ab12cd34): 0, 1; ...`."""
    by_node: dict[str, list[str]] = {}
    for engine, node in enumerate(nodes):
        by_node.setdefault(node, []).append(str(engine))
    places = "; ".join(f"{node}: {', '.join(engines)}" for node, engines in by_node.items())
    return f"{counted(len(nodes), 'engine')} on {counted(len(by_node), 'node')}: {places}"
