"""The interface over which ranks meet, and the memory that a rank gives back."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.process_group import use_interface_towards
from workers.engines.zero.settings import ZeroSettings


def test_gloo_connects_over_the_interface_that_leads_to_rank_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not over that of the hostname, which leads nowhere where it is 127.0.1.1."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "restored after the test")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface_towards("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    use_interface_towards("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"  # named by whoever runs the cluster


@pytest.mark.parametrize("offload_optimizer", [True, False])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_rank_that_goes_to_rest_keeps_no_cache_on_its_gpu(
    device: str, offload_optimizer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one without optimizer state on the GPU: a reference, or a learner that offloads it."""
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    rank: Any = object.__new__(PolicyEngine)
    rank.device = torch.device(device)
    rank.settings = ZeroSettings(
        model="m", zero_stage=2, optimizer=None, offload_optimizer=offload_optimizer
    )
    rank.offload_states()
    assert len(emptied) == (device == "cuda")
