"""A run in 16 bits learns, attested throughout; float16 rounds eight times finer than bfloat16."""

import pytest

from tests.e2e.command import finish_ballast, step_metrics

STEPS = 160
# Mean |log-prob of the learner - of the engine| of sampled tokens: largest and median step.
MISMATCH = {"bfloat16": (1e-2, 4e-3), "float16": (1.25e-3, 5e-4)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(MISMATCH))
def test_a_run_in_16_bits_is_attested_throughout_and_learns(tmp_path, dtype):
    finish_ballast(
        *("train", "experiment=tiny", f"trainer.total_steps={STEPS}", "trainer.eval_every=0"),
        *(f"model.dtype={dtype}", f"rollout.dtype={dtype}", "trainer.export=false"),
        *(f"output_dir={tmp_path}", f"run_name={dtype}"),
        cwd=tmp_path,
        timeout_s=1500,
    )
    steps = step_metrics(tmp_path / dtype)
    assert len(steps) == STEPS
    assert all("publication/probe_gap_max" in line for line in steps)
    assert steps[0]["reward/mean"] < 0.1
    assert sum(line["reward/mean"] for line in steps[-10:]) / 10 > 0.8
    means = sorted(line["mismatch/abs_mean"] for line in steps)
    largest, median = MISMATCH[dtype]
    assert means[-1] < largest
    assert means[STEPS // 2] < median
