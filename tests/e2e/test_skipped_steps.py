"""A run whose gradients are not finite ends by itself, and what it had is not lost."""

import json

import pytest

from tests.e2e.command import run_ballast


def train(folder, coefficient, *overrides):
    """`ballast train` with an entropy bonus of `coefficient`; 3e38 overflows float32."""
    return run_ballast(
        *("train", "experiment=tiny"),
        *(f"output_dir={folder}", "run_name=wild", "data.eval_limit=16"),
        *("trainer.prompts_per_step=8", "trainer.checkpoint_every=0", "trainer.export=false"),
        *("learner.max_skipped_steps=2", *overrides),
        f"algorithm.regularizers.entropy.coefficient={coefficient}",
        cwd=folder,
    )


@pytest.mark.slow
def test_it_stops_saves_and_can_go_on(tmp_path):
    done = train(tmp_path, 3e38, "trainer.total_steps=9")
    assert done.returncode == 1, done.stdout[-3000:]
    assert "NonFiniteGradientsError: 2 optimizer steps in a row" in done.stderr
    assert "no tensor by itself, the norm over all of them" in done.stderr
    assert "step 1/9" in done.stdout
    assert "step 2/9" not in done.stdout
    assert (tmp_path / "wild" / "checkpoints" / "step_000002" / "state.json").is_file()
    refused = train(tmp_path, 0.05, "trainer.total_steps=3", "resume=auto")
    assert refused.returncode == 2
    assert "algorithm.regularizers.entropy.coefficient: 3e+38 -> 0.05" in refused.stderr
    done = train(tmp_path, 0.05, "trainer.total_steps=3", "resume=changed")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(x) for x in (tmp_path / "wild" / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "time/step_s" in line}
    assert sorted(steps) == [1, 3]  # step 2 was taken, skipped and not reported
    assert steps[1]["learner/steps"] == 0
    assert steps[3]["learner/steps"] == 1
