"""Ray's errors become one error of one line, which says whether the process can still be used."""

import pytest
import ray
from ray import exceptions

from workers.failures import EngineDiedError, NoAnswerError, WorkerError, is_death, named
from workers.worker_group import Pending

LOST = exceptions.ObjectLostError("ab" * 28, None, "")
OWNER = exceptions.OwnerDiedError("ab" * 28, None, "")
MEMORY = exceptions.OutOfMemoryError("Killed, the node was running low on memory.\n\nmore")
GONE = [
    LOST,
    OWNER,
    MEMORY,
    exceptions.ActorDiedError(),
    exceptions.ActorUnavailableError("The actor is restarting", None),
    exceptions.ActorUnschedulableError("The node of the actor is gone"),
    exceptions.ActorPlacementGroupRemoved(),
    exceptions.NodeDiedError("the node died"),
    exceptions.RuntimeEnvSetupError("no such package"),
    exceptions.WorkerCrashedError(),
]
USABLE = [
    exceptions.LocalRayletDiedError(),
    exceptions.ObjectStoreFullError("full"),
    exceptions.OutOfDiskError("full"),
    exceptions.RaySystemError("gcs"),
    exceptions.RayTaskError("train", "Traceback ...", RuntimeError("out of memory")),
]


@pytest.mark.parametrize("error", [*GONE, *USABLE], ids=lambda error: type(error).__name__)
def test_every_error_of_ray_is_one_error_of_one_line(error):
    with (
        pytest.raises(WorkerError, match=r"^learner\.train, rank 3: ") as caught,
        named("learner.train, rank 3"),
    ):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)
    assert is_death(caught.value) is is_death(error) is (error in GONE)


def test_what_the_method_raised_is_told_in_its_own_words():
    error = exceptions.RayTaskError("train", "Traceback ...", KeyError("reward"))
    with (
        pytest.raises(WorkerError, match="^learner.train: KeyError: 'reward'$"),
        named("learner.train"),
    ):
        raise error


def test_an_engine_that_is_gone_counts_as_its_worker_does():
    assert is_death(exceptions.RayTaskError("collect", "...", EngineDiedError("the core is gone")))
    assert not is_death(WorkerError("said without a cause"))
    assert not is_death(None)


@pytest.fixture
def refs(monkeypatch):
    """Calls whose answer, or error, the test names; None is a call without an answer."""
    answers = {}

    def wait(waiting, *, num_returns, timeout):
        done = [ref for ref in waiting if answers[ref] is not None][:num_returns]
        return done, [ref for ref in waiting if ref not in done]

    def get(asked):
        if isinstance(asked, list):
            return [get(one) for one in asked]
        if isinstance(answers[asked], Exception):
            raise answers[asked]
        return answers[asked]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    return answers


def test_every_rank_has_its_outcome_and_those_that_live_their_answer(refs):
    refs.update({"a": 1, "b": MEMORY, "c": 3})
    pending = Pending("rollout", "version", ["a", "b", "c"], 5.0, [4, 5, 7])
    outcomes = pending.outcomes()
    assert (outcomes[4], outcomes[7]) == (1, 3)
    assert str(outcomes[5]) == (
        "rollout.version, rank 5: the process died: OutOfMemoryError: "
        "Killed, the node was running low on memory. more"
    )
    assert pending.survivors() == {4: 1, 7: 3}
    with pytest.raises(WorkerError, match="rank 5: the process died"):
        pending.result()


def test_who_does_not_answer_is_not_taken_for_dead(refs):
    refs.update({"a": 1, "b": None, "c": None})
    pending = Pending("rollout", "version", ["a", "b", "c"], 5.0)
    outcomes = pending.outcomes()
    assert outcomes[0] == 1
    assert isinstance(outcomes[1], NoAnswerError)
    assert "rollout.version: no answer from rank [2] in 5 s" in str(outcomes[2])
    with pytest.raises(NoAnswerError):
        pending.survivors()


def test_an_answer_that_is_lost_after_it_came_is_an_error_of_the_call(refs, monkeypatch):
    refs["a"] = 1

    def get(asked):
        if isinstance(asked, list):
            raise LOST
        return 1

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(WorkerError, match="learner.train: the process died: ObjectLostError"):
        Pending("learner", "train", ["a"], 5.0).result()
