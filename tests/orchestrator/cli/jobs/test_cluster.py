"""Submitting to a real Ray cluster of two nodes on this machine, with token authentication on."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

TIMEOUT_S = 300
ROOT = Path(__file__).parents[4]


def command(cluster, *arguments):
    name, *rest = arguments
    return [
        sys.executable,
        "-m",
        "orchestrator.cli",
        name,
        "--address",
        cluster.address,
        *rest,
    ]


def ballast(cluster, *arguments, env=None, timeout_s=TIMEOUT_S):
    return subprocess.run(
        command(cluster, *arguments),
        env=env or cluster.env,
        cwd=cluster.folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def run(cluster, name, *more):
    """Overrides of a short run."""
    return [
        "experiment=tiny",
        f"run_name={name}",
        f"output_dir={cluster.folder / 'runs'}",
        "data.eval_limit=8",
        "trainer.prompts_per_step=8",
        *more,
    ]


def steps(cluster, name):
    lines = (cluster.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "time/step_s" in line]


def job_id(output):
    return re.search(r"^submitted (\S+);", output, re.MULTILINE)[1]


def test_submitted_followed_and_done_on_both_nodes(cluster):
    done = ballast(
        cluster,
        "submit",
        *run(
            cluster,
            "both",
            "rollout.num_engines=3",
            "cluster.rollout.strategy=SPREAD",
            "trainer.total_steps=2",
        ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    # Two engines of one node share a copy, whether the learner's own or one that came by gloo.
    assert re.search(r"3 engines on 2 nodes: .*: \d, \d.*; weights by gloo", done.stdout)
    folder = cluster.folder / "runs" / "both"
    assert done.stdout.splitlines()[-1].endswith(f"SUCCEEDED, exit code 0, run folder {folder}")
    found = steps(cluster, "both")
    assert [line["step"] for line in found] == [1, 2]
    assert all(line["publication/probe_gap_max"] <= 1e-5 for line in found)  # attested on both
    token = (cluster.folder / "local" / "token").read_text()
    assert token not in done.stdout + done.stderr
    listed = ballast(cluster, "jobs")
    assert re.search(rf"^{job_id(done.stdout)}\s+SUCCEEDED .* both$", listed.stdout, re.MULTILINE)


def test_the_health_of_a_node_is_told_without_a_token(cluster):
    """What the probes of deploy/kuberay ask of the head."""
    with urllib.request.urlopen(f"{cluster.address}/api/gcs_healthz", timeout=10) as answer:
        assert b"success" in answer.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 64}, "refuses the token"),
        ({"RAY_AUTH_MODE": "disabled"}, "refuses the token"),
    ],
)
def test_a_wrong_token_is_refused(cluster, change, message):
    done = ballast(cluster, "jobs", env={**cluster.env, **change})
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "f" * 64 not in done.stderr


def test_a_job_that_is_not_there(cluster):
    done = ballast(cluster, "logs", "no-such-job")
    assert done.returncode == 2
    assert "no job 'no-such-job' on this cluster" in done.stderr


SAVES = "trap 'sleep 5; echo saved; exit 0' TERM; echo running; while :; do sleep 0.2; done"
# Submits jobs with the variables of the manifest and without, and returns when both run.
SUBMIT = """
import json, sys, time
from ray.job_submission import JobSubmissionClient

client, entrypoint = JobSubmissionClient(sys.argv[1]), sys.argv[2]
jobs = {"as-manifest": json.loads(sys.argv[3]), "as-ray": {}}
for job, env in jobs.items():
    client.submit_job(
        entrypoint=entrypoint, submission_id=job, runtime_env={"env_vars": env}
    )
for job in jobs:
    while "running" not in client.get_job_logs(job).splitlines():
        time.sleep(0.5)
"""


def test_all_jobs_are_stopped_and_wait_as_long_as_the_manifest_of_kuberay_says(cluster):
    """What the head's preStop hook does; a job without the manifest's variable shows Ray's 3 s."""
    manifest = yaml.safe_load((ROOT / "deploy/kuberay/base/rayjob.yaml").read_text())
    env = yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])["env_vars"]
    words = [sys.executable, "-c", SUBMIT, cluster.address, SAVES, json.dumps(env)]
    subprocess.run(words, env=cluster.env, timeout=TIMEOUT_S, check=True)
    stopped = ballast(cluster, "stop", "--all")
    assert stopped.returncode == 0, stopped.stderr
    assert "as-manifest: STOPPED" in stopped.stdout
    assert "as-ray: STOPPED" in stopped.stdout
    assert "saved" in ballast(cluster, "logs", "as-manifest").stdout.splitlines()
    assert "saved" not in ballast(cluster, "logs", "as-ray").stdout.splitlines()


@pytest.mark.slow
def test_a_killed_follower_is_replaced_and_a_stopped_run_resumes(cluster):
    overrides = run(cluster, "long", "trainer.total_steps=400", "trainer.checkpoint_every=0")
    follower = subprocess.Popen(
        command(cluster, "submit", *overrides),
        env=cluster.env,
        cwd=cluster.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    seen = ""
    for line in follower.stdout:
        seen += line
        if line.startswith("step 2/"):
            break
    os.kill(follower.pid, signal.SIGKILL)
    follower.wait()
    job = job_id(seen)
    again = subprocess.Popen(
        command(cluster, "logs", job, "--follow"),
        env=cluster.env,
        cwd=cluster.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    watcher = subprocess.Popen(
        command(cluster, "watch", job),
        env=cluster.env,
        cwd=cluster.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    watched = ""
    for line in watcher.stdout:
        watched += line
        if line.startswith("step 2/400"):
            break
    second = ballast(cluster, "submit", *overrides)  # the run's folder is being written
    assert second.returncode == 2
    assert f"is written by job {job}" in second.stderr
    stopped = ballast(cluster, "stop", job)
    assert stopped.returncode == 0, stopped.stderr
    assert "STOPPED" in stopped.stdout
    rest, _ = again.communicate(timeout=TIMEOUT_S)
    assert again.returncode == 143
    assert "step 2/400" in rest  # from the beginning
    watched += watcher.communicate(timeout=TIMEOUT_S)[0]
    assert watcher.returncode == 0
    assert "step 1/400" in watched
    assert "long: ended early after step" in watched
    (last,) = re.findall(r"step (\d+) is saved", rest)
    folder = cluster.folder / "runs" / "long"
    assert (folder / "checkpoints" / f"step_{int(last):06d}").is_dir()
    total = int(last) + 2
    done = ballast(cluster, "submit", *overrides, "resume=auto", f"trainer.total_steps={total}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in steps(cluster, "long")] == list(range(1, total + 1))


@pytest.mark.slow
def test_a_failure_on_the_cluster_has_its_exit_code_and_its_words(cluster):
    done = ballast(cluster, "submit", "--secret", "NO_SUCH_SECRET", *run(cluster, "secret"))
    assert done.returncode == 2
    assert "secret NO_SUCH_SECRET is unset" in done.stdout
    assert "FAILED, exit code 2" in done.stdout
    assert not (cluster.folder / "runs" / "secret").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quickstart(cluster):
    arguments = [f"output_dir={cluster.folder / 'runs'}", "run_name=quickstart"]
    done = ballast(cluster, "submit", "experiment=quickstart", *arguments, timeout_s=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(cluster, "quickstart")[-1]["step"] == 10
