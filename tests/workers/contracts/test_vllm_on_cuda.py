"""Settings of GPU engines, as vLLM itself reads them: its own configuration, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workers.models.tiny import build_tiny

SCRIPT = Path(__file__).with_name("cuda_platform.py")
ROOT = Path(__file__).parents[3]
CASES: dict[str, dict[str, Any]] = {
    "one GPU": {"weight_transfer_backend": "nccl"},
    "two GPUs": {"weight_transfer_backend": "nccl", "tensor_parallel_size": 2},
    "in turn": {
        "weight_transfer_backend": "ipc",
        "sleeps": True,
        "gpu_memory_utilization": 0.57,
    },
    "a named cache": {"weight_transfer_backend": "ipc", "kv_cache_memory_bytes": 8 << 30},
    "eager": {"weight_transfer_backend": "nccl", "enforce_eager": True},
    "stale cache": {
        "weight_transfer_backend": "gloo",
        "recompute_kv": False,
        "enable_prefix_caching": False,
    },
    "adapter": {
        "weight_transfer_backend": "shm",
        "adapter_rank": 24,
        "adapter_layers": ["q_proj", "v_proj"],
    },
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every case through `AsyncEngineArgs`, in one process with vLLM's CUDA platform."""
    folder = build_tiny(tmp_path_factory.mktemp("models") / "tiny")
    common = {"model_path": str(folder), "device": "cuda", "dtype": "bfloat16"}
    cases = {name: common | {"max_model_len": 256} | case for name, case in CASES.items()}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(cases)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_engine_is_one_of_cuda_with_our_extension(configs: dict[str, Any]) -> None:
    for name, config in configs.items():
        assert config["device"] == "cuda", name
        assert config["worker"] == "vllm.v1.worker.gpu_worker.Worker"
        assert config["extension"] == "workers.weight_sync.extension.WeightSyncExtension"
        assert config["transport"] == CASES[name]["weight_transfer_backend"]
        assert config["logprobs"] == "processed_logprobs"


def test_two_gpus_are_two_processes_of_one_node_and_never_ray(configs: dict[str, Any]) -> None:
    assert (configs["one GPU"]["executor"], configs["two GPUs"]["executor"]) == ("uni", "mp")
    assert configs["two GPUs"]["tensor_parallel_size"] == 2


def test_gpus_decode_by_graphs_unless_told_otherwise(configs: dict[str, Any]) -> None:
    assert not configs["one GPU"]["enforce_eager"]
    assert configs["one GPU"]["graphs"] == "FULL_AND_PIECEWISE"
    assert configs["eager"]["enforce_eager"]
    assert configs["eager"]["graphs"] == "NONE"


def test_the_cache_is_what_is_left_or_what_is_named(configs: dict[str, Any]) -> None:
    assert (configs["one GPU"]["fraction"], configs["one GPU"]["cache_bytes"]) == (0.92, None)
    assert configs["in turn"]["fraction"] == 0.57
    assert configs["a named cache"]["cache_bytes"] == 8 << 30


def test_an_engine_that_takes_turns_can_sleep(configs: dict[str, Any]) -> None:
    assert configs["in turn"]["sleeps"]
    assert not configs["one GPU"]["sleeps"]


def test_a_stale_cache_shares_no_prefix_and_an_adapter_has_its_slot(
    configs: dict[str, Any],
) -> None:
    assert configs["one GPU"]["prefix_caching"]
    assert not configs["stale cache"]["prefix_caching"]
    assert configs["adapter"]["lora_rank"] == 32  # vLLM's next after 24
