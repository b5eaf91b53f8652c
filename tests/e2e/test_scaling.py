"""A running job is given an engine and loses it again, on the real stack."""

import json
import signal
from collections import Counter

import pyarrow.parquet as pq
import pytest

from tests.e2e.command import run_ballast, start_ballast, step_metrics


def scale(run, engines):
    return run_ballast("scale", "--engines", str(engines), "--timeout", "240", str(run))


@pytest.mark.slow
def test_one_engine_two_engines_one_engine(tmp_path):
    process = start_ballast(
        *("train", "experiment=tiny"),
        *(f"output_dir={tmp_path}", "run_name=scaled", "trainer.total_steps=100000"),
        *("data.eval_limit=8", "trainer.export=false", "trainer.checkpoint_every=0"),
        "trainer.prompts_per_step=8",
        cwd=tmp_path,
    )
    assert process.stdout is not None
    run, output = tmp_path / "scaled", []

    def steps(count):
        """Read on until so many more steps are done."""
        while count:
            output.append(process.stdout.readline())
            assert output[-1], "".join(output)[-3000:]
            count -= output[-1].startswith("step ")

    try:
        steps(2)
        refused = scale(run, 50)
        assert refused.returncode == 2
        assert "needs 49 x {CPU: 1}, the cluster has room for 6: free are {CPU: 6} on" in (
            refused.stderr
        )
        steps(2)
        up = scale(run, 2)
        assert (up.returncode, up.stderr) == (0, "")
        assert up.stdout == "engines: 1 -> 2; the run goes on\n2 engines, 2 of them sampling\n"
        at_two = len(step_metrics(run))
        while len(step_metrics(run)) < at_two + 3:
            steps(1)
        down = scale(run, 1)
        assert down.returncode == 0
        assert down.stdout.splitlines()[-1] == "1 engine, 1 of them sampling"
        at_one = len(step_metrics(run))
        while len(step_metrics(run)) < at_one + 2:
            steps(1)
        process.send_signal(signal.SIGTERM)
        output.append(process.stdout.read())
        assert process.wait(timeout=120) == 143, "".join(output)[-3000:]
    finally:
        process.kill()

    found = step_metrics(run)
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    counts = [line["rollout/engines_healthy"] for line in found]
    assert [n for n, before in zip(counts, [0, *counts], strict=False) if n != before] == [1, 2, 1]
    assert found[-1]["rollout/engines_lost"] == 0
    assert found[-1]["rollout/groups_resampled"] == 0
    assert all(line["publication/probe_gap_max"] <= 1e-5 for line in found)
    trained = Counter()
    for line in found:
        step = line["step"]
        table = pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet")
        for versions, mask in zip(
            table["weight_versions"].to_pylist(), table["loss_mask"].to_pylist(), strict=True
        ):
            # Nobody sampled from anything but the learner's weights of that moment.
            assert {v for v, sampled in zip(versions, mask, strict=True) if sampled} == {step - 1}
        trained.update(f"{line['step']}:{uid}" for uid in set(table["prompt_uid"].to_pylist()))
    (last,) = (run / "checkpoints").glob("step_*")
    ledger = json.loads((last / "state.json").read_text())["parts"]["ledger"]
    fates = Counter(fate for rows in ledger["fate"].values() for fate in rows.values())
    assert fates == {f"trained:{step}": 8 for step in range(1, len(found) + 1)}
    assert trained.total() == 8 * len(found)
