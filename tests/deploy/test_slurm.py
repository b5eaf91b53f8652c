"""The Slurm script, run by bash against commands that record what they are told.

How far this is: the order of events, signals, the token and the exit codes are real; Slurm is not
here, so `srun` and `scontrol` are fakes, and so are `ray` and `ballast` behind them.
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
RECORD = '#!/usr/bin/env bash\nprintf "%s %s\\n" "$(basename "$0")" "$*" >>"$CALLS"\n'
SRUN = (
    RECORD
    + """
while [[ $1 == --* ]]; do shift; done
if [[ $1 == hostname ]]; then echo "10.0.0.1 fe80::1"; exit 0; fi
trap 'echo "step ended" >>"$CALLS"; kill "$!"; exit 0' TERM
sleep 60 &
echo "on a node: token $(stat -c %a "$RAY_AUTH_TOKEN_PATH"), mode $RAY_AUTH_MODE" >>"$CALLS"
wait $!
"""
)
SCONTROL = RECORD + 'if [[ $1 == show ]]; then printf "n1\\nn2\\nn3\\n"; fi\n'
BALLAST = (
    RECORD
    + """
if [[ $1 == nodes ]]; then
  while (($(grep -c "on a node" "$CALLS") < 2)); do sleep 0.05; done
  exit "${NODES_STATUS:-0}"
fi
if [[ -n ${TRAINS_LONG:-} ]]; then
  trap 'echo "checkpoint" >>"$CALLS"; kill "$!"; sleep 0.5; exit 143' TERM
  sleep 60 &
  echo "training" >>"$CALLS"
  wait $!
fi
exit "${TRAIN_STATUS:-0}"
"""
)


@pytest.fixture
def job(tmp_path):
    """Starts the script as job 7 on three nodes; `calls` reads the record."""
    programs = tmp_path / "bin"
    programs.mkdir()
    fakes = {"srun": SRUN, "scontrol": SCONTROL, "ballast": BALLAST, "ray": RECORD}
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
    assert "--nodelist=n1 hostname --ip-address" in calls[1]
    (waited,) = [n for n, call in enumerate(calls) if call.startswith("ballast nodes")]
    (trained,) = [n for n, call in enumerate(calls) if call.startswith("ballast train")]
    assert calls[waited] == "ballast nodes --address 10.0.0.1:6379 --wait-for 3 --timeout 600"
    assert waited < trained
    assert calls[trained] == (
        "ballast train experiment=tiny run_name=a cluster.address=10.0.0.1:6379 "
        f"output_dir={job.folder / 'runs'} resume=auto"
    )
    (head,) = [call for call in calls if call.startswith("srun") and "ray start --head" in call]
    assert "--nodelist=n1 " in head
    (others,) = [c for c in calls if c.startswith("srun") and "ray start --block --address" in c]
    assert "--nodes=2 --ntasks=2" in others
    assert "--nodelist=n2,n3" in others
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
    process = job("experiment=tiny", TRAINS_LONG="yes")
    wait_for(lambda: "training" in job.calls())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    calls = job.calls()
    assert process.returncode == 143, errors
    assert calls.index("checkpoint") < calls.index("scontrol requeue 7")
    assert calls.count("step ended") == 2


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
