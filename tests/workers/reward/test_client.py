"""Samples that finish together travel together; a dead worker costs one retry, then an outcome."""

import asyncio
from types import SimpleNamespace

import ray.exceptions

from workers.reward.base import RewardResult, RewardSample
from workers.reward.client import RewardClient
from workers.worker_group import WorkerGroup


class Worker:
    """A reward worker that scores with the response as a number, when it is let."""

    def __init__(self, *, deaths=0):
        self.calls, self.deaths, self.open = [], deaths, asyncio.Event()
        self.open.set()
        self.score = SimpleNamespace(remote=self._score)
        self.num_settled = SimpleNamespace(remote=self._num_settled)
        self.settled = iter([0] * 99)

    async def _score(self, groups):
        samples = [sample for group in groups for sample in group]
        self.calls.append([sample.response for sample in samples])
        await self.open.wait()
        if self.deaths:
            self.deaths -= 1
            raise ray.exceptions.ActorDiedError
        return [
            [RewardResult(outcome="scored", reward=float(s.response)) for s in group]
            for group in groups
        ]

    async def _num_settled(self):
        return next(self.settled)


def sample(number):
    return RewardSample(prompt="", response=str(number))


async def scored(client, numbers):
    return await asyncio.gather(*(client.score(sample(number)) for number in numbers))


def test_samples_of_one_turn_are_one_call_and_keep_their_order():
    async def run():
        worker = Worker()
        results = await scored(
            RewardClient(WorkerGroup("reward", [worker]), timeout_s=1.0), [3, 1, 2]
        )
        return worker.calls, [result.reward for result in results]

    assert asyncio.run(run()) == ([["3", "1", "2"]], [3.0, 1.0, 2.0])


def test_what_finishes_while_two_calls_are_in_flight_waits_for_the_first_answer():
    async def run():
        worker = Worker()
        worker.open.clear()
        client = RewardClient(WorkerGroup("reward", [worker]), timeout_s=1.0)
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(client.score(sample(number))))
            await asyncio.sleep(0.01)
        before = list(worker.calls)
        worker.open.set()
        await asyncio.gather(*tasks)
        return before, worker.calls

    before, after = asyncio.run(run())
    assert before == [["0"], ["1"]]
    assert after == [["0"], ["1"], ["2", "3", "4"]]


def test_the_worker_with_fewer_calls_is_next():
    async def run():
        one, other = Worker(), Worker()
        one.open.clear()
        client = RewardClient(WorkerGroup("reward", [one, other]), timeout_s=1.0)
        held = asyncio.create_task(client.score(sample(0)))
        await asyncio.sleep(0.01)
        await scored(client, [1, 2])
        one.open.set()
        await held
        return one.calls, other.calls

    assert asyncio.run(run()) == ([["0"]], [["1", "2"]])


def test_a_worker_that_dies_is_asked_once_more():
    async def run(deaths):
        worker = Worker(deaths=deaths)
        results = await scored(RewardClient(WorkerGroup("reward", [worker]), timeout_s=1.0), [4])
        return len(worker.calls), results[0].outcome, results[0].reward

    assert asyncio.run(run(1)) == (2, "scored", 4.0)
    assert asyncio.run(run(2)) == (2, "failed:reward worker unavailable", None)


def test_samples_that_finish_one_by_one_are_spread_over_all_workers():
    async def run():
        workers = [Worker() for _ in range(4)]
        client = RewardClient(WorkerGroup("reward", workers), timeout_s=1.0)
        for number in range(8):
            await client.score(sample(number))
        return [len(worker.calls) for worker in workers]

    assert asyncio.run(run()) == [2, 2, 2, 2]


def test_the_retry_goes_to_another_worker():
    async def run():
        dying, other = Worker(deaths=9), Worker()
        client = RewardClient(WorkerGroup("reward", [dying, other]), timeout_s=1.0)
        results = await scored(client, [4])
        return len(dying.calls), len(other.calls), results[0].reward

    assert asyncio.run(run()) == (1, 1, 4.0)


def test_an_error_of_another_kind_reaches_every_sample_and_leaves_none_waiting():
    class Broken(Worker):
        async def _score(self, groups):
            raise KeyError("a fault of our own")

    async def run():
        client = RewardClient(WorkerGroup("reward", [Broken()]), timeout_s=1.0)
        asked = [client.score(sample(number)) for number in range(2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    errors = asyncio.run(asyncio.wait_for(run(), 10))
    assert [type(error) for error in errors] == [KeyError, KeyError]


def test_a_long_queue_is_waited_for_as_long_as_the_worker_ends_samples():
    """Ten times the limit pass before the answer; in each of them the worker ended a sample."""

    async def run():
        worker = Worker()
        worker.open.clear()
        worker.settled = iter(range(99))
        group = WorkerGroup("reward", [worker])
        client = RewardClient(group, timeout_s=0.01, start_s=0.01)
        asked = asyncio.create_task(client.score(sample(4)))
        await asyncio.sleep(0.2)
        worker.open.set()
        return (await asked).reward, worker.calls

    assert asyncio.run(run()) == (4.0, [["4"]])


def test_a_worker_in_which_nothing_ends_is_given_up():
    async def run():
        silent, other = Worker(), Worker()
        silent.open.clear()
        client = RewardClient(WorkerGroup("reward", [silent, other]), timeout_s=0.01, start_s=0.01)
        return (await client.score(sample(4))).reward, len(silent.calls), len(other.calls)

    assert asyncio.run(asyncio.wait_for(run(), 10)) == (4.0, 1, 1)


def test_a_worker_that_does_not_answer_is_killed_and_asked_again_when_it_is_back(monkeypatch):
    """As after SIGSTOP; a single worker stayed silent until the run had no sample left."""
    killed = []

    async def run():
        worker = Worker()
        worker.open.clear()
        silent = asyncio.Event()  # set where Ray has started the process again

        async def answers():
            await silent.wait()
            return 0

        def kill(handle, *, no_restart):
            killed.append((handle is worker, no_restart))
            worker.deaths = 1  # Ray fails the call that the process had not answered
            worker.open.set()
            silent.set()

        worker.num_settled.remote = answers
        monkeypatch.setattr("ray.kill", kill)
        group = WorkerGroup("reward", [worker])
        client = RewardClient(group, timeout_s=60.0, start_s=60.0, answer_s=0.05)
        first = asyncio.create_task(client.score(sample(4)))
        while not killed:
            await asyncio.sleep(0.01)
        worker.deaths = 0
        return (await first).reward, len(worker.calls)

    assert asyncio.run(asyncio.wait_for(run(), 10)) == (4.0, 2)
    assert killed == [(True, False)]


def test_siblings_are_one_unit_of_a_call():
    async def run():
        worker = Worker()
        client = RewardClient(WorkerGroup("reward", [worker]), timeout_s=1.0)
        results = await client.score_group((sample(3), sample(1)))
        return [result.reward for result in results], worker.calls

    assert asyncio.run(run()) == ([3.0, 1.0], [["3", "1"]])
