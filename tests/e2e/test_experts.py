"""A mixture of experts through the whole stack: it learns, and its export is what was trained."""

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.e2e.command import finish_ballast, step_metrics

TIMEOUT_S = 2400


def experts(folder, model):
    """`ballast train experiment=tiny model=...` in `folder`; return the run's folder."""
    fixed = [f"model={model}", "trainer.eval_every=0", f"output_dir={folder}"]
    finish_ballast(
        *("train", "experiment=tiny", *fixed, f"run_name={model}"),
        cwd=folder,
        timeout_s=TIMEOUT_S,
    )
    return folder / model


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_qwen3_moe", "tiny_mixtral"])
def test_experts_learn_and_are_exported_as_they_were_published(tmp_path, model):
    run = experts(tmp_path, model)
    steps = step_metrics(run)
    rewards = [line["reward/mean"] for line in steps]
    assert len(rewards) == 200
    assert rewards[0] < 0.2
    assert sum(rewards[-10:]) / 10 > 0.9
    assert max(line["mismatch/abs_max"] for line in steps) < 1e-4
    assert max(line["publication/probe_gap_max"] for line in steps) < 1e-4
    assert min(line["router/load_ratio"] for line in steps) >= 1.0
    assert max(line["router/load_ratio"] for line in steps) <= 4.0  # all tokens to one expert
    exported = load_file(run / "final" / "model.safetensors")
    loaded, info = AutoModelForCausalLM.from_pretrained(run / "final", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert exported.keys() == again.keys()
    for name, tensor in exported.items():
        assert tensor.numpy().tobytes() == again[name].numpy().tobytes(), name
