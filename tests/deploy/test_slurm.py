"""The Slurm script, run by bash against commands that record what they are told.

How far this is: the order of events, signals, the token and the exit codes are real; Slurm is not
here, so `srun` and `scontrol` are fakes, and so are `ray` and `ballast` behind them. What Slurm
itself does with the script is test_slurm_real.py's.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "ballast.sbatch"
LOCAL = Path(__file__).parents[2] / "deploy" / "local"

# Every fake writes a line `name arguments` to $CALLS; long-lived ones sleep until they are ended.
RECORD = """#!/usr/bin/env bash
set -f # a line per call, whatever its arguments hold
echo "$(basename "$0")" $* >>"$CALLS"
"""
# A step on a node: what it asks of Slurm, and what it then sees there.
SRUN = (
    RECORD
    + """
unset SLURM_GPUS_ON_NODE
export SLURM_CPUS_ON_NODE=64
while [[ $1 == --* ]]; do
  if [[ $1 == --gres=gpu:* ]]; then export SLURM_GPUS_ON_NODE=${1#--gres=gpu:}; fi
  shift
done
case $1 in
  getent) printf '%b' "${RESOLVED-127.0.1.1 STREAM\\nfe80::1 STREAM\\n10.0.0.1 STREAM\\n}" ;;
  hostname) echo "127.0.0.1 fe80::1 10.0.0.2" ;;
  *) exec "$@" ;;
esac
"""
)
RAY = (
    RECORD
    + """
trap 'echo "step ended" >>"$CALLS"; kill "$!"; exit 0' TERM
sleep 60 &
echo "on a node: token $(stat -c %a "$RAY_AUTH_TOKEN_PATH"), mode $RAY_AUTH_MODE" >>"$CALLS"
wait $!
"""
)
SCONTROL = (
    RECORD
    + """
case "$1 $2" in
  "show hostnames") printf "${NODES:-n1\\nn2\\nn3\\n}" ;;
  "show node") echo "NodeName=$3 NodeAddr=$3.cluster NodeHostName=$3" ;;
  "show job") echo "   StartTime=2026-01-01T00:00:00 EndTime=${END:-Unknown} Deadline=N/A" ;;
esac
"""
)
BALLAST = (
    RECORD
    + """
if [[ $1 == nodes ]]; then
  while (($(grep -c "on a node" "$CALLS") < 2)) || [[ -n ${NODES_MISSING:-} ]]; do sleep 0.05; done
  exit "${NODES_STATUS:-0}"
fi
if [[ ${TRAINS_LONG:-} == stuck ]]; then
  trap '' TERM
  echo "training" >>"$CALLS"
  exec sleep 60
fi
if [[ -n ${TRAINS_LONG:-} ]]; then
  checkpoint=$BALLAST_RUNS/run/checkpoints/step_000004
  save() {
    echo "checkpoint" >>"$CALLS"
    if [[ $TRAINS_LONG == saves ]]; then mkdir -p "$checkpoint"; fi
    kill "$!"
    sleep 0.5
    exit 143
  }
  trap save TERM
  sleep 60 &
  echo "training" >>"$CALLS"
  wait "$!"
fi
exit "${TRAIN_STATUS:-0}"
"""
)


@pytest.fixture
def job(tmp_path):
    """Starts the script as job 7 on three nodes; `calls` reads the record."""
    programs = tmp_path / "bin"
    programs.mkdir()
    fakes = {"srun": SRUN, "scontrol": SCONTROL, "ballast": BALLAST, "ray": RAY}
    for name, text in fakes.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "calls").touch()

    def start(*arguments, **more):
        env = {
            **os.environ,
            "BALLAST_BIN": str(programs),
            "BALLAST_RUNS": str(tmp_path / "runs"),
            "CALLS": str(tmp_path / "calls"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-3]",
            **more,
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments], env=env, stderr=subprocess.PIPE, text=True
        )

    start.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    start.folder = tmp_path
    return start


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_from_the_first_node_to_the_end(job):
    process = job("experiment=tiny", "run_name=a")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    calls = job.calls()
    assert calls[0] == "scontrol show hostnames n[1-3]"
    (waited,) = [n for n, call in enumerate(calls) if call.startswith("ballast nodes")]
    (trained,) = [n for n, call in enumerate(calls) if call.startswith("ballast train")]
    assert calls[waited] == "ballast nodes --address 10.0.0.1:6379 --wait-for 3 --timeout 600"
    assert waited < trained
    assert calls[trained] == (
        "ballast train experiment=tiny run_name=a cluster.address=10.0.0.1:6379 "
        f"output_dir={job.folder / 'runs'} resume=auto"
    )
    (head,) = [call for call in calls if call.startswith("srun") and " ray-head " in call]
    assert "--nodes=1 --ntasks=1 --nodelist=n1 " in head
    (others,) = [call for call in calls if call.startswith("srun") and " ray-node " in call]
    assert "--nodes=2 --ntasks=2 --nodelist=n2,n3 " in others
    assert calls.count("step ended") == 2  # Ray is taken down on every node
    assert "requeue" not in "".join(calls)


def test_the_token_is_new_private_and_gone(job):
    tokens = set()
    for _ in range(2):
        (job.folder / "calls").write_text("")
        process = job("experiment=tiny", TRAINS_LONG="yes")
        wait_for(lambda: "training" in job.calls())
        (file,) = (job.folder / "runs").glob(".ray-token-*")
        token = file.read_text()
        assert len(token) == 64
        tokens.add(token)
        calls = "\n".join(job.calls())
        assert calls.count("on a node: token 600, mode token") == 2
        assert token not in calls  # a command line can be read by every user of its node
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert token not in errors
        assert not file.exists()
    assert len(tokens) == 2


def test_asked_to_stop_it_saves_and_goes_back_into_the_queue(job):
    process = job("experiment=tiny", TRAINS_LONG="saves")
    wait_for(lambda: "training" in job.calls())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    calls = job.calls()
    assert process.returncode == 143, errors
    assert calls.index("checkpoint") < calls.index("scontrol requeue 7")
    assert calls.count("step ended") == 2
    assert not list((job.folder / "runs").glob(".fruitless-*"))


def test_asked_to_stop_while_nodes_are_awaited_it_stops_at_once(job):
    process = job("experiment=tiny", NODES_MISSING="yes")
    wait_for(lambda: any(call.startswith("ballast nodes") for call in job.calls()))
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 10  # `ballast nodes` waits for 600 s
    assert process.returncode == 143, errors
    calls = job.calls()
    assert not [call for call in calls if call.startswith("ballast train")]
    assert calls[-1] == "scontrol requeue 7"


def test_a_second_signal_does_not_cut_the_saving_short(job):
    process = job("experiment=tiny", TRAINS_LONG="saves")
    wait_for(lambda: "training" in job.calls())
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "checkpoint" in job.calls())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert job.calls().count("checkpoint") == 1


def test_a_run_that_cannot_save_in_time_still_goes_back_into_the_queue(job):
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 63))
    process = job("experiment=tiny", TRAINS_LONG="stuck", END=soon)
    wait_for(lambda: "training" in job.calls())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 137, errors
    assert "the job ends in 60 s and the run has not saved" in errors
    assert job.calls()[-1] == "scontrol requeue 7"


def test_three_stops_without_a_checkpoint_end_the_job(job):
    for start in (1, 2, 3):
        (job.folder / "calls").write_text("")
        process = job("experiment=tiny", TRAINS_LONG="yes")
        wait_for(lambda: "training" in job.calls())
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert ("scontrol requeue 7" in job.calls()) == (start < 3), start
    assert "three times in a row before anything was saved" in errors


def ray_starts(job):
    return [call for call in job.calls() if call.startswith("ray start")]


def test_ray_has_the_cpus_and_gpus_of_its_step(job):
    job("experiment=tiny", SLURM_GPUS_ON_NODE="8").communicate(timeout=60)
    starts = ray_starts(job)
    assert len(starts) == 2
    assert all("--num-cpus=64 --num-gpus=8 " in call for call in starts)


def test_without_gpus_of_slurm_ray_looks_for_them_itself(job):
    job("experiment=tiny").communicate(timeout=60)
    assert all("--num-cpus=64 " in call for call in ray_starts(job))
    assert not [call for call in job.calls() if "--gres" in call]
    assert not [call for call in ray_starts(job) if "--num-gpus" in call]


def test_the_job_asks_for_all_memory_and_warns_early():
    asked = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --mem=0" in asked
    assert "#SBATCH --exclusive" in asked
    assert "#SBATCH --signal=B:TERM@1800" in asked


@pytest.mark.parametrize(
    ("given", "ip"),
    [
        ({}, "10.0.0.1"),  # of what the second node resolves, what is no loopback and no IPv6
        ({"RESOLVED": "127.0.1.1 STREAM\\n"}, "10.0.0.2"),  # what the first node has itself
        ({"BALLAST_HEAD_ADDRESS": "10.9.9.9"}, "10.9.9.9"),
    ],
)
def test_the_heads_address_is_one_that_other_nodes_reach(job, given, ip):
    job("experiment=tiny", **given).communicate(timeout=60)
    calls = job.calls()
    assert any(call.startswith(f"ballast nodes --address {ip}:6379 ") for call in calls)
    asked = [call for call in calls if "getent ahostsv4 n1.cluster" in call]
    assert all("--nodelist=n2 " in call for call in asked)
    assert len(asked) == ("BALLAST_HEAD_ADDRESS" not in given)


@pytest.mark.parametrize(
    ("failing", "status"), [({"TRAIN_STATUS": "2"}, 2), ({"NODES_STATUS": "3"}, 3)]
)
def test_a_failure_is_the_jobs_and_is_not_repeated(job, failing, status):
    process = job("experiment=tiny", **failing)
    process.communicate(timeout=60)
    assert process.returncode == status
    calls = job.calls()
    assert not [call for call in calls if "requeue" in call]
    assert any(call.startswith("ballast train") for call in calls) == ("TRAIN_STATUS" in failing)
    assert calls.count("step ended") == 2
    assert not list((job.folder / "runs").glob(".ray-token-*"))


def test_a_missing_program_is_named(job):
    (job.folder / "bin" / "ray").unlink()
    process = job("experiment=tiny", PATH="/usr/bin:/bin")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 127
    assert "ray is not on PATH; set BALLAST_BIN" in errors


def shellcheck(*paths):
    program = str(Path(sys.executable).with_name("shellcheck"))
    return subprocess.run(
        [program, *paths], capture_output=True, text=True, timeout=60, check=False
    )


def test_shellcheck_finds_nothing():
    done = shellcheck(SCRIPT, LOCAL / "start.sh", LOCAL / "stop.sh")
    assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_something(tmp_path):
    broken = tmp_path / "broken.sh"
    broken.write_text(SCRIPT.read_text().replace('"$token_file"', "$token_file"))
    assert "SC2086" in shellcheck(broken).stdout


@pytest.mark.parametrize("arguments", [["0", "4"], ["two", "4"], ["2", "-1"]])
def test_the_local_cluster_names_bad_numbers(tmp_path, arguments):
    done = subprocess.run(
        [str(LOCAL / "start.sh"), *arguments],
        env={**os.environ, "BALLAST_LOCAL": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "give two whole numbers" in done.stderr
    assert not (tmp_path / "state").exists()


def test_stopping_where_nothing_runs_is_no_error(tmp_path):
    env = {**os.environ, "BALLAST_LOCAL": str(tmp_path)}
    done = subprocess.run(
        [str(LOCAL / "stop.sh")], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "no cluster of start.sh" in done.stdout
