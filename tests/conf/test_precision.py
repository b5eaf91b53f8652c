"""`dtype: auto` takes what the machine computes fastest, and the plan says why."""

from pathlib import Path

import pytest

from conf import precision
from conf.compose import ConfigError, compose
from orchestrator.cli.parser import main

ICE_LAKE = "processor\t: 0\nflags\t\t: fpu avx512f avx512_vnni\n\nprocessor\t: 1\n"
SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n"


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Let the machine have the CPU of a given /proc/cpuinfo."""

    def machine(text: str) -> None:
        (tmp_path / "cpuinfo").write_text(text)
        defaults = (tmp_path / "cpuinfo",)
        for function in (precision.has_bf16, precision.fastest_dtype, precision.reason):
            monkeypatch.setattr(function, "__defaults__", defaults)

    return machine


@pytest.mark.parametrize(
    ("cpu", "dtype"),
    [
        (ICE_LAKE, "float32"),
        (SAPPHIRE_RAPIDS, "bfloat16"),
        (GRAVITON_3, "bfloat16"),
        ("", "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_with_instructions_for_it(on, cpu, dtype):
    on(cpu)
    raw, config = compose(["model=smollm2", "model.dtype=auto", "rollout.dtype=auto"])
    assert (config.model.dtype, config.rollout.dtype) == (dtype, dtype)
    assert (raw.model.dtype, raw.rollout.dtype) == (dtype, dtype)  # what config.yaml will say


def test_a_gpu_computes_in_bfloat16_whatever_the_cpu(on):
    on(ICE_LAKE)
    _, config = compose(
        ["model=smollm2", "cluster=gpu_1", "model.dtype=auto", "rollout.dtype=auto"]
    )
    assert (config.model.dtype, config.rollout.dtype) == ("bfloat16", "bfloat16")


def test_what_is_named_stays(on):
    on(SAPPHIRE_RAPIDS)
    _, config = compose(["model.dtype=float32", "rollout.dtype=float16"])
    assert (config.model.dtype, config.rollout.dtype) == ("float32", "float16")
    with pytest.raises(ConfigError, match="float8"):
        compose(["rollout.dtype=float8"])


def test_a_machine_without_cpu_information_computes_in_float32(tmp_path):
    assert precision.fastest_dtype(0, tmp_path / "none") == "float32"


def test_the_plan_says_why(on, capsys):
    on(ICE_LAKE)
    assert main(["train", "--dry-run", "model.dtype=auto", "rollout.dtype=bfloat16"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "ZeRO-0, float32 (this CPU would emulate bfloat16)" in text
    assert "bfloat16 (this CPU emulates bfloat16, slowly: choose auto or float32)" in text


def test_weights_stay_float32_unless_they_are_named(on, capsys):
    on(SAPPHIRE_RAPIDS)
    _, config = compose(["model.dtype=bfloat16"])
    assert config.model.param_dtype == "float32"
    _, config = compose(["model.dtype=bfloat16", "model.param_dtype=bfloat16"])
    assert config.model.param_dtype == "bfloat16"
    overrides = ["model.dtype=bfloat16", "model.param_dtype=bfloat16"]
    assert main(["train", "--dry-run", *overrides]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "weights of bfloat16 under float32 master weights" in text
    _, config = compose(["model.dtype=float16"])
    assert config.model.param_dtype == "float16"
    with pytest.raises(ConfigError, match=r"must be float16 with model\.dtype=float16"):
        compose(["model.dtype=float16", "model.param_dtype=float32"])
    with pytest.raises(ConfigError, match=r"must be float32 or model\.dtype=float32"):
        compose(["model.dtype=float32", "model.param_dtype=bfloat16"])
