"""A run that is killed and resumed is the run that was not: weights, optimizer state, rollouts.

Synchronous float32 training on CPU, the real stack, the whole process group killed by SIGKILL.
"""

import json
import os
import re
import resource
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.e2e.command import finish_ballast, run_ballast, start_ballast, step_metrics

CLOCKS = {"timings", "run_id"}  # columns that tell when and by which run, not what


def command(folder, name, *overrides):
    return [
        *("train", "experiment=tiny"),
        *(f"output_dir={folder}", f"run_name={name}", "data.eval_limit=16"),
        *("trainer.total_steps=6", "trainer.checkpoint_every=3", *overrides),
    ]


def run_to_end(folder, name, *overrides):
    finish_ballast(*command(folder, name, *overrides), cwd=folder)
    return folder / name


def start(folder, name, *overrides):
    """A run of its own process group, whose output is read line by line."""
    return start_ballast(
        *command(folder, name, *overrides),
        cwd=folder,
        variables={"BALLAST_TEST_MARK": name},
        own_group=True,
    )


def marked(name):
    """Processes that inherited a run's environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BALLAST_TEST_MARK") == name:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def read_until(process, pattern):
    for line in process.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(f"the run ended before {pattern!r}")


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def assert_same_rollouts(one, other, steps):
    for step in steps:
        name = f"rollouts/step_{step:06d}.parquet"
        mine, theirs = pq.read_table(one / name), pq.read_table(other / name)
        assert mine.column_names == theirs.column_names
        for column in set(mine.column_names) - CLOCKS:
            same = mine[column].combine_chunks().equals(theirs[column].combine_chunks())
            assert same, f"step {step}: {column}"


def assert_same_tensors(one, other, expected):
    mine, theirs = load_file(one), load_file(other)
    assert mine.keys() == theirs.keys()
    assert expected <= mine.keys()
    for name, tensor in mine.items():
        assert tensor.numpy().tobytes() == theirs[name].numpy().tobytes(), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exact")


@pytest.fixture(scope="module")
def whole(folder):
    return run_to_end(folder, "whole")


@pytest.fixture(scope="module")
def killed(folder):
    """Killed in step 4 or later, when the checkpoint of step 3 is on disk."""
    process = start(folder, "killed")
    read_until(process, r"^step 4/")
    path = folder / "killed" / "checkpoints" / "step_000003"
    wait_for(path.exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    wait_for(lambda: not marked("killed"))
    shutil.copytree(folder / "killed", folder / "moved", symlinks=True)
    return folder / "killed"


@pytest.mark.slow
def test_killed_and_resumed_is_the_run_that_was_not(folder, whole, killed):
    assert not (killed / "final").exists()
    run_to_end(folder, "killed", "resume=auto")
    assert_same_rollouts(whole, killed, range(1, 7))
    weight = "model.embed_tokens.weight"
    assert_same_tensors(
        whole / "final" / "model.safetensors", killed / "final" / "model.safetensors", {weight}
    )
    for step in (3, 6):
        file = f"checkpoints/step_{step:06d}/learner/rank_00000.safetensors"
        kinds = {f"{kind}.{weight}" for kind in ("weight", "exp_avg", "exp_avg_sq")}
        assert_same_tensors(whole / file, killed / file, kinds)
    ledgers = [
        json.loads((run / "checkpoints/step_000006/state.json").read_text())["parts"]["ledger"]
        for run in (whole, killed)
    ]
    assert ledgers[0] == ledgers[1]


@pytest.mark.slow
def test_another_number_of_ranks_and_another_stage_go_on_with_the_same_loss(folder, whole, killed):
    moved = run_to_end(
        folder, "moved", "resume=auto", "learner.num_ranks=2", "learner.zero_stage=3"
    )
    lines = {}
    for run in (whole, moved):
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines[run] = {line["step"]: line for line in steps if "learner/loss" in line}
    assert lines[moved][4]["learner/loss"] == pytest.approx(
        lines[whole][4]["learner/loss"], abs=1e-5
    )
    assert lines[moved][4]["reward/mean"] == lines[whole][4]["reward/mean"]
    state = json.loads((moved / "checkpoints/step_000006/learner/engine.json").read_text())
    assert (state["world_size"], state["zero_stage"]) == (2, 3)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(folder):
    """The learner's process may write no file above 1 MiB any more: the next checkpoint fails."""
    process = start(folder, "full", "trainer.total_steps=40", "trainer.checkpoint_every=10")
    read_until(process, r"^step 10/")
    store = folder / "full" / "checkpoints"
    wait_for((store / "step_000010").exists)
    learner = [p for p in marked("full") if "PolicyWorker" in " ".join(p.cmdline())]
    assert learner
    for one in learner:
        one.rlimit(psutil.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 1
    assert re.search(r"the checkpoint of step \d+0 could not be written .*File too large", rest)
    assert "resume=auto" in rest
    assert not list(store.glob("*.partial"))
    complete = sorted(path.name for path in store.glob("step_*"))
    assert f"{complete[-1]} is the last one" in rest
    victim = store / complete[-1] / "learner" / "rank_00000.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    refused = run_ballast(*command(folder, "full", "resume=auto"), cwd=folder)
    assert refused.returncode == 2
    assert re.search(
        rf"{complete[-1]}/learner/rank_00000\.safetensors has \d+ bytes", refused.stderr
    )
    assert f"remove the folder {Path(store / complete[-1])}" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["one_step_off", "async"])
def test_groups_sampled_ahead_are_kept_and_every_prompt_is_trained_once(folder, schedule):
    """Killed while engines run ahead: what was finished is kept, the rest is sampled again."""
    overrides = [f"schedule={schedule}", "rollout.num_engines=2", "algorithm/correction=tis"]
    process = start(folder, schedule, *overrides)
    read_until(process, r"^step 4/")
    store = folder / schedule / "checkpoints"
    wait_for((store / "step_000003").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    wait_for(lambda: not marked(schedule))
    kept = store / "step_000003" / "buffered" / "groups.arrow"
    buffered = pa.ipc.open_file(kept).read_all() if kept.exists() else None
    run = run_to_end(folder, schedule, "resume=auto", *overrides)
    tables = [pq.read_table(run / f"rollouts/step_{step:06d}.parquet") for step in range(1, 7)]
    groups = [name for table in tables for name in table["group_id"].unique().to_pylist()]
    assert len(groups) == len(set(groups)) == 6 * 32
    state = json.loads((store / "step_000006" / "state.json").read_text())
    settled = Counter(state["parts"]["ledger"]["fate"]["0"].values())
    dropped = {fate: n for fate, n in settled.items() if fate.startswith("dropped:stale")}
    trained = {f"trained:{step}": 32 for step in range(1, 7)}
    assert settled == {**trained, **dropped}
    steps = step_metrics(run)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(line["publication/probe_gap_max"] <= 1e-5 for line in steps)
    bound = 1 if schedule == "one_step_off" else 4
    assert all(line["staleness/max"] <= bound for line in steps)
    if buffered is not None and not dropped:
        after = {row["rollout_id"]: row["tokens"] for t in tables[3:] for row in t.to_pylist()}
        for row in buffered.to_pylist():
            assert after[row["rollout_id"]] == row["tokens"]
