"""Addresses that peers reach, and the gloo connections that are made at them."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from workers.addresses import address_towards, interface_of, join_port, own_address, split_port
from workers.weight_sync.broadcast import TRAINER, Rendezvous

LOOPBACKS = ["127.0.0.1", "::1"]


def has_address(host: str) -> bool:
    """Whether this machine has an address of its own that this one leads to."""
    try:
        return bool(address_towards(host))
    except ValueError:
        return False


@pytest.mark.parametrize("host", filter(has_address, LOOPBACKS))
def test_loopback_leads_to_loopback(host: str) -> None:
    assert address_towards(host) == host
    assert interface_of(host) == "lo"


def test_the_address_of_this_node_is_that_of_an_interface() -> None:
    assert interface_of(own_address()) is not None
    assert address_towards(own_address()) == own_address()
    assert interface_of("192.0.2.77") is None


def test_a_peer_without_address_is_named_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"'nowhere\.invalid'.*--node-ip-address"):
        address_towards("nowhere.invalid")


@pytest.mark.parametrize(
    ("host", "text"), [("10.0.0.4", "10.0.0.4:29501"), ("fd00::2", "[fd00::2]:29501")]
)
def test_an_ipv6_address_stands_in_brackets(host: str, text: str) -> None:
    assert join_port(host, 29501) == text
    assert split_port(text) == (host, 29501)


@pytest.mark.parametrize("host", filter(has_address, LOOPBACKS))
def test_a_broadcast_meets_at_the_given_address_whatever_the_hostname_says(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gloo would listen at the hostname's address, 127.0.1.1 on Ubuntu."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    before = dist.is_initialized()  # by a test of ZeRO in the same process, if at all
    trainer = Rendezvous(host=host, port=0, holders=[0], place=TRAINER, timeout_s=20)
    engine = Rendezvous(host=host, port=trainer.port, holders=[0], place=0, timeout_s=20)
    assert (trainer.address, engine.address) == (host, host)
    joined: list[Any] = []
    thread = threading.Thread(target=lambda: joined.append(engine.join()))
    thread.start()
    trainer.join()
    thread.join(20)
    assert joined == [None]
    received = torch.zeros(4, dtype=torch.uint8)
    receiving = threading.Thread(target=engine.broadcast, args=(received,))
    receiving.start()
    trainer.broadcast(torch.tensor([1, 2, 3, 4], dtype=torch.uint8))
    receiving.join(20)
    assert received.tolist() == [1, 2, 3, 4]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:  # the store listens there too
        probe.connect((host, trainer.port))
    trainer.leave()
    engine.leave()
    assert dist.is_initialized() == before  # the default group is nobody's here
