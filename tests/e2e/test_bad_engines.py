"""Engines that hang or answer garbage: recovered or counted, never a hang, never a zero reward.

The real stack with one engine. An environment of the test's own slows sampling down, so that an
engine is stopped while it samples, and now and then passes an engine's garbage on.
"""

import contextlib
import signal
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import start_ballast, step_metrics

ENVIRONMENT = '''
import asyncio
import itertools
from dataclasses import dataclass
from pathlib import Path

from workers.engines.vllm.answers import UnusableAnswerError
from workers.rollout.environments.single_turn import SingleTurn

CALLS = itertools.count(1)
SLOW = Path(__file__).with_name("slow_from_now")


@dataclass(frozen=True, kw_only=True)
class Faulty(SingleTurn):
    """Every `garbage_every`-th answer counts as one with a log-prob that is not finite."""

    seconds: float
    garbage_every: int

    async def play(self, task, session):
        await asyncio.sleep(600.0 if SLOW.exists() else self.seconds)
        ended = await super().play(task, session)
        if next(CALLS) % self.garbage_every == 0:
            raise UnusableAnswerError("non-finite log-prob")
        return ended
'''


def start(folder, name, *, seconds, garbage_every, overrides=()):
    (folder / "faulty_environment.py").write_text(ENVIRONMENT)
    return start_ballast(
        *("train", "experiment=tiny"),
        *(f"output_dir={folder}", f"run_name={name}", "trainer.total_steps=4"),
        *("trainer.prompts_per_step=8", "rollout.samples_per_prompt=4", "data.eval_limit=4"),
        *("trainer.export=false", "algorithm=grpo", "~algorithm.regularizers.kl"),
        "environment.player._target_=faulty_environment.Faulty",
        *(
            f"+environment.player.seconds={seconds}",
            f"+environment.player.garbage_every={garbage_every}",
        ),
        *overrides,
        cwd=folder,
    )


def stop(driver, word):
    """SIGSTOP: the process is there and answers nothing any more."""
    below = psutil.Process(driver).children(recursive=True)
    victims = [p for p in below if word in " ".join(p.cmdline())]
    assert victims, [" ".join(p.cmdline())[:60] for p in below]
    max(victims, key=psutil.Process.create_time).send_signal(signal.SIGSTOP)


def finish(process, folder, output):
    output.append(process.stdout.read())
    (Path(folder) / "log").write_text("".join(output))
    return process.wait(timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("process_name", ["EngineCore", "ray::RolloutWorker"])
def test_an_engine_that_answers_nothing_is_replaced(tmp_path, process_name):
    limits = [f"cluster.timeouts.{name}" for name in ("request_s=8", "engine_s=15", "publish_s=20")]
    process = start(tmp_path, "hung", seconds=1.5, garbage_every=9, overrides=limits)
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step 2/"):
            stop(process.pid, process_name)
            break
    assert finish(process, tmp_path, output) == 0, "".join(output)[-3000:]
    steps = step_metrics(tmp_path / "hung")
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert steps[-1]["rollout/engines_lost"] == 1
    assert steps[-1]["rollout/engines_healthy"] == 1
    assert steps[-1]["rollout/groups_resampled"] > 0
    assert all(line["publication/probe_gap_max"] <= 1e-5 for line in steps)
    # Garbage is counted and trains nowhere.
    assert sum(line["samples/failed"] for line in steps) >= 4 * 32 // 9
    for step in range(1, 5):
        table = pq.read_table(tmp_path / "hung" / "rollouts" / f"step_{step:06d}.parquet")
        assert set(table["outcome"].to_pylist()) == {"scored"}
        assert table.num_rows == steps[step - 1]["rollout/sequences"] < 32


@pytest.mark.slow
def test_an_engine_that_answers_garbage_only_ends_the_run_with_its_reason(tmp_path):
    process = start(tmp_path, "garbage", seconds=0.0, garbage_every=1)
    output = []
    assert finish(process, tmp_path, output) == 1
    assert "no group may train" in output[-1]
    assert "non-finite log-prob" in output[-1]


def kill_every_engine(process, output):
    """SIGKILL to each EngineCore as it appears, until the driver ends."""
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for below in driver.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    if "EngineCore" in " ".join(below.cmdline()):
                        below.kill()
        time.sleep(0.5)
    output.append(process.stdout.read())


@pytest.mark.slow
def test_a_run_without_engines_stops_with_a_checkpoint_and_resumes(tmp_path):
    sound = {"seconds": 0.3, "garbage_every": 1_000_000}
    kept = ["trainer.checkpoint_every=0", "trainer.total_steps=5"]  # none but the one at the stop
    process = start(tmp_path, "lost", overrides=kept, **sound)
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step 2/"):
            break
    kill_every_engine(process, output)
    text = "".join(output)
    assert process.returncode == 1, text[-3000:]
    assert "rollout engine 0 died 4 times without finishing a group" in text
    saved = sorted(path.name for path in (tmp_path / "lost" / "checkpoints").glob("step_*"))
    assert saved in (["step_000002"], ["step_000003"])
    again = start(tmp_path, "lost", overrides=[*kept, "resume=auto"], **sound)
    rest = []
    assert finish(again, tmp_path, rest) == 0, "".join(rest)[-3000:]
    steps = [line["step"] for line in step_metrics(tmp_path / "lost")]
    assert steps == [1, 2, 3, 4, 5]


REWARD = """
from pathlib import Path


def reward(prompt, response, ground_truth, **columns):
    if Path(__file__).with_name("broken").exists():
        raise RuntimeError("the verifier is down")
    return float(len(response))
"""


@pytest.mark.slow
def test_a_reward_that_starts_to_fail_leaves_a_checkpoint_and_the_run_resumes(tmp_path):
    (tmp_path / "my_reward.py").write_text(REWARD)
    kept = ["trainer.checkpoint_every=0", "trainer.total_steps=5"]  # none but the one at the end
    scored = ["reward=function", f"reward.scorer.path={tmp_path}/my_reward.py:reward"]
    sound = {"seconds": 0.3, "garbage_every": 1_000_000, "overrides": [*kept, *scored]}
    process = start(tmp_path, "down", **sound)
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step 2/"):
            (tmp_path / "broken").touch()
            break
    assert finish(process, tmp_path, output) == 1, "".join(output)[-3000:]
    last = "".join(output).splitlines()[-1]
    assert "no group may train" in last
    assert "the verifier is down" in last
    (saved,) = (tmp_path / "down" / "checkpoints").glob("step_*")
    step = int(saved.name.removeprefix("step_"))
    assert step in (2, 3)
    assert f"step {step} is saved; resume=auto goes on from there; traceback: " in last
    assert "Traceback" not in "".join(output)
    assert "NothingToTrainError" in (tmp_path / "down" / "failure.log").read_text()
    (tmp_path / "broken").unlink()
    again = start(tmp_path, "down", **sound | {"overrides": [*kept, *scored, "resume=auto"]})
    rest = []
    assert finish(again, tmp_path, rest) == 0, "".join(rest)[-3000:]
    steps = step_metrics(tmp_path / "down")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert steps[-1]["ledger/trained"] == 5 * 8  # nothing dropped, nothing trained twice
    assert steps[-1]["ledger/dropped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_samples_for_hours_stops_at_once_when_it_is_asked(tmp_path, number, code):
    """With 600 s of sampling a step; the first steps are quick because nothing slows them down."""
    kept = ["trainer.checkpoint_every=0", "trainer.total_steps=5"]
    process = start(tmp_path, "asked", seconds=0.0, garbage_every=1_000_000, overrides=kept)
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step 2/"):
            (tmp_path / "slow_from_now").touch()
            break
    time.sleep(3)
    began = time.monotonic()
    process.send_signal(number)
    assert finish(process, tmp_path, output) == code, "".join(output)[-3000:]
    assert time.monotonic() - began < 60
    text = "".join(output)
    assert "asked to stop in step" in text
    assert "resume=auto goes on from there" in text.splitlines()[-1]
    assert len(list((tmp_path / "asked" / "checkpoints").glob("step_*"))) == 1
