"""A node joins a running job and is lost again, on a real cluster of several nodes."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

LIMIT_S = 240
CPUS = "4"  # of a node, and of an engine, so that a node has room for one engine


def ballast(cluster, name, *rest):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "orchestrator.cli",
            name,
            "--address",
            cluster.address,
            *rest,
        ],
        env=cluster.env,
        cwd=cluster.folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def add_node(cluster):
    """A third node, in a process group of its own."""
    return subprocess.Popen(
        [
            *("ray", "start", "--block", f"--num-cpus={CPUS}", f"--address={cluster.head}"),
            *("--object-store-memory=200000000", "--node-ip-address=127.0.0.1"),
            "--dashboard-agent-listen-port=0",
        ],
        env=cluster.env | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(cluster, job, pattern):
    """The job's log, once it matches."""
    deadline = time.monotonic() + LIMIT_S
    while not re.search(pattern, log := ballast(cluster, "logs", job).stdout):
        assert time.monotonic() < deadline, log[-3000:]
        time.sleep(2)
    return log


@pytest.mark.slow
def test_a_node_that_joins_gets_an_engine_and_the_run_survives_its_end(cluster):
    submitted = ballast(
        cluster,
        "submit",
        "--no-wait",
        *("experiment=tiny", "run_name=elastic", f"output_dir={cluster.folder / 'runs'}"),
        *("data.eval_limit=8", "trainer.prompts_per_step=8", "trainer.total_steps=100000"),
        *("rollout.transport=gloo", "rollout.num_engines=1", "rollout.max_engines=2"),
        *("trainer.checkpoint_every=0", "trainer.export=false"),
        *(f"cluster.rollout.num_cpus={CPUS}", "cluster.timeouts.place_s=15"),
    )
    assert submitted.returncode == 0, submitted.stderr
    job = re.search(r"^submitted (\S+);", submitted.stdout, re.MULTILINE)[1]
    wait_for(cluster, job, r"(?m)^step 2/")
    refused = ballast(cluster, "scale", "--engines", "9", job)
    assert refused.returncode != 0
    assert "needs 8 x {CPU: 4}, the cluster has room for 0: free are {CPU: " in refused.stdout
    node = add_node(cluster)
    try:
        log = wait_for(cluster, job, r"rollout engine 1 has the learner's weights and samples")
        steps = log.count("\nstep ")
        wait_for(cluster, job, rf"(?m)^step {steps + 3}/")
    finally:
        os.killpg(node.pid, signal.SIGKILL)
    log = wait_for(cluster, job, r"rollout engine 1 has no place .*; 1 go on, and it comes back")
    steps = log.count("\nstep ")
    wait_for(cluster, job, rf"(?m)^step {steps + 3}/")
    down = ballast(cluster, "scale", "--engines", "1", job)
    assert down.returncode == 0, down.stdout + down.stderr
    assert "1 engine, 1 of them sampling" in down.stdout
    stopped = ballast(cluster, "stop", job)
    assert "STOPPED" in stopped.stdout, stopped.stdout + stopped.stderr
