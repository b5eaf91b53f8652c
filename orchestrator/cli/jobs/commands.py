"""Run `ballast submit | jobs | logs | stop | scale`, in a few lines each.

Runs in the process of the command, on the user's machine; the job runs on the cluster.
"""

from __future__ import annotations

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from ray.job_submission import JobDetails, JobSubmissionClient

from conf.compose import compose
from orchestrator.cli.jobs.client import ClusterError, connect
from orchestrator.cli.jobs.following import Follower, read_ending, read_run_folder
from orchestrator.cli.jobs.submission import make_request
from orchestrator.planning import plan


def submit(options: Namespace) -> int:
    """Check the run here, send it, and follow it; return the exit code of the run."""
    folder = None if options.config_dir is None else str(Path(options.config_dir).absolute())
    raw, config = compose(options.overrides, config_dir=folder)
    algorithm = instantiate(raw.algorithm, _convert_="all")
    plan.check_launch(config, algorithm)
    job = make_request(
        config,
        options.overrides,
        working_dir=None if options.working_dir is None else Path(options.working_dir),
        wheel=None if options.wheel is None else Path(options.wheel),
        config_dir=options.config_dir,
        env=options.env,
        secrets=options.secret,
    )
    client = connect(options.address)
    _check_no_second_job(client, config.run_name, config.output_dir)
    print(plan.describe(config, algorithm))
    job_id = client.submit_job(
        entrypoint=job.entrypoint,
        runtime_env=job.runtime_env,
        metadata=job.metadata,
        submission_id=f"{config.run_name}-{time.strftime('%Y%m%d-%H%M%S')}",
    )
    print(f"submitted {job_id}; ballast stop {job_id} ends it with a checkpoint", flush=True)
    return 0 if options.no_wait else _follow(options, job_id)


def _check_no_second_job(client: JobSubmissionClient, run_name: str, output_dir: str) -> None:
    """Raise ClusterError where another job writes to the run's folder: two would destroy it."""
    wanted = {"run_name": run_name, "output_dir": output_dir}
    for job in client.list_jobs():
        if wanted.items() <= (job.metadata or {}).items() and not job.status.is_terminal():
            raise ClusterError(
                f"run_name={run_name} is written by job {job.submission_id}, which is "
                f"{job.status.value}: ballast stop {job.submission_id}, or choose another run_name="
            )


def jobs(options: Namespace) -> int:
    """Print one line per job, the newest last."""
    found = connect(options.address).list_jobs()
    submitted = [job for job in found if job.submission_id]
    for job in sorted(submitted, key=lambda job: job.start_time or 0):
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))
        run = (job.metadata or {}).get("run_name", "-")
        print(f"{job.submission_id:<40} {job.status.value:<10} {began}  {_duration(job):>9}  {run}")
    return 0


def _duration(job: JobDetails) -> str:
    end = job.end_time / 1000 if job.end_time else time.time()
    return f"{max(0.0, end - (job.start_time or 0) / 1000):.0f} s"


def logs(options: Namespace) -> int:
    """Print a job's log up to now, or follow it to the job's end."""
    client = connect(options.address)
    _check_known(client, options.job)
    if options.follow:
        return _follow(options, options.job)
    print(client.get_job_logs(options.job), end="")
    return 0


def stop(options: Namespace) -> int:
    """Request that runs stop after their step, with a checkpoint, and wait until they have.

    Raises:
        ClusterError: no such job; a job that still runs after `options.timeout` seconds, shared by
            all jobs; or neither a job nor --all.
    """
    if options.all == (options.job is not None):
        raise ClusterError("name one job, as ballast jobs does, or give --all")
    client = connect(options.address)
    if options.all:
        wanted = [
            str(job.submission_id)
            for job in client.list_jobs()
            if job.submission_id and not job.status.is_terminal()
        ]
    else:
        _check_known(client, options.job)
        wanted = [options.job]
        if (done := read_ending(client, options.job)) is not None:
            print(f"{options.job} has ended: {done}")
            return 0
    for job_id in wanted:
        client.stop_job(job_id)
        print(f"{job_id}: asked to stop; its step ends and a checkpoint is written", flush=True)
    deadline = time.monotonic() + options.timeout
    for job_id in wanted:
        while (done := read_ending(client, job_id)) is None:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{job_id} still runs after {options.timeout:g} s: its step is long; ask for "
                    "it again with ballast jobs"
                )
            time.sleep(1.0)
        print(f"{job_id}: {done}")
    return 0


def scale(options: Namespace) -> int:
    """Request a number of engines from a submitted run, and follow the request."""
    words = ["scale", "--engines", str(options.engines), "--timeout", f"{options.timeout:g}"]
    return _run_beside(options, words, relation="scales")


def watch(options: Namespace) -> int:
    """Follow the steps of a submitted run, one line each."""
    return _run_beside(options, ["watch"], relation="watches")


def _run_beside(options: Namespace, words: Sequence[str], *, relation: str) -> int:
    """Run a command on a submitted run's folder, and follow the command's output.

    The command is a small job of its own, which runs on the cluster, where the folder is.
    """
    client = connect(options.address)
    _check_known(client, options.run)
    if (done := read_ending(client, options.run)) is not None:
        raise ClusterError(f"{options.run} has ended: {done}; submit it again with resume=auto")
    run_dir = read_run_folder(client, options.run)
    if run_dir is None:
        raise ClusterError(f"{options.run} has no run folder yet; ask again when it has begun")
    beside = client.submit_job(
        entrypoint="exec " + shlex.join(["python", "-m", "orchestrator.cli", *words, run_dir]),
        runtime_env=client.get_job_info(options.run).runtime_env,
        metadata={relation: options.run},
        submission_id=f"{words[0]}-{options.run}-{time.strftime('%Y%m%d-%H%M%S')}",
    )
    return _follow(options, beside)


def _check_known(client: JobSubmissionClient, job_id: str) -> None:
    ids = [job.submission_id for job in client.list_jobs() if job.submission_id]
    if job_id not in ids:
        raise ClusterError(f"no job {job_id!r} on this cluster; it has {', '.join(ids) or 'none'}")


def _follow(options: Namespace, job_id: str) -> int:
    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    follower = Follower(lambda: connect(options.address), job_id, write)
    try:
        done = follower.follow()
    except KeyboardInterrupt:
        print(f"\nleft {job_id}, which goes on: ballast logs {job_id} --follow", file=sys.stderr)
        return 130
    print(f"{job_id}: {done}")
    return done.exit_code
