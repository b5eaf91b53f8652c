"""Rendezvous over gloo: the trainer and one engine of every other node.

Weights cross the network once for a node. The holder is the process of a node that receives them
there, into memory that it shares with the node's other engines, which wait until the copy is
complete; on its own node the trainer is the holder. A TCP store brings all of them together, and
keeps the path of each holder's copy and the round that is complete or given up.

Runs in rank 0 of the learner and inside vLLM's workers. Reads no weights and loads none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from workers.addresses import address_towards

TRAINER = -1  # its place among the engines, which count from 0
CHUNK_BYTES = 32 << 20
CHECK_INTERVAL_S = 5.0  # between two looks at a holder
_COMPLETE, _GIVEN_UP = "complete", "given up"


def holders(node: str, engine_nodes: Sequence[str]) -> list[int]:
    """Return the holder of each copy: the trainer on its own node, else the first engine there.

    Args:
        node: of the trainer.
        engine_nodes: node of every engine, by place.
    """
    first = {node: TRAINER}
    return [first.setdefault(name, place) for place, name in enumerate(engine_nodes)]


def pieces(num_bytes: int) -> list[tuple[int, int]]:
    """Cut a buffer into (begin, end) pieces, the same on both sides."""
    return [
        (begin, min(begin + CHUNK_BYTES, num_bytes)) for begin in range(0, num_bytes, CHUNK_BYTES)
    ]


class Rendezvous:
    """Membership of one process in the rendezvous.

    Args:
        host: address of the trainer.
        port: of its store; 0 at the trainer picks a free one.
        holders: of every engine's copy, by place.
        place: of this engine, or TRAINER.
        timeout_s: longest wait for any other.

    Attributes:
        address: of this process, at which the others connect to it.
    """

    def __init__(
        self, *, host: str, port: int, holders: Sequence[int], place: int, timeout_s: float
    ) -> None:
        self._timeout = timedelta(seconds=timeout_s)
        self.address = host if place == TRAINER else address_towards(host)
        self._place = place
        self._members = [TRAINER, *sorted(set(holders) - {TRAINER})]
        self._store = dist.TCPStore(
            host,
            port,
            is_master=place == TRAINER,
            timeout=self._timeout,
            wait_for_workers=False,
        )
        self._group: Any = None

    @property
    def port(self) -> int:
        """Port of the store."""
        return int(self._store.port)

    def join(self) -> None:
        """Connect the holders; block until all are there."""
        if len(self._members) > 1:
            gloo: Any = dist.ProcessGroupGloo
            options = gloo._Options()
            # gloo itself takes the address of the hostname, 127.0.1.1 on Ubuntu.
            options._devices = [gloo.create_device(hostname=self.address)]
            options._timeout = self._timeout
            self._group = gloo(
                dist.PrefixStore("ballast", self._store),
                self._members.index(self._place),
                len(self._members),
                options,
            )

    def leave(self) -> None:
        """Close the connections, so that a process that waits at the other end fails at once."""
        self._group = None

    def broadcast(self, buffer: Tensor) -> None:
        """Send (trainer) or fill (other holders) a byte buffer [n], in place.

        Raises:
            RuntimeError: the group was left after a broadcast that failed.
        """
        if len(self._members) == 1:
            return
        if self._group is None:
            raise RuntimeError("the group was left after a broadcast that failed; connect again")
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = self._timeout
        self._group.broadcast([buffer], options).wait()

    # ---- copies ----

    def set_path(self, path: str) -> None:
        """Publish the path of this holder's copy."""
        self._store.set(f"{self._place}/path", path)

    def wait_for_path(self, holder: int) -> str:
        """Return the path of a holder's copy; wait until the holder has published it."""
        return str(self._store.get(f"{holder}/path").decode())

    def mark_complete(self, number: int) -> None:
        """Mark this holder's copy of a round as ready to be read."""
        self._store.set(self._key(self._place, number), _COMPLETE)

    def give_up(self, number: int) -> None:
        """Mark a round as over for every holder that has not completed it."""
        for holder in self._members:
            self._store.compare_set(self._key(holder, number), "", _GIVEN_UP)

    def wait(self, holder: int, number: int, path: str) -> None:
        """Wait until a holder's copy of a round is complete.

        Args:
            holder: the place of the holder.
            number: of the round.
            path: of the copy, which is there as long as its holder lives.

        Raises:
            RuntimeError: the round was given up, the holder is gone, or the time is over.
        """
        key, deadline = self._key(holder, number), time.monotonic() + self._timeout.total_seconds()
        while True:
            try:
                self._store.wait([key], timedelta(seconds=CHECK_INTERVAL_S))
                break
            except dist.DistStoreError as error:
                if time.monotonic() > deadline or not os.path.exists(path):
                    raise RuntimeError(
                        f"the holder of this node's weights is gone: {path}"
                    ) from error
        if self._store.get(key).decode() != _COMPLETE:
            raise RuntimeError(f"round {number} of the weights was given up: an engine is gone")

    @staticmethod
    def _key(holder: int, number: int) -> str:
        return f"{holder}/round/{number}"
