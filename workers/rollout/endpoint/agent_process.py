"""Start one agent from the rollout worker, wait for its end, and end it when nobody waits any more.

A keeper process (`keeper.py`) watches the agent; this module sends it the job and reads its report.
The event loop does nothing but wait: files and processes are made in threads, and the agent's
output stays with the keeper. An agent sees the variables that it is given and a few of the
system's, not those of the worker, which may hold secrets. Nothing is decided here about rewards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.rollout.endpoint import keeper

TAIL_BYTES = 2000  # of the output of an agent that failed
RESULT_BYTES = 1 << 16
END_GRACE_S = 5.0  # beyond the time in which a keeper ends what an agent started
# Of their own, so that starts and ends of agents don't wait for what environments do in threads.
_THREADS = ThreadPoolExecutor(max_workers=16, thread_name_prefix="agents")
INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True, kw_only=True)
class AgentJob:
    """Job of one agent.

    Example:
        AgentJob(
            command=("python", "-m", "my_agent"),
            variables={"OPENAI_API_KEY": "secret"},
            task={"uid": "train:7", "prompt": "2+3=", "ground_truth": "5", "columns": {}},
        )

    Attributes:
        command: program and arguments.
        variables: environment variables beside `INHERITED`, `BALLAST_TASK` and `BALLAST_RESULT`.
        task: written as JSON to the file that `BALLAST_TASK` names.
    """

    command: Sequence[str]
    variables: Mapping[str, str]
    task: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AgentExit:
    """End of one agent.

    Example, of an agent that wrote a result:
        AgentExit(code=0, seconds=1.3, tail="", result='{"reward": 1.0}')

    Attributes:
        code: exit code; minus the number of a signal; None where it never ran or was ended.
        seconds: from start to end.
        tail: last part of its output, standard error included.
        result: text of the file that `BALLAST_RESULT` names; None where there is none.
    """

    code: int | None
    seconds: float
    tail: str
    result: str | None


class KeeperDiedError(RuntimeError):
    """Keeper that ended without a report."""


class AgentProcess:
    """Agent that runs.

    Attributes:
        exited: task that returns the agent's `AgentExit`, or raises `KeeperDiedError`.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.exited = asyncio.get_running_loop().create_task(_exit_of(process))

    async def end(self) -> AgentExit:
        """End the agent and all that it started; return its end."""
        _order_end(self._process)
        return await asyncio.shield(self.exited)


@asynccontextmanager
async def running_agent(job: AgentJob) -> AsyncIterator[AgentProcess]:
    """Run an agent inside the block; behind the block nothing of the agent runs any more."""
    loop = asyncio.get_running_loop()
    started = loop.run_in_executor(_THREADS, _start, job)
    try:
        process, _ = await asyncio.shield(started)
        yield AgentProcess(process)
    finally:
        process, folder = await started
        await asyncio.shield(loop.run_in_executor(_THREADS, _finish, process, folder))


def _start(job: AgentJob) -> tuple[subprocess.Popen[bytes], Path]:
    """Make the agent's folder and start its keeper."""
    folder = Path(tempfile.mkdtemp(prefix="ballast-agent-"))
    task, result = folder / "task.json", folder / "result.json"
    task.write_text(json.dumps(job.task, default=str))
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    line = {
        "command": list(job.command),
        "variables": {
            **inherited,
            **job.variables,
            "BALLAST_TASK": str(task),
            "BALLAST_RESULT": str(result),
        },
        "folder": str(folder),
        "result": str(result),
        "tail_bytes": TAIL_BYTES,
        "result_bytes": RESULT_BYTES,
    }
    # -I and -S: the script needs nothing but the standard library, and starts in 15 ms.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", keeper.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=inherited,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(line).encode() + b"\n")
    process.stdin.flush()
    return process, folder


def _finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End the agent, if it still runs, and its keeper; remove its folder."""
    _order_end(process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(keeper.END_LIMIT_S + END_GRACE_S)
    process.kill()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _order_end(process: subprocess.Popen[bytes]) -> None:
    """Close the keeper's stdin, which the keeper takes as the order to end the agent."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


async def _exit_of(process: subprocess.Popen[bytes]) -> AgentExit:
    """Read all that a keeper writes until it ends: one report."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    try:
        report = await reader.read()
    finally:
        transport.close()
    if not report:
        raise KeeperDiedError("the process that watches the agent was killed")
    return AgentExit(**json.loads(report))
