"""A LoRA run as a user starts it: train, resume, export, and no process for the reference."""

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.e2e.command import run_ballast, step_metrics


def tiny(folder, name, *overrides):
    """`ballast train experiment=tiny model/adapter=lora` in `folder`, on three CPUs of Ray's.

    One engine, one rank and a reward worker take all: a reference of its own would be refused.
    """
    fixed = ["algorithm=grpo", "trainer.prompts_per_step=8", "trainer.checkpoint_every=2"]
    fixed += [f"output_dir={folder}", "data.eval_limit=16", "cluster.num_cpus=3"]
    command = ("train", "experiment=tiny", "model/adapter=lora", f"run_name={name}")
    return run_ballast(*command, *fixed, *overrides, cwd=folder)


def columns(run, step, *names):
    table = pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet")
    return [[x for row in table.column(name).to_pylist() for x in row] for name in names]


def test_a_run_trains_resumes_and_scores_its_own_reference(tmp_path):
    run = tmp_path / "lora"
    done = tiny(tmp_path, "lora", "trainer.total_steps=2", "learner.zero_stage=2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = tiny(tmp_path, "lora", "trainer.total_steps=3", "learner.zero_stage=2", "resume=auto")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    after = step_metrics(run)
    assert [line["step"] for line in after] == [1, 2, 3]
    final = load_file(run / "final" / "model.safetensors")
    matrices = [tensor for name, tensor in final.items() if name.endswith("_proj.weight")]
    assert len(matrices) == 2 * 7
    for line in after:
        assert line["publication/probe_gap_max"] <= 1e-5
        assert line["mismatch/abs_max"] < 1e-4
        # What the adapter changes, and neither embeddings nor norms.
        assert line["publication/bytes"] == 4 * sum(tensor.numel() for tensor in matrices)
    logprobs, reference = columns(run, 1, "logprobs", "ref_logprobs")
    assert max(abs(a - b) for a, b in zip(logprobs, reference, strict=True)) < 1e-6  # B is zero
    for step in (2, 3):
        logprobs, reference = columns(run, step, "logprobs", "ref_logprobs")
        assert max(abs(a - b) for a, b in zip(logprobs, reference, strict=True)) > 1e-3
    assert (run / "final" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_an_adapter_published_by_itself_over_gloo(tmp_path):
    done = tiny(
        tmp_path,
        "beside",
        "trainer.total_steps=3",
        "learner.zero_stage=3",
        "model.adapter.publish=adapter",
        "rollout.transport=gloo",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for line in step_metrics(tmp_path / "beside"):
        assert line["publication/probe_gap_max"] <= 1e-5
        assert line["mismatch/abs_max"] < 1e-4
