"""Send finished samples from a rollout worker to the reward workers, many samples in one call.

`score` is called once per sample, as soon as the sample finishes. While calls are in flight, newly
finished samples are collected and sent in one call, so the number of remote calls follows the load.
The module runs in the rollout worker and scores nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from workers.calls import bind
from workers.reward.base import RewardResult, RewardSample
from workers.reward.worker import RewardWorker
from workers.worker_group import WorkerError, WorkerGroup


class RewardClient:
    """Client of the reward workers, balanced by calls in flight, two per worker at most.

    Args:
        workers: handles of the reward workers.
        timeout_s: limit for one sample.
    """

    def __init__(self, workers: WorkerGroup[RewardWorker], *, timeout_s: float) -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._in_flight = [0] * len(workers)
        self._last_call = [0] * len(workers)  # number of the last call of each worker
        self._num_calls = 0
        self._waiting: list[tuple[RewardSample, asyncio.Future[RewardResult]]] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def score(self, sample: RewardSample) -> RewardResult:
        """Return the result of one sample; a dead or silent reward worker is a failed outcome."""
        future: asyncio.Future[RewardResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((sample, future))
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

    async def _call(
        self, worker: int, batch: list[tuple[RewardSample, asyncio.Future[RewardResult]]]
    ) -> None:
        samples = [sample for sample, _ in batch]
        futures = [future for _, future in batch]
        try:
            results = await self._results(worker, samples)
            if any(result is None for result in results):  # one retry, by another worker if any
                others = [other for other in range(len(self._workers)) if other != worker]
                results = await self._results(self._least_busy(others or [worker]), samples)
        except Exception as error:  # whatever it is, no sample may wait for ever
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        else:
            for future, result in zip(futures, results, strict=True):
                if not future.done():
                    future.set_result(result or _failure("reward worker unavailable"))
        finally:
            self._in_flight[worker] -= 1
            self._dispatch()

    async def _results(
        self, worker: int, samples: list[RewardSample]
    ) -> Sequence[RewardResult | None]:
        import ray.exceptions

        # Every sample may in turn run into its own time limit before the last is scored.
        limit_s = self._timeout_s * (len(samples) + 1) + 30.0
        self._num_calls += 1
        self._last_call[worker] = self._num_calls
        try:
            call = self._workers.send(worker, bind(RewardWorker.score, samples))
            return await asyncio.wait_for(call, limit_s)
        except (TimeoutError, WorkerError, ray.exceptions.RayError):
            return [None] * len(samples)


def _failure(why: str) -> RewardResult:
    return RewardResult(outcome=f"failed:{why}", reward=None, parts={}, seconds=0.0)
