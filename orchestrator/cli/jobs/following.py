"""Following a job to its end: its log as it is written, over connections that come and go.

The log is printed once: after a connection is lost, what was printed already is skipped. To leave
does not stop the job.
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

from orchestrator.stop import EXIT_CODE as STOPPED_EXIT_CODE

RETRY_S = 1.0
LOST = (ConnectionError, RuntimeError, OSError, aiohttp.ClientError, requests.RequestException)
RUN_FOLDER = re.compile(r"^run folder\s+(\S.*)$", re.MULTILINE)


class LostError(RuntimeError):
    """The cluster did not answer for as long as we were told to wait."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended.

    Attributes:
        status: SUCCEEDED, FAILED or STOPPED.
        exit_code: of the command, as the shell would have it.
        run_dir: the run's folder on the cluster, if it came to that.
        message: Ray's word on a job that did not run.
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
    """One job's log, printed once, whatever the connection does.

    Args:
        connect: makes a client; called again after every loss.
        job_id: the submission's id.
        write: takes text as it comes.
        patience_s: how long a cluster may be out of reach.
    """

    def __init__(
        self,
        connect: Callable[[], JobSubmissionClient],
        job_id: str,
        write: Callable[[str], Any],
        *,
        patience_s: float = 300.0,
    ) -> None:
        self._connect, self._job_id, self._write = connect, job_id, write
        self._patience_s = patience_s
        self._printed = 0  # characters

    def follow(self) -> Ending:
        """Print until the job ends.

        Raises:
            LostError: when the cluster stays away longer than `patience_s`.
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
                self._give_up_after(last_seen, error)
            except ValueError as error:  # ClusterError: it was there when we began
                self._give_up_after(last_seen, error)
            time.sleep(RETRY_S)

    def _give_up_after(self, last_seen: float, error: Exception) -> None:
        if time.monotonic() - last_seen > self._patience_s:
            raise LostError(
                f"lost the cluster for {self._patience_s:g} s ({error}); the job may still run: "
                f"ballast logs {self._job_id} --follow"
            ) from error

    async def _tail(self, client: JobSubmissionClient) -> None:
        seen = 0
        async for text in client.tail_job_logs(self._job_id):
            fresh = text[max(0, self._printed - seen) :]
            seen += len(text)
            if fresh:
                self._write(fresh)
                self._printed = max(self._printed, seen)

    def _ending(self, client: JobSubmissionClient) -> Ending | None:
        return ending(client, self._job_id)


def ending(client: JobSubmissionClient, job_id: str) -> Ending | None:
    """How the job ended; None while it has not."""
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
        run_dir=folder_of(client, job_id),
        message=(details.message or "").strip().replace("\n", " "),
    )


def folder_of(client: JobSubmissionClient, job_id: str) -> str | None:
    """The run's folder on the cluster, once the job has said where it is."""
    folders = RUN_FOLDER.findall(client.get_job_logs(job_id))
    return str(folders[-1]) if folders else None
