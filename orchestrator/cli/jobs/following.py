"""Follow a job to its end: print its log while it is written, over connections that may break.

The log is printed once: after a lost connection the part that was printed already is skipped. Runs
in the process of the command, on the user's machine. To leave does not stop the job.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import requests
from ray.job_submission import JobStatus, JobSubmissionClient

from orchestrator.cli.jobs.client import ClusterError
from orchestrator.stop import EXIT_CODE as STOPPED_EXIT_CODE

RETRY_S = 1.0
LOST = (
    ClusterError,  # the cluster was there when we began
    ConnectionError,
    TimeoutError,
    aiohttp.ClientError,
    requests.RequestException,
)
# Ray has no class for these: a job server that breaks, or ends while a log is read.
LOST_WORDS = re.compile(r"^(Request failed with status code 5|WebSocket )")
RUN_FOLDER = re.compile(r"^run folder\s+(\S.*)$", re.MULTILINE)


class OutputClosedError(RuntimeError):
    """End of the output to which a log is written, such as a pipe to `head`."""


class LostError(RuntimeError):
    """Lack of an answer from the cluster for longer than the limit."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """End of a job.

    Attributes:
        status: SUCCEEDED, FAILED or STOPPED.
        exit_code: of the command, as a shell would return it.
        run_dir: the run's folder on the cluster; None where the job ended before it had one.
        message: Ray's message about a job that did not run.
    """

    status: str
    exit_code: int
    run_dir: str | None
    message: str

    def __str__(self) -> str:
        folder = f", run folder {self.run_dir}" if self.run_dir else ""
        why = f": {self.message}" if self.message and self.status == "FAILED" else ""
        return f"{self.status}, exit code {self.exit_code}{folder}{why}"


class Follower:
    """Follower of one job's log, which prints the log once although connections break.

    Args:
        connect: makes a client; called again after every loss.
        job_id: the submission's id.
        write: takes each new part of the log.
        max_outage_s: longest time, in seconds, for which the cluster may be out of reach.
    """

    def __init__(
        self,
        connect: Callable[[], JobSubmissionClient],
        job_id: str,
        write: Callable[[str], Any],
        *,
        max_outage_s: float = 300.0,
    ) -> None:
        self._connect, self._job_id, self._write = connect, job_id, write
        self._max_outage_s = max_outage_s
        self._printed = 0  # characters

    def follow(self) -> Ending:
        """Print the log until the job ends; return its end.

        Raises:
            LostError: the cluster is out of reach for longer than `max_outage_s`.
            OutputClosedError: the log can't be written any more.
            RuntimeError: any other answer of the cluster, such as that it knows no such job.
        """
        last_seen = time.monotonic()
        while True:
            try:
                client = self._connect()
                last_seen = time.monotonic()
                asyncio.run(self._tail(client))
                last_seen = time.monotonic()
                if (ending := self._ending(client)) is not None:
                    return ending
            except LOST as error:
                self._raise_if_lost(last_seen, error)
            except RuntimeError as error:
                if not LOST_WORDS.match(str(error)):
                    raise
                self._raise_if_lost(last_seen, error)
            time.sleep(RETRY_S)

    def _raise_if_lost(self, last_seen: float, error: Exception) -> None:
        if time.monotonic() - last_seen > self._max_outage_s:
            raise LostError(
                f"lost the cluster for {self._max_outage_s:g} s ({error}); the job may still run: "
                f"ballast logs {self._job_id} --follow"
            ) from error

    async def _tail(self, client: JobSubmissionClient) -> None:
        seen = 0
        async for text in client.tail_job_logs(self._job_id):
            fresh = text[max(0, self._printed - seen) :]
            seen += len(text)
            if fresh:
                try:
                    self._write(fresh)
                except OSError as error:
                    raise OutputClosedError(f"the log can't be written: {error}") from error
                self._printed = max(self._printed, seen)

    def _ending(self, client: JobSubmissionClient) -> Ending | None:
        return read_ending(client, self._job_id)


def read_ending(client: JobSubmissionClient, job_id: str) -> Ending | None:
    """Return the end of the job, or None while it goes on."""
    details = client.get_job_info(job_id)
    status = details.status
    if not status.is_terminal():
        return None
    if status == JobStatus.SUCCEEDED:
        code = 0
    elif status == JobStatus.STOPPED:
        code = STOPPED_EXIT_CODE
    else:
        code = details.driver_exit_code or 1
        code = code if code > 0 else 128 - code  # killed by a signal
    return Ending(
        status=str(status.value),
        exit_code=code,
        run_dir=read_run_folder(client, job_id),
        message=(details.message or "").strip().replace("\n", " "),
    )


def read_run_folder(client: JobSubmissionClient, job_id: str) -> str | None:
    """Return the run's folder on the cluster; None until the job has printed its path."""
    folders = RUN_FOLDER.findall(client.get_job_logs(job_id))
    return str(folders[-1]) if folders else None
