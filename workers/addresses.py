"""Addresses of this node, as processes of other nodes reach them.

A hostname is no address: Ubuntu resolves its own to 127.0.1.1, and a node with several interfaces
has several addresses. The address that counts is that of the interface which leads to the peer.
Runs in the learner's ranks and inside vLLM's workers. Sends nothing and opens no connection.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

_DOCUMENTATION = "192.0.2.1"  # RFC 5737: an address behind the default route of any node
_DISCARD_PORT = 9


def address_towards(peer: str) -> str:
    """Return the address of this node's interface that leads to a peer.

    Args:
        peer: address or name of a node; of this node too, whose loopback leads to loopback.

    Raises:
        ValueError: the peer has no address, or no route leads to it.
    """
    try:
        found = socket.getaddrinfo(peer, _DISCARD_PORT, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # of a datagram socket: chooses a route and sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ValueError(
            f"no way from this node to {peer!r}: {error}. Give Ray the address of an interface "
            "that all nodes reach: ray start --node-ip-address=ADDRESS"
        ) from error


def own_address() -> str:
    """Return this node's address on its default route; loopback where there is none."""
    try:
        return address_towards(_DOCUMENTATION)
    except ValueError:
        return "127.0.0.1"


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an address; None where none has."""
    wanted = ipaddress.ip_address(address.partition("%")[0])
    for name, known in psutil.net_if_addrs().items():
        for entry in known:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            if ipaddress.ip_address(entry.address.partition("%")[0]) == wanted:
                return name
    return None


def join_port(host: str, port: int) -> str:
    """Return "host:port"; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_port(address: str) -> tuple[str, int]:
    """Return host and port of what `join_port` made."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
