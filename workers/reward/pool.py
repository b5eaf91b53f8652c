"""Score samples in a pool of killable processes, with a hard time limit for every sample.

The reward worker runs the pool. The pool moves samples to processes and outcomes back, in order; it
does not know how rewards are computed. A sample that never ends, kills its process or raises
becomes a failed outcome; the samples beside it are scored all the same. One thread per process does
the waiting, so that any event loop can await `score`.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from workers.reward.base import (
    RewardResult,
    RewardSample,
    Scorer,
    Siblings,
    failed,
    takes_batch,
    takes_group,
)
from workers.reward.process import (
    START_LIMIT_S,
    ProcessDiedError,
    SampleTimeoutError,
    ScoringProcess,
)
from workers.reward.server import ScoringServer

MAX_CHUNK = 64  # samples that wait behind one another in a process
CHUNKS_PER_PROCESS = 4  # a call's samples are cut so fine, so that a slow one holds up few others


class _Request:
    """Groups of one `score_groups` call, settled one by one from several threads."""

    def __init__(self, groups: list[Siblings]) -> None:
        self.groups = groups
        self.future: Future[list[list[RewardResult]]] = Future()
        self.future.set_running_or_notify_cancel()
        self.deaths = [0] * len(groups)
        self._results: list[list[RewardResult] | None] = [None] * len(groups)
        self._open = len(groups)
        self._lock = threading.Lock()

    def settle(self, index: int, results: list[RewardResult]) -> None:
        with self._lock:
            self._results[index] = results
            self._open -= 1
            if self._open == 0 and not self.future.done():
                self.future.set_result([r for r in self._results if r is not None])

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)


#: Groups that go to one process together, each as its request and its place among the groups of it.
_Chunk = tuple[tuple[_Request, int], ...]


class RewardPool:
    """Pool of child processes that score samples.

    Args:
        scorer: scores one sample; built, picklable, importable from another process.
        num_processes: child processes.
        timeout_s: wall-clock limit for each call of the scorer, from its start: time in the queue
            does not count. When it is over the child is killed, and the outcome is
            "failed:timeout".
        start_s: limit for the start of a child, in which the scorer prepares.
        folder: of the run, for what a scorer writes; None where it is to write nothing.
        max_memory_mib: that a child may allocate; None sets no limit.

    Attributes:
        num_settled: calls of the scorer that have ended, however they ended.

    Raises:
        ValueError: a bad count or limit, or a scorer that cannot be sent to another process.
        RuntimeError: the children cannot build the scorer.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        num_processes: int = 1,
        timeout_s: float = 10.0,
        start_s: float = START_LIMIT_S,
        folder: str | None = None,
        max_memory_mib: int | None = None,
    ) -> None:
        if num_processes < 1:
            raise ValueError(f"num_processes must be at least 1, got {num_processes}")
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise ValueError(f"timeout_s must be positive and finite, got {timeout_s}")
        self._queue: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._closed = False
        self._merges = takes_batch(scorer) and not takes_group(scorer)
        self.num_settled = 0
        self._close_lock = threading.Lock()
        pickled = _pickle(
            ScoringServer(scorer=scorer, folder=folder, max_memory_mib=max_memory_mib)
        )
        self._processes = [
            ScoringProcess(pickled, timeout_s=timeout_s, start_s=start_s)
            for _ in range(num_processes)
        ]
        self._threads: list[threading.Thread] = []
        try:
            for process in self._processes:  # all start at the same time
                process.launch()
            for process in self._processes:
                process.ensure_ready()
        except BaseException:
            for process in self._processes:
                process.kill()
            raise
        for process in self._processes:
            thread = threading.Thread(
                target=self._serve, args=(process,), name="reward-pool", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    async def score(self, samples: Sequence[RewardSample]) -> list[RewardResult]:
        """Score samples one by one over all processes; results in the order of the samples.

        Raises:
            RuntimeError: the pool is closed, or a process cannot be started again.
        """
        return [result for (result,) in await self.score_groups([(s,) for s in samples])]

    async def score_groups(self, groups: Sequence[Siblings]) -> list[list[RewardResult]]:
        """Score groups, each in one call of the scorer; a result per sample, in order.

        Raises:
            RuntimeError: the pool is closed, or a process cannot be started again.
        """
        if not groups:
            return []
        request = _Request(list(groups))
        size = min(MAX_CHUNK, math.ceil(len(groups) / self._num_pieces))
        with self._close_lock:
            if self._closed:
                raise RuntimeError("the reward pool is closed")
            for start in range(0, len(groups), size):
                indices = range(start, min(start + size, len(groups)))
                self._queue.put(tuple((request, index) for index in indices))
        return await asyncio.wrap_future(request.future)

    def close(self) -> None:
        """End every process; calls in progress raise RuntimeError. Idempotent."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        for process in self._processes:
            process.close()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _num_pieces(self) -> int:
        # One process alone gains nothing from small pieces.
        count = len(self._processes)
        return 1 if count == 1 else CHUNKS_PER_PROCESS * count

    def _serve(self, process: ScoringProcess) -> None:
        while (chunk := self._queue.get()) is not None:
            if self._closed:
                _fail_all(chunk, RuntimeError("the reward pool was closed"))
                continue
            if self._merges:
                chunk = self._with_waiting(chunk)
            try:
                rest = self._score_chunk(process, chunk)
            # The error must reach the waiting caller, whatever the error is.
            except Exception as error:
                _fail_all(chunk, error)
                process.kill()
                continue
            if rest:
                self._queue.put(rest)
        process.kill()

    def _with_waiting(self, chunk: _Chunk) -> _Chunk:
        """Add what waits in the queue, of other requests too, up to a full chunk."""
        while len(chunk) < MAX_CHUNK:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:  # the end of a thread, which is another thread's if this one goes on
                self._queue.put(None)
                break
            chunk = (*chunk, *more)
        return chunk

    def _score_chunk(self, process: ScoringProcess, chunk: _Chunk) -> _Chunk:
        """Score until done or until the process is lost; return the groups still to score."""
        process.ensure_ready()
        settled = 0
        try:
            groups = [request.groups[index] for request, index in chunk]
            if self._merges:
                process.send([tuple(sample for group in groups for sample in group)])
                results = iter(process.receive())
                for (request, index), group in zip(chunk, groups, strict=True):
                    self._settle(request, index, [next(results) for _ in group])
                return ()
            process.send(groups)
            for request, index in chunk:
                self._settle(request, index, process.receive())
                settled += 1
            return ()
        except SampleTimeoutError:
            self._fail(*chunk[settled], "timeout")
            settled += 1
        except ProcessDiedError:
            if self._closed:
                raise RuntimeError("the reward pool was closed") from None
            request, index = chunk[settled]
            request.deaths[index] += 1
            if request.deaths[index] > 1:  # the first time it may have been the machine's doing
                self._fail(request, index, "worker died")
                settled += 1
        process.kill()
        process.launch()  # it imports while the next chunk is on its way
        return chunk[settled:]

    def _settle(self, request: _Request, index: int, results: list[RewardResult]) -> None:
        with self._close_lock:
            self.num_settled += 1
        request.settle(index, results)

    def _fail(self, request: _Request, index: int, why: str) -> None:
        self._settle(request, index, [failed(why)] * len(request.groups[index]))


def _fail_all(chunk: _Chunk, error: BaseException) -> None:
    for request, _ in chunk:
        request.fail(error)


def _pickle(server: ScoringServer) -> bytes:
    scorer = server.scorer
    if not callable(scorer):
        raise ValueError(f"scorer must be callable, got {scorer!r}")
    if type(scorer).__module__ == "__main__":
        raise ValueError(
            f"scorer {scorer!r} is defined in the script that runs, which a scoring process cannot "
            "import: move it to a module, or name a function with "
            "workers.reward.scorers.function.Function"
        )
    try:
        return pickle.dumps(server)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"scorer {scorer!r} cannot be sent to a scoring process ({error}): "
            "make it a dataclass of plain values in an importable module"
        ) from error
