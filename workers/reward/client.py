"""Send finished samples from a rollout worker to the reward workers, many samples in one call.

`score` is called once per sample, as soon as the sample finishes, or `score_group` once for all
siblings of a prompt. While calls are in flight, what finishes is collected and sent in one call, so
the number of remote calls follows the load. A call has no time limit: samples may wait in a long
queue, and a scorer's own limit counts from the start of scoring. A worker that does not answer is
killed, and Ray starts it again; one that answers, and in which nothing ends for too long, is given
up.
The module runs in the rollout worker and scores nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from workers.calls import bind
from workers.reward.base import RewardResult, RewardSample, Siblings, failed
from workers.reward.process import START_LIMIT_S
from workers.reward.worker import RewardWorker
from workers.worker_group import WorkerError, WorkerGroup

BEATS = 4  # questions in the time that a worker may take for an answer

_Asked = tuple[Siblings, asyncio.Future[list[RewardResult]]]


class RewardClient:
    """Client of the reward workers, balanced by calls in flight, two per worker at most.

    Args:
        workers: handles of the reward workers.
        timeout_s: limit for one call of the scorer.
        start_s: limit for the start of a scoring process, which may come before the call.
        answer_s: a worker that does not say for this long how it gets on is killed; None waits as
            long as for the end of a sample.
    """

    def __init__(
        self,
        workers: WorkerGroup[RewardWorker],
        *,
        timeout_s: float,
        start_s: float = START_LIMIT_S,
        answer_s: float | None = None,
    ) -> None:
        self._workers = workers
        self._silence_s = timeout_s + start_s  # in this time a busy worker ends one call at least
        self._answer_s = self._silence_s if answer_s is None else answer_s
        self._in_flight = [0] * len(workers)
        self._last_call = [0] * len(workers)  # number of the last call of each worker
        self._num_calls = 0
        self._waiting: list[_Asked] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def score(self, sample: RewardSample) -> RewardResult:
        """Return the result of one sample; a dead or silent reward worker is a failed outcome."""
        (result,) = await self.score_group((sample,))
        return result

    async def score_group(self, siblings: Siblings) -> list[RewardResult]:
        """Return the results of samples that one call of the scorer scores, in their order."""
        future: asyncio.Future[list[RewardResult]] = asyncio.get_running_loop().create_future()
        self._waiting.append((siblings, future))
        if not self._scheduled:  # after the other samples of this event-loop turn have queued
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)
        return await future

    def _dispatch(self) -> None:
        self._scheduled = False
        worker = self._least_busy(range(len(self._workers)))
        if self._waiting and self._in_flight[worker] < 2:
            batch, self._waiting = self._waiting, []
            self._in_flight[worker] += 1
            call = asyncio.get_running_loop().create_task(self._call(worker, batch))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def _least_busy(self, workers: Iterable[int]) -> int:
        """Return the worker with the fewest calls in flight; of several the longest unused."""
        return min(workers, key=lambda worker: (self._in_flight[worker], self._last_call[worker]))

    async def _call(self, worker: int, batch: list[_Asked]) -> None:
        groups = [siblings for siblings, _ in batch]
        futures = [future for _, future in batch]
        try:
            results = await self._results(worker, groups, answer_s=self._answer_s)
            if results is None:  # one retry, by another worker if any, or by this one, anew
                others = [other for other in range(len(self._workers)) if other != worker]
                again = self._least_busy(others or [worker])
                # One that Ray starts again answers when its scoring processes may have started.
                patience_s = self._answer_s + self._silence_s
                results = await self._results(again, groups, answer_s=patience_s)
            if results is None:
                unavailable = failed("reward worker unavailable")
                results = [[unavailable] * len(siblings) for siblings in groups]
        except Exception as error:  # whatever it is, no sample may wait for ever
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        else:
            for future, result in zip(futures, results, strict=True):
                if not future.done():
                    future.set_result(result)
        finally:
            self._in_flight[worker] -= 1
            self._dispatch()

    async def _results(
        self, worker: int, groups: list[Siblings], *, answer_s: float
    ) -> Sequence[list[RewardResult]] | None:
        """Return the results of one call; None where the worker died, or was given up."""
        import ray.exceptions

        self._num_calls += 1
        self._last_call[worker] = self._num_calls
        clock = asyncio.get_running_loop().time
        settled, since = -1, clock()
        try:
            call = asyncio.ensure_future(
                self._workers.send(worker, bind(RewardWorker.score, groups))
            )
            while not (await asyncio.wait([call], timeout=self._answer_s / BEATS))[0]:
                before = settled
                settled = await self._settled_by(worker, answer_s)
                if settled != before:
                    since = clock()
                elif clock() - since > self._silence_s:
                    call.cancel()
                    return None
            return call.result()
        except (TimeoutError, WorkerError, ray.exceptions.RayError):
            return None

    async def _settled_by(self, worker: int, answer_s: float) -> int:
        """Return how many calls a worker has ended; kill a worker that does not answer.

        Raises:
            TimeoutError: it did not.
        """
        asked = self._workers.send(worker, bind(RewardWorker.num_settled))
        try:
            return await asyncio.wait_for(asked, answer_s)
        except TimeoutError:
            self._workers.kill(worker)
            raise
