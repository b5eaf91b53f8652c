"""The Slurm script as a job of a real Slurm: two nodes on one machine, asked to stop and requeued.

How far this is: controller, nodes, steps, signals, the queue and the GPUs that a step is given
are Slurm's own (slurm_desk.py); the nodes share one machine, so no network is crossed, and its GPUs
are empty files. The last test runs all of Ballast and Ray, the others a `ray` and a `ballast` that
write down what they see. Run them with

    apt-get install slurm-wlm munge
    pytest -m slow tests/deploy/test_slurm_real.py
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy import slurm_desk

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "ballast.sbatch"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(slurm_desk.missing()), reason=slurm_desk.missing() or "nothing missing"
    ),
]

RAY = """#!/usr/bin/env bash
echo "$SLURMD_NODENAME: ray $*" >>"$CALLS"
exec sleep 300
"""
# Trains until it is asked to stop; the second start finds the checkpoint and ends well.
BALLAST = """#!/usr/bin/env bash
echo "ballast $1" >>"$CALLS"
if [[ $1 == nodes ]]; then
  until (($(grep -c "ray start" "$CALLS") >= 2 * $(grep -c "ballast nodes" "$CALLS"))); do
    sleep 0.1
  done
  if [[ -n ${NODES_MISSING:-} ]]; then echo "waiting" >>"$CALLS"; exec sleep 300; fi
  exit 0
fi
checkpoint=$BALLAST_RUNS/run/checkpoints/step_000004
if [[ -e $checkpoint ]]; then exit 0; fi
trap 'mkdir -p "$checkpoint"; kill "$!"; exit 143' TERM
sleep 300 &
echo "training" >>"$CALLS"
wait
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    running = slurm_desk.start(tmp_path_factory.mktemp("slurm") / "desk")
    yield running
    running.stop()


@pytest.fixture
def job(desk, tmp_path):
    """Submits the script; `bin` holds the programs that stand for ray and ballast."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"ray": RAY, "ballast": BALLAST}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "calls").touch()
    begun = []

    def submit(*arguments, options=(), **more):
        env = {
            **desk.env,
            "BALLAST_BIN": str(programs),
            "BALLAST_RUNS": str(tmp_path / "runs"),
            "BALLAST_RAY_PORT": str(slurm_desk.free_ports(1)[0]),
            "CALLS": str(tmp_path / "calls"),
            **more,
        }
        command = ["sbatch", "--parsable", f"--output={tmp_path / 'log'}", *options, str(SCRIPT)]
        done = subprocess.run(
            [*command, *arguments], env=env, capture_output=True, text=True, timeout=60, check=True
        )
        begun.append(done.stdout.strip())
        return begun[-1]

    submit.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    submit.log = lambda: (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    submit.runs = tmp_path / "runs"
    yield submit
    for number in begun:
        if desk.state(number) in ("PENDING", "RUNNING"):
            desk.ask("scancel", "--signal=KILL", "--full", number)
            desk.ask("scancel", number)


def wait_for(condition, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def stop(desk, number):
    """Send what the time limit sends: SIGTERM to the script and to nothing else."""
    desk.ask("scancel", "--signal=TERM", "--batch", number)


def restarts(desk, number):
    return int(desk.field(number, "Restarts"))


def release(desk, number):
    """Start a requeued job now: Slurm holds it back for two minutes."""
    wait_for(lambda: desk.state(number) == "PENDING")
    desk.ask("scontrol", "update", f"JobId={number}", "StartTime=now")


@pytest.mark.parametrize("options", [[], ["--gpus-per-node=2"], ["--gres=gpu:2"]])
def test_ray_has_all_cpus_memory_and_gpus_of_both_nodes(desk, job, options):
    number = job("experiment=tiny", options=options)
    wait_for(lambda: "training" in job.calls())
    starts = sorted(call for call in job.calls() if "ray start" in call)
    assert [call.split(":")[0] for call in starts] == ["n1", "n2"]
    assert all("--num-cpus=2 --num-gpus=2 " in call for call in starts)
    assert "mem=16000M" in desk.field(number, "TRES")  # of 2 x 8000 MB; the default here is 100 MB
    assert "127.0." not in next(call for call in starts if "--head" in call)


def test_asked_to_stop_the_job_saves_and_comes_back(desk, job):
    number = job("experiment=tiny")
    wait_for(lambda: "training" in job.calls())
    stop(desk, number)
    release(desk, number)
    wait_for(lambda: desk.state(number) == "COMPLETED")
    assert restarts(desk, number) == 1
    assert job.calls().count("ballast train") == 2
    assert not list(job.runs.glob(".ray-token-*"))


def test_a_job_that_waits_for_nodes_stops_at_once(desk, job):
    number = job("experiment=tiny", NODES_MISSING="yes")
    wait_for(lambda: "waiting" in job.calls())
    began = time.monotonic()
    stop(desk, number)
    wait_for(lambda: desk.state(number) == "PENDING")
    assert time.monotonic() - began < 30  # `ballast nodes` waits for 600 s
    assert "ballast train" not in job.calls()


@pytest.mark.timeout(1200)
def test_a_run_of_ballast_and_ray_is_stopped_and_goes_on(desk, job):
    overrides = [
        "experiment=tiny",
        "run_name=real",
        "trainer.total_steps=6",
        "trainer.checkpoint_every=0",
        "data.eval_limit=8",
        "trainer.prompts_per_step=8",
    ]
    number = job(*overrides, BALLAST_BIN=str(Path(sys.executable).parent), PYTHONPATH=str(ROOT))
    metrics = job.runs / "real" / "metrics.jsonl"

    def steps():
        if not metrics.exists():
            return []
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        return [line["step"] for line in lines if "time/step_s" in line]

    def ended_or(condition):
        assert desk.state(number) in ("PENDING", "RUNNING"), job.log()
        return condition()

    wait_for(lambda: ended_or(steps), limit_s=500)
    assert "2 nodes, 2 GPUs of Slurm on each" in job.log()
    stop(desk, number)
    release(desk, number)
    assert "stopped after step" in job.log(), job.log()
    wait_for(lambda: desk.state(number) not in ("PENDING", "RUNNING", "COMPLETING"), limit_s=500)
    assert desk.state(number) == "COMPLETED", job.log()
    assert steps() == [1, 2, 3, 4, 5, 6]
    assert restarts(desk, number) == 1
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in left.splitlines() if str(job.runs) in line]
    assert os.listdir(job.runs) == ["real"]
