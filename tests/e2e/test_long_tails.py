"""Over-sampling on the real stack: the slowest are aborted, and each prompt still trains once."""

import json
from collections import Counter

import pyarrow.parquet as pq

from tests.e2e.command import finish_ballast, step_metrics

STEPS, PROMPTS = 5, 8


def test_what_is_aborted_is_begun_again_and_trained_once(tmp_path):
    output = finish_ballast(
        *("train", "experiment=tiny"),
        *(f"output_dir={tmp_path}", "run_name=tails", f"trainer.total_steps={STEPS}"),
        *(f"trainer.prompts_per_step={PROMPTS}", "trainer.checkpoint_every=0"),
        *("data.eval_limit=16", "trainer.export=false", "rollout.num_engines=2"),
        *("algorithm=dapo", "algorithm/correction=tis", "rollout.early_stop_samples=2"),
        *("schedule=async", "schedule.max_staleness=1", "schedule.oversample=2.5"),
        "schedule.leftover=again",
        cwd=tmp_path,
    )
    assert f"20 groups begun for {PROMPTS}, begin again the slowest" in output
    run = tmp_path / "tails"
    steps = step_metrics(run)
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    for line in steps:
        assert line["groups/trained"] == PROMPTS
        assert line["staleness/max"] <= 1
        assert line["publication/probe_gap_max"] <= 1e-5
        assert line["samples/failed"] == 0
        assert line["rollout/concurrency"] > 0
    aborted = sum(line["groups/aborted"] for line in steps)
    assert aborted > 0
    stopped = [line for line in steps if "rollout/early_stop_frac" in line]
    for line in stopped:
        assert 0 < line["rollout/early_stop_frac"] < 1
        assert line["rollout/sequences"] < 8 * PROMPTS
    # Only what was sampled to its end and scored is trained, and no prompt twice.
    trained, attempts = Counter(), Counter()
    for step in range(1, STEPS + 1):
        table = pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet")
        assert set(table["outcome"].to_pylist()) == {"scored"}
        assert "abort" not in table["finish_reason"].to_pylist()
        groups = set(table["group_id"].to_pylist())
        trained.update("-".join(group.split("-")[:2]) for group in groups)
        attempts.update(group.count("-") - 1 for group in groups)
    assert len(trained) == STEPS * PROMPTS
    assert set(trained.values()) == {1}
    # The ledger agrees: one fate for every prompt that was handed out, or it is to come.
    state = json.loads((run / "checkpoints" / f"step_{STEPS:06d}" / "state.json").read_text())
    ledger = state["parts"]["ledger"]
    fates = ledger["fate"]["0"]
    assert {row for row, fate in fates.items() if fate.startswith("trained")} == {
        name.split("-")[1] for name in trained
    }
    assert "dropped:aborted" not in fates.values()
    returned = [row for _, row in ledger["returned"]]
    assert len(fates) + len(returned) == ledger["cursor"]
    assert not set(map(str, returned)) & set(fates)
    assert attempts[1] + attempts[2] + attempts[3] > 0  # some trained after an abort
