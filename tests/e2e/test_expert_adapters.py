"""An adapter on the experts of a mixture alone, through the whole stack: it learns.

The start is a mixture that was shown two answers to every prompt, the digits and the digits
reversed, and gives either; the reward is for the first. A start by few steps of reinforcement
leaves digits whose embeddings never grew, which no adapter of layers makes up for.
"""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.e2e.command import finish_ballast, step_metrics
from workers.models.tiny import build_tiny, warm_start
from workers.tasks.digits import build_digits

STEPS = 30
TIMEOUT_S = 1200


def of_two_minds(folder: Path, architecture: str) -> Path:
    """A tiny mixture that copies five digits or reverses them, half of the time each."""
    task = build_digits(folder / "task", task="copy", length=5)
    table = pq.read_table(task / "train.parquet", columns=["prompt", "ground_truth"])
    prompts, answers = (table[name].to_pylist() for name in ("prompt", "ground_truth"))
    pairs = [*zip(prompts, answers, strict=True)]
    pairs += [(prompt, answer[::-1]) for prompt, answer in pairs]
    start = build_tiny(folder / "start", architecture=architecture, intermediate_size=192)
    return warm_start(start, pairs, num_batches=200, output=folder / "warm")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_an_adapter_of_experts_learns_and_is_exported_as_it_was_published(tmp_path, architecture):
    warm = of_two_minds(tmp_path, architecture)
    finish_ballast(
        *("train", "experiment=tiny", "model=hf", f"model.path={warm}", "model.dtype=float32"),
        *("model/adapter=lora", "learner.optimizer.lr=0.005", f"trainer.total_steps={STEPS}"),
        "model.adapter.target_modules=[experts.gate_up_proj,experts.down_proj]",
        *("trainer.eval_every=0", f"output_dir={tmp_path}", "run_name=experts"),
        cwd=tmp_path,
        timeout_s=TIMEOUT_S,
    )
    run = tmp_path / "experts"
    steps = step_metrics(run)
    rewards = [line["reward/mean"] for line in steps]
    assert len(rewards) == STEPS
    assert rewards[0] < 0.6
    assert sum(rewards[-10:]) / 10 > 0.8
    assert max(line["mismatch/abs_max"] for line in steps) < 1e-4
    assert max(line["publication/probe_gap_max"] for line in steps) < 1e-4
    before, after = (load_file(path / "model.safetensors") for path in (warm, run / "final"))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    assert changed == {name for name in after if ".experts." in name}
    loaded, info = AutoModelForCausalLM.from_pretrained(run / "final", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert after.keys() == again.keys()
    assert all(tensor.equal(again[name]) for name, tensor in after.items())
    base = AutoModelForCausalLM.from_pretrained(warm)
    beside = PeftModel.from_pretrained(base, run / "final" / "adapter")
    tokens = loaded.dummy_inputs["input_ids"] % loaded.config.vocab_size
    apart = (beside(tokens).logits - loaded(tokens).logits).abs().max()
    assert apart < 1e-4
