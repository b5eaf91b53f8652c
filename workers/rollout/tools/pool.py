"""Call tools in a pool of killable processes, with a hard limit of time for each call.

The rollout worker owns the pool, and awaits calls in its event loop; a thread waits for each
process. A call that takes too long, or that ends its process, costs itself only: it comes back with
the reason, the process starts again, and no call is made twice.
"""

from __future__ import annotations

import asyncio
import pickle
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from workers.reward.process import KillableProcess, ProcessDiedError, SampleTimeoutError
from workers.rollout.tools.content import Content, from_json
from workers.rollout.tools.server import ERROR, ToolServer


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    r"""Result of one call.

    Example, calculate("3+4"):
        ToolResult(status="ok", text="7")

    Example, a tool that returned a picture:
        ToolResult(status="ok", content=("the left half:", b"\x89PNG..."))

    Example, a tool that never ended:
        ToolResult(status="error", text="the call took longer than 10 s")

    Attributes:
        status: "ok"; "wrong" where the arguments do not fit; "error" where the tool raised, took
            too long, or ended its process.
        text: the value, or the reason.
        content: texts and image files of a value that shows an image, whose `text` is empty.
    """

    status: str
    text: str = ""
    content: Content = ()


class ToolProcess(KillableProcess):
    """A killable process that calls tools."""

    kind = "tool"
    served = "a tool"


class ToolPool:
    """Pool of processes, each of which holds all tools.

    Args:
        server: the tools; picklable, importable from another process.
        num_processes: calls that run at a time.
        timeout_s: wall-clock limit of each call, from its start: time in the queue does not count.

    Attributes:
        schemas: JSON schema of each tool.

    Raises:
        ValueError: tools that cannot be sent to another process.
        RuntimeError: the processes cannot build the tools.
    """

    def __init__(self, server: ToolServer, *, num_processes: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        pickled = _pickle(server)
        self._processes = [ToolProcess(pickled, timeout_s=timeout_s) for _ in range(num_processes)]
        self._idle: queue.SimpleQueue[ToolProcess] = queue.SimpleQueue()
        try:
            for process in self._processes:  # all start at the same time
                process.launch()
            for process in self._processes:
                process.ensure_ready()
                self._idle.put(process)
        except BaseException:
            self._kill_all()
            raise
        self.schemas: Sequence[Mapping[str, Any]] = self._processes[0].described
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="tool-pool")

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool in the next free process.

        Raises:
            RuntimeError: the pool is closed, or a process cannot be started again.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._call, name, dict(arguments))

    def close(self) -> None:
        """End every process. Idempotent."""
        for process in self._processes:
            process.close()
        self._threads.shutdown(cancel_futures=True)
        self._kill_all()

    def _call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        process = self._idle.get()  # there are as many threads as processes
        try:
            process.ensure_ready()
            process.send_items([(name, arguments)])
            status, found = process.receive_answer()
            if isinstance(found, str):
                return ToolResult(status=status, text=found)
            return ToolResult(status=status, content=from_json(found))
        except SampleTimeoutError:
            process.kill()
            process.launch()  # it imports while nobody waits for it
            why = f"the call took longer than {self._timeout_s:g} s"
            return ToolResult(status=ERROR, text=why)
        except ProcessDiedError:
            process.kill()
            process.launch()
            return ToolResult(status=ERROR, text="the call ended the process of the tools")
        finally:
            self._idle.put(process)

    def _kill_all(self) -> None:
        for process in self._processes:
            process.kill()


def _pickle(server: ToolServer) -> bytes:
    try:
        return pickle.dumps(server)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the tools {sorted(server.toolsets)} cannot be sent to another process ({error}): "
            "make each a dataclass of plain values in an importable module"
        ) from error
