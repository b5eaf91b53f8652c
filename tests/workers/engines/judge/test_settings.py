"""The command and the environment of a judge's server."""

from __future__ import annotations

import sys

import pytest

from workers.engines.judge.settings import KEY_VARIABLE, JudgeSettings


def test_the_command_of_a_judge_on_cpus() -> None:
    settings = JudgeSettings(
        model_path="/models/judge",
        max_model_len=512,
        kv_cache_memory_bytes=1 << 29,
        seed=7,
        arguments=("--reasoning-parser", "qwen3"),
    )
    command = settings.command(host="10.0.0.1", port=23_456)
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    told = " ".join(command[3:])
    for part in (
        "--model /models/judge --dtype float32 --max-model-len 512",
        "--tensor-parallel-size 1 --distributed-executor-backend uni",
        "--seed 7 --host 10.0.0.1 --port 23456 --kv-cache-memory-bytes 536870912",
        "--enforce-eager --reasoning-parser qwen3",
    ):
        assert part in told


def test_a_judge_on_gpus_compiles_and_a_wide_one_has_processes_of_its_own() -> None:
    settings = JudgeSettings(model_path="/m", device="cuda", tensor_parallel_size=2)
    command = settings.command(host="10.0.0.1", port=23_456)
    assert "--enforce-eager" not in command
    assert command[command.index("--distributed-executor-backend") + 1] == "mp"
    assert "--kv-cache-memory-bytes" not in command


def test_the_key_travels_in_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    settings = JudgeSettings(model_path="/m", threads=3)
    env = settings.environment()
    assert (env["VLLM_API_KEY"], env["OMP_NUM_THREADS"]) == ("secret", "3")
    assert not any("secret" in word for word in settings.command(host="h", port=1))


@pytest.mark.parametrize("argument", ["--port=80", "--model", "--max_model_len"])
def test_what_the_run_sets_itself_is_refused_by_name(argument: str) -> None:
    with pytest.raises(ValueError, match=r"engine.arguments may not set --\S+; use"):
        JudgeSettings(model_path="/m", arguments=(argument, "1"))
