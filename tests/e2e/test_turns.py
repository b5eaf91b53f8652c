"""Several turns on the real stack: a model learns from what it is told; replay, kills, async."""

import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.e2e.command import start_ballast, step_metrics

SMALL = ("trainer.prompts_per_step=8", "data.eval_limit=6")


def train(folder, name, *overrides, steps=3):
    return start_ballast(
        *("train", "experiment=tiny_guessing", f"output_dir={folder}", f"run_name={name}"),
        *(f"trainer.total_steps={steps}", *overrides),
        cwd=folder,
    )


def finished(process, folder, name):
    output, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, output[-3000:]
    return step_metrics(folder / name), output


def rows(folder, name, step):
    return pq.read_table(folder / name / "rollouts" / f"step_{step:06d}.parquet").to_pylist()


def check_rows(found):
    """Check that what trains is what turns sampled, and that learner and engine agree about it."""
    for row in found:
        sampled = np.zeros(len(row["tokens"]), dtype=bool)
        for number, turn in enumerate(row["turns"], start=1):
            assert turn["number"] == number
            sampled[turn["start"] : turn["end"]] = True
        assert row["loss_mask"] == sampled.tolist()
        assert [version >= 0 for version in row["weight_versions"]] == sampled.tolist()
        gap = np.subtract(row["rollout_logprobs"], row["logprobs"])[sampled]
        assert np.abs(gap).max() <= 1e-5, row["rollout_id"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tiny_model_learns_to_use_what_it_is_told(tmp_path):
    """Without the answers two of three numbers can be guessed: 0.67 is the best of the deaf."""
    steps, output = finished(train(tmp_path, "guess", steps=160), tmp_path, "guess")
    rewards = [line["reward/mean"] for line in steps]
    assert rewards[0] < 0.3
    assert np.mean(rewards[-10:]) > 0.8
    assert "up to 2 turns x 2 tokens = 4 sampled" in output
    assert max(line["rollout/turns_max"] for line in steps) == 2
    heldout = [line for line in output.splitlines() if line.startswith("held-out at step")]
    assert float(heldout[-1].split("mean ")[1].split()[0]) > 0.8
    check_rows(rows(tmp_path, "guess", 1))
    assert {row["num_turns"] for row in rows(tmp_path, "guess", 1)} == {1, 2}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_record_of_turns_is_replayed_to_the_bit(tmp_path):
    finished(train(tmp_path, "one", *SMALL), tmp_path, "one")
    again = ("rollout=replay", f"rollout.replay.folder={tmp_path / 'one'}")
    finished(train(tmp_path, "two", *SMALL, *again), tmp_path, "two")
    mine, other = (load_file(tmp_path / n / "final" / "model.safetensors") for n in ("one", "two"))
    assert all(tensor.equal(other[name]) for name, tensor in mine.items())
    check_rows(rows(tmp_path, "two", 3))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_engine_that_is_killed_between_turns_plays_again_and_each_prompt_trains_once(tmp_path):
    """Asynchronous, over-sampled, with early stops, and one engine of two is killed."""
    import psutil

    process = train(
        tmp_path,
        "killed",
        *SMALL,
        *("schedule=async", "schedule.max_staleness=1", "schedule.oversample=1.5"),
        *("schedule.leftover=again", "algorithm/correction=tis", "rollout.num_engines=2"),
        *("rollout.early_stop_samples=3", "algorithm=dapo", "trainer.export=false"),
        steps=5,
    )
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step 2/"):
            below = psutil.Process(process.pid).children(recursive=True)
            engines = [p for p in below if "EngineCore" in " ".join(p.cmdline())]
            engines[0].send_signal(signal.SIGKILL)
            break
    steps, rest = finished(process, tmp_path, "killed")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5], "".join(output) + rest[-3000:]
    assert steps[-1]["rollout/engines_lost"] == 1
    trained = []
    for step in range(1, 6):
        found = rows(tmp_path, "killed", step)
        assert {row["outcome"] for row in found} <= {"scored"}
        trained += sorted({"-".join(row["group_id"].split("-")[:2]) for row in found})
        for row in found:
            assert len(row["turns"]) == row["num_turns"] <= 2
    assert len(trained) == len(set(trained)) == 5 * 8
