"""What the pool does with answers of engines that fail, with small fakes in place of Ray."""

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
)

from orchestrator.fleet.health import Health
from orchestrator.fleet.pool import RolloutPool
from workers.data.requests import Collected, EngineLoad, GroupRequest, Sampling
from workers.data.trajectory import TrajectoryMeta
from workers.failures import EngineDiedError, WorkerError


def request(name):
    return GroupRequest(
        group_id=name,
        prompt_uid=name,
        begun_version=0,
        dataset="none",
        prompt="?",
        ground_truth=None,
        num_samples=1,
        seed=0,
        sampling=Sampling(),
    )


def meta(group_id):
    return TrajectoryMeta(
        prompt_uid=group_id,
        group_id=group_id,
        rollout_id=group_id,
        num_tokens=8,
        num_trained=4,
        num_sampled=4,
        finish_reason="stop",
        outcome="scored",
        reward=1.0,
        reward_parts={},
        min_version=0,
        max_version=0,
        generate_s=0.0,
        reward_s=0.0,
    )


class Engines:
    """Engines whose `collect` answers, or raises, what the test says next."""

    def __init__(self, count=2):
        self.ranks = list(range(count))
        self.says, self.calls, self.submitted, self.killed = {}, {}, {}, []

    def __len__(self):
        return len(self.ranks)

    def send(self, number, call):
        if call.method == "submit":
            groups = [request.group_id for request in call.args[0]]
            self.submitted.setdefault(number, []).extend(groups)

    def keep(self, batch):
        """Begin to copy a batch; the test says of `copies` how it ends."""
        ref = object()
        self.calls[ref] = "copies"
        return f"copy of {batch}", ref

    def send_pair(self, number, call):
        ref = object()
        self.calls[ref] = number
        return ref, f"batch of {number}"

    def ready(self, refs, *, timeout_s):
        return [ref for ref in refs if self.calls[ref] in self.says]

    def answer(self, ref):
        said = self.says.pop(self.calls.pop(ref))
        if isinstance(said, Exception):
            raise said
        if said is None:
            return None
        return Collected(metas=[meta(name) for name in said], load=EngineLoad())

    def kill(self, number):
        self.killed.append(number)


@pytest.fixture
def engines():
    return Engines()


@pytest.fixture
def pool(engines):
    pool = RolloutPool(engines, silence_s=60, together=False)
    pool.maintain = lambda: None
    pool.submit([request("a"), request("b")])
    return pool


FAULT = RayTaskError("collect", "...", RuntimeError("64 unusable answers in a row"))


def names(groups):
    return [group.group_id for group in groups]


def test_a_failure_is_raised_where_somebody_waits_and_not_while_a_run_saves(engines, pool):
    engines.says = {0: FAULT, 1: ["b"]}
    assert names(pool.poll(wait=False)) == ["b"]
    with pytest.raises(WorkerError, match="rollout.collect, engine 0: RuntimeError: 64 unusable"):
        pool.poll()


@pytest.mark.parametrize(
    ("error", "may_live"),
    [
        (ActorDiedError(), False),
        (RayTaskError("collect", "...", EngineDiedError("the core is gone")), False),
        (ActorUnavailableError("no connection", None), True),
        (ObjectLostError("ab" * 28, None, ""), True),
        (OutOfMemoryError("killed"), True),
    ],
)
def test_the_groups_of_an_engine_that_is_gone_go_to_another(engines, pool, error, may_live):
    """One that may live is ended first, so that it is not started beside itself."""
    engines.says = {0: error}
    assert pool.poll() == []
    assert pool.engines[0].health is Health.DEAD
    assert engines.submitted == {0: ["a"], 1: ["b", "a"]}
    assert engines.killed == ([0] if may_live else [])


@pytest.fixture
def keeping(engines):
    pool = RolloutPool(engines, silence_s=60, together=False, keep=engines.keep)
    pool.maintain = lambda: None
    pool.submit([request("a"), request("b")])
    return pool


def test_a_group_is_finished_when_it_lies_where_the_loss_of_a_node_cannot_reach_it(
    engines, keeping
):
    engines.says = {0: ["a"]}
    assert keeping.poll() == []
    assert keeping.num_in_flight == 2
    engines.says = {"copies": None}
    (group,) = keeping.poll()
    assert (group.group_id, group.batch) == ("a", "copy of batch of 0")
    assert keeping.num_in_flight == 1


def test_a_group_that_was_lost_with_its_node_is_sampled_again(engines, keeping):
    engines.says = {0: ["a"]}
    keeping.poll()
    engines.says = {"copies": RayTaskError("copy", "...", ObjectLostError("ab" * 28, None, ""))}
    assert keeping.poll() == []
    assert sorted(engines.submitted[0] + engines.submitted[1]) == ["a", "a", "b"]
    assert keeping.metrics()["rollout/groups_resampled"] == 1


def test_a_group_whose_copy_hangs_is_sampled_again(engines):
    now = [0.0]
    pool = RolloutPool(
        engines, silence_s=60, together=False, keep=engines.keep, clock=lambda: now[0]
    )
    pool.maintain = lambda: None
    pool.submit([request("a"), request("b")])
    engines.says = {0: ["a"]}
    assert pool.poll() == []
    engines.says = {}
    for now[0] in (30.0, 59.0):
        for engine in pool.engines.values():
            engine.answered = now[0]
        assert pool.poll(wait=False) == []
        assert pool.metrics()["rollout/groups_resampled"] == 0
    now[0] = 61.0
    assert pool.poll(wait=False) == []
    assert sorted(engines.submitted[0] + engines.submitted[1]) == ["a", "a", "b"]
    assert pool.num_in_flight == 2


def test_a_group_whose_engine_dies_while_it_is_copied_is_finished_once(engines, keeping):
    engines.says = {0: ["a"]}
    keeping.poll()
    engines.says = {0: ActorDiedError()}
    assert keeping.poll() == []
    assert engines.submitted[1] == ["b", "a"]
    engines.says = {"copies": None}
    assert names(keeping.poll()) == ["a"]
    engines.says = {1: ["b", "a"]}
    keeping.poll()
    engines.says = {"copies": None}
    assert names(keeping.poll()) == ["b"]


def test_groups_set_aside_are_not_polled_and_can_still_be_waited_for(engines, pool):
    pool.submit([request("eval-1"), request("eval-2")])
    pool.set_aside(["eval-1", "eval-2"])
    engines.says = {0: ["a", "eval-1"]}
    assert names(pool.poll()) == ["a"]
    assert names(pool.take_aside()) == ["eval-1"]
    assert pool.take_aside() == []
    engines.says = {1: ["eval-2", "b"]}
    assert names(pool.wait(["eval-2"])) == ["eval-2"]
    assert names(pool.poll()) == ["b"]
