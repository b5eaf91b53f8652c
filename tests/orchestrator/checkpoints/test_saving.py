"""A checkpoint is taken at once, written meanwhile, and complete once all have written."""

import pytest

from conf.schema import TrainerConfig
from orchestrator.checkpoints.checkpoint import CheckpointStore
from orchestrator.checkpoints.saving import CheckpointError, Saver
from workers.data.durable_files import write_file
from workers.data.random_state import RandomGenerators


class Counter:
    """A part with one number."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class SlowDisk:
    """A keeper whose file is written when the test says so."""

    def __init__(self):
        self.value, self.loaded, self.fault = 0, None, None
        self.written = None

    def begin_save(self, folder):
        self.copy, self.folder, self.written = self.value, folder, None

    def write(self):
        self.written = [write_file(self.folder / "value", [str(self.copy).encode()])]

    def saved(self, *, wait):
        if self.fault is not None:
            raise self.fault
        if wait and self.written is None:
            self.write()
        return self.written

    def load(self, folder):
        self.loaded = int((folder / "value").read_text())


@pytest.fixture
def parts():
    return Counter(), SlowDisk()


def saver_of(folder, counter, disk, **more):
    store = CheckpointStore(folder, TrainerConfig(keep_checkpoints=0))
    return store, Saver(store, parts={"counter": counter}, keepers={"learner": disk}, **more)


def test_what_is_saved_is_the_state_when_it_began(tmp_path, parts):
    counter, disk = parts
    flushed = []
    store, saver = saver_of(tmp_path, counter, disk, before_commit=lambda: flushed.append(1))
    counter.value = disk.value = 7
    saver.begin(1, version=1, score=0.5)
    counter.value = disk.value = 8  # the next step
    assert saver.poll() == {}
    assert store.latest() is None
    assert flushed == []
    disk.write()
    assert saver.poll()["checkpoint/bytes"] == 1
    assert flushed == [1]
    assert saver.poll() == {}
    checkpoint = store.latest()
    assert (checkpoint.step, checkpoint.version, checkpoint.score) == (1, 1, 0.5)
    saver.restore(checkpoint)
    assert (counter.value, disk.loaded) == (7, 7)


def test_a_step_that_is_saved_again_without_a_score_stays_the_best(tmp_path, parts):
    """After a failure the last step is saved once more, when nobody measures its score again."""
    counter, disk = parts
    store = CheckpointStore(tmp_path, TrainerConfig(keep_checkpoints=1, keep_best=1))
    saver = Saver(store, parts={"counter": counter}, keepers={"learner": disk})
    for step, score in ((1, 0.9), (1, None), (2, 0.1)):
        disk.value = step
        saver.begin(step, version=step, score=score)
    saver.finish()
    assert store.latest("best").step == 1
    assert store.latest("best").score == 0.9


def test_at_most_one_is_in_the_making(tmp_path, parts):
    counter, disk = parts
    store, saver = saver_of(tmp_path, counter, disk)
    for step in (1, 2):
        disk.value = step
        saver.begin(step, version=step, score=None)
    assert store.latest().step == 1  # the second waited for it
    saver.finish()
    saver.restore(store.latest())
    assert disk.loaded == 2
    assert saver.finish() == {}


def test_a_write_that_fails_ends_with_one_message_and_leaves_the_last_one(tmp_path, parts):
    counter, disk = parts
    store, saver = saver_of(tmp_path, counter, disk)
    saver.begin(1, version=1, score=None)
    saver.finish()
    saver.begin(2, version=2, score=None)
    disk.fault = OSError(28, "No space left on device")
    with pytest.raises(CheckpointError, match="step 2 could not be written.*No space left") as said:
        saver.poll()
    assert "step_000001 is the last one" in str(said.value)
    assert "resume=auto" in str(said.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]
    assert saver.poll() == {}  # it does not fail twice
    saver.finish_quietly()
    assert store.latest().step == 1


def test_a_failure_elsewhere_still_completes_what_was_begun(tmp_path, parts):
    counter, disk = parts
    store, saver = saver_of(tmp_path, counter, disk)
    saver.begin(1, version=1, score=None)
    saver.finish_quietly()
    assert store.latest().step == 1


def test_a_part_that_was_not_saved_is_named(tmp_path, parts):
    counter, disk = parts
    store, saver = saver_of(tmp_path, counter, disk)
    saver.begin(1, version=1, score=None)
    saver.finish()
    other = Saver(store, parts={"coefficients": counter}, keepers={})
    with pytest.raises(ValueError, match="has no state of the coefficients"):
        other.restore(store.latest())
    other = Saver(store, parts={}, keepers={"critic": disk})
    with pytest.raises(ValueError, match="has no critic/"):
        other.restore(store.latest())


def test_random_generators_go_back_to_where_they_were():
    import json
    import random

    import numpy as np
    import torch

    def draw():
        return random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))  # noqa: NPY002

    draw()  # numpy and Python keep the second of a pair of normal numbers
    generators = RandomGenerators()
    state = json.loads(json.dumps(generators.state_dict()))
    want = [draw() for _ in range(3)]
    generators.load_state_dict(state)
    assert [draw() for _ in range(3)] == want
