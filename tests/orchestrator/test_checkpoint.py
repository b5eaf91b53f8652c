"""A folder with a checkpoint's name is complete; the newest are kept."""

import pytest

from orchestrator.checkpoint import CheckpointStore


def write(store, step):
    (store.begin(step) / "weights").write_text(str(step))
    return store.commit(step, version=step, ledger={"cursor": step})


def test_newest_is_found_and_old_ones_go(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (5, 10, 15):
        write(store, step)
    latest = store.latest()
    assert (latest.step, latest.version, latest.ledger) == (15, 15, {"cursor": 15})
    assert (latest.learner_dir / "weights").read_text() == "15"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step_000010",
        "step_000015",
    ]
    assert store.latest("step_000010").step == 10


def test_an_unfinished_write_is_no_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    assert store.latest() is None
    write(store, 5)
    store.begin(10)  # and the process dies here
    assert store.latest().step == 5
    write(store, 10)
    assert store.latest().step == 10


def test_a_damaged_state_names_the_file(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    path = write(store, 5)
    (path / "state.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match=r"step_000005/state.json can't be read"):
        store.latest()
