"""Chaos finds what it is there to find, strikes what it names, and a real run survives it."""

import json
import os
import subprocess
import sys
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.compose import compose
from tests.chaos.chaos import Chaos
from tests.chaos.checks import violations
from tests.chaos.journal import Played, Trial, table
from tests.chaos.processes import MARK, end_all, marked, strike

STEPS, PROMPTS = 2, 2


def write_rows(run, step, **changes):
    """Two prompts of one sample each; the first says what is asked, the second says nothing."""
    rows = []
    for number in range(PROMPTS):
        row = (step - 1) * PROMPTS + number
        rows.append(
            {
                "rollout_id": f"0-{row}/0",
                "group_id": f"0-{row}",
                "prompt_uid": f"copy:{row}",
                "response_text": "12345" if number == 0 else "",
                "reward": 1.0 if number == 0 else 0.0,
                "outcome": "scored",
                "weight_versions": [-1, step - 1, step - 1],
            }
        )
    rows[0] |= changes
    pq.write_table(pa.Table.from_pylist(rows), run / "rollouts" / f"step_{step:06d}.parquet")


def write_metrics(run, **changes):
    lines = [
        {
            "step": step,
            "time/step_s": 1.0,
            "learner/steps": 1.0,
            "publication/probe_gap_max": 1e-6,
            "rollout/engines_healthy": 2.0,
        }
        for step in range(1, STEPS + 1)
    ]
    lines[-1] |= changes
    lines[-1] = {name: value for name, value in lines[-1].items() if value is not None}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_ledger(run, **changes):
    fate = {"0": "trained:1", "1": "trained:1", "2": "trained:2", "3": "trained:2"} | changes
    folder = run / "checkpoints" / "step_000002"
    folder.mkdir(parents=True, exist_ok=True)
    state = {"parts": {"ledger": {"fate": {"0": fate}}}}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.fixture
def run(tmp_path):
    from omegaconf import OmegaConf

    raw, _ = compose(["experiment=tiny", f"trainer.prompts_per_step={PROMPTS}"])
    OmegaConf.save(raw, tmp_path / "config.yaml")
    data = tmp_path / "copy.parquet"
    pq.write_table(pa.table({"ground_truth": ["12345"] * 4}), data)
    (tmp_path / "manifest.json").write_text(json.dumps({"data_sha256": {str(data): ""}}))
    (tmp_path / "rollouts").mkdir()
    for step in range(1, STEPS + 1):
        write_rows(tmp_path, step)
    write_metrics(tmp_path)
    write_ledger(tmp_path)
    return tmp_path


def test_a_sound_run_has_no_violation(run):
    assert violations(run) == []


@pytest.mark.parametrize(
    ("write", "changes", "found"),
    [
        (write_ledger, {"3": "pending"}, "the ledger has not 2 prompts trained in step 2"),
        (write_ledger, {"4": "in_flight"}, "fates in the ledger: ['in_flight']"),
        (write_metrics, {"step": 3}, "metrics of the steps [1, 3]"),
        (write_metrics, {"learner/steps": 2.0}, "step 2 made 2 optimizer steps"),
        (write_metrics, {"publication/probe_gap_max": 0.1}, "step 2: probe gap 0.1"),
        (write_metrics, {"publication/probe_gap_max": None}, "2 engines, whose weights were not"),
    ],
)
def test_what_is_wrong_with_ledger_or_metrics_is_found(run, write, changes, found):
    write(run, **changes)
    assert any(found in text for text in violations(run)), violations(run)


def test_a_step_after_which_no_engine_lives_need_not_be_attested(run):
    write_metrics(run, **{"publication/probe_gap_max": None, "rollout/engines_healthy": 0.0})
    assert violations(run) == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"reward": 0.0}, "0-2/0 of step 2 has the reward 0.0"),  # an invented zero
        ({"group_id": "0-0-1"}, "prompts trained twice: ['0-0']"),  # another attempt at prompt 0
        ({"weight_versions": [-1, 2, 2]}, "0-2/0 of step 2 has the weight versions {2}"),
        ({"weight_versions": [-1, 1, 0]}, "0-2/0 of step 2: the weights went back"),
    ],
)
def test_what_is_wrong_with_the_record_is_found(run, changes, found):
    write_rows(run, 2, **changes)
    assert any(found in text for text in violations(run)), violations(run)


def test_a_step_without_a_record_is_found(run):
    (run / "rollouts" / "step_000001.parquet").unlink()
    assert violations(run) == ["step 1 has no record"]


def test_a_victim_is_silent_for_as_long_as_it_is_cut_off():
    mark = f"test-{os.getpid()}"
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(command, env=os.environ | {MARK: mark})
    try:
        (victim,) = marked(mark)
        strike(victim, "cut off", seconds=0.5)
        deadline = time.monotonic() + 10.0
        while victim.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
        while victim.status() == psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
        strike(victim, "killed", seconds=0.0)
        assert child.wait(timeout=10) == -9
        assert end_all(mark) == 0
    finally:
        child.kill()


def test_the_table_counts_by_process_and_fault():
    common = {"seed": 1, "arrangement": "sync", "role": "driver", "fault": "killed"}
    trials = [
        Trial(**common, outcome=outcome, seconds=seconds)
        for outcome, seconds in (("resumed", 40.0), ("resumed", 30.0), ("went on", 5.0))
    ]
    assert table(trials, ["seed 1: lost"], 1).splitlines()[2:] == [
        "| driver | killed | 3 | 1 | 2 | 30 |",
        "",
        "3 trials in 1 run, 1 violation. By arrangement: 3 sync.",
    ]


def test_a_run_is_read_from_its_line_in_the_journal():
    trial = Trial(
        seed=3, arrangement="sync", role="driver", fault="killed", outcome="resumed", seconds=31.5
    )
    run = Played(seed=3, trials=[trial], wrong=["seed 3 (sync): step 7 has no record"])
    assert run.line().count("\n") == 1
    assert Played.read(run.line()) == run


def test_a_seed_draws_the_same_arrangement_and_moments(tmp_path):
    one, other = (Chaos(5, tmp_path) for _ in range(2))
    assert one.arrangement == other.arrangement
    assert one.random.random() == other.random.random()


@pytest.mark.slow
def test_a_real_run_survives_two_faults(tmp_path):
    chaos = Chaos(5, tmp_path)
    chaos.play(2)
    assert len(chaos.trials) == 2
    assert chaos.wrong == []
