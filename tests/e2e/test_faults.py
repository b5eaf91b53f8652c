"""Processes die under a running job, one kind after the other, and the job ends as if none had.

The real stack with two engines; the victims are found among the descendants of the driver.
"""

import json
import signal
from collections import Counter

import psutil
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import start_ballast, step_metrics


def victim(driver, *words):
    """A process below the driver whose title has all words, the youngest first."""
    below = psutil.Process(driver).children(recursive=True)
    titled = [p for p in below if all(word in " ".join(p.cmdline()) for word in words)]
    assert titled, [" ".join(p.cmdline())[:60] for p in below]
    return max(titled, key=psutil.Process.create_time)


def run_with_faults(folder, name, faults, *overrides):
    """A run under which processes are killed, one of every title in `faults`, a list of words.

    The first after step 2; each other one two steps after the engine that was killed before it
    samples again. The run is stopped three steps after the last is back.
    """
    process = start_ballast(
        *("train", "experiment=tiny"),
        *(f"output_dir={folder}", f"run_name={name}", "trainer.total_steps=600"),
        *("data.eval_limit=16", "trainer.export=false", "trainer.checkpoint_every=4"),
        *overrides,
        cwd=folder,
    )
    assert process.stdout is not None
    output, left, awaited, quiet_steps = [], list(faults), 0, 0
    for line in process.stdout:
        output.append(line)
        awaited -= "has the learner's weights and samples" in line
        if not line.startswith("step ") or awaited:
            continue
        quiet_steps += 1
        if left and quiet_steps == 2:
            words, quiet_steps = left.pop(0), 0
            awaited = int("ray::RewardWorker" not in words)  # the scorers' restart is not announced
            victim(process.pid, *words).send_signal(signal.SIGKILL)
        elif not left and quiet_steps == 3:  # once: a second signal would end it without saving
            process.send_signal(signal.SIGTERM)
    (folder / f"{name}.log").write_text("".join(output))
    assert process.wait(timeout=120) == 143, f"see {folder / name}.log"
    assert not left
    return folder / name


FAULTS = [["EngineCore"], ["ray::RewardWorker"], ["ray::RolloutWorker"]]
COMMON = (
    "rollout.num_engines=2",
    "trainer.prompts_per_step=16",
    "algorithm=grpo",
    "~algorithm.regularizers.kl",
)


def trained_steps(run):
    """The metrics of every step, none missing, after what every schedule must keep."""
    steps = step_metrics(run)
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["rollout/engines_lost"] == 2
    assert steps[-1]["rollout/groups_resampled"] > 0
    assert steps[-1]["rollout/engines_healthy"] == 2
    # No attestation was skipped where an engine lived, no sample failed.
    assert all(line.get("publication/probe_gap_max", 0.0) <= 1e-5 for line in steps)
    assert "publication/probe_gap_max" in steps[-1]
    assert all(line["samples/failed"] == 0 for line in steps)
    assert all(line["groups/trained"] == 16 for line in steps)
    return steps


def fates(run):
    """Of every prompt that has one: the ledger after the last step."""
    last = max((run / "checkpoints").glob("step_*"))
    fate = json.loads((last / "state.json").read_text())["parts"]["ledger"]["fate"]
    assert list(fate) == ["0"]
    return Counter(fate["0"].values())


def test_engines_and_scorers_die_and_nothing_is_lost(tmp_path):
    run = run_with_faults(tmp_path, "faults", FAULTS, *COMMON)
    steps = trained_steps(run)
    trained = Counter()
    for step in range(1, len(steps) + 1):
        table = pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet")
        assert set(table.column("outcome").to_pylist()) == {"scored"}
        drawn = {v for row in table.column("weight_versions").to_pylist() for v in row if v >= 0}
        assert drawn == {step - 1}  # a restarted engine samples from the learner's weights only
        trained.update(set(table.column("prompt_uid").to_pylist()))
    assert set(trained.values()) == {1}
    assert len(trained) == len(steps) * 16
    assert fates(run) == {f"trained:{step}": 16 for step in range(1, len(steps) + 1)}


@pytest.mark.slow
def test_the_same_while_the_engines_run_ahead(tmp_path):
    """Asynchronous: whatever dies, no token that trains is staler than the bound."""
    bound = 2
    overrides = ("schedule=async", f"schedule.max_staleness={bound}", "algorithm/correction=tis")
    run = run_with_faults(tmp_path, "ahead", FAULTS, *COMMON, *overrides)
    steps = trained_steps(run)
    assert all(line["staleness/max"] <= bound for line in steps)
    assert max(line["staleness/max"] for line in steps) > 0
    trained = Counter()
    for step in range(1, len(steps) + 1):
        table = pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet")
        versions = [[v for v in row if v >= 0] for row in table["weight_versions"].to_pylist()]
        assert all(row == sorted(row) for row in versions)  # weights change forwards only
        drawn = {version for row in versions for version in row}
        assert min(drawn) >= step - 1 - bound
        assert max(drawn) <= step - 1
        trained.update(set(table.column("prompt_uid").to_pylist()))
    assert set(trained.values()) == {1}
    assert len(trained) == len(steps) * 16
    settled = fates(run)
    dropped = sum(count for fate, count in settled.items() if fate.startswith("dropped:stale"))
    assert dropped == sum(line["groups/dropped"] for line in steps)
    assert settled.total() == len(steps) * 16 + dropped
    assert all(settled[f"trained:{step}"] == 16 for step in range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_worker_and_the_core_of_a_wide_engine_die(tmp_path):
    """The only engine, of two workers: each death takes it along, and it comes back."""
    run = run_with_faults(
        tmp_path,
        "wide",
        [["VLLM::Worker_TP1"], ["EngineCore"]],
        "trainer.prompts_per_step=16",
        "rollout.tensor_parallel_size=2",
    )
    steps = step_metrics(run)
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["rollout/engines_lost"] == 2
    assert steps[-1]["rollout/engines_healthy"] == 1
