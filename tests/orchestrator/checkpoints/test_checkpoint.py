"""A folder with a checkpoint's name is complete and verified; the newest and the best are kept."""

import json
import os
import resource

import pytest

from conf.schema import TrainerConfig
from orchestrator.checkpoints.checkpoint import CheckpointStore
from workers.data.durable_files import write_file


def store_of(folder, **settings):
    return CheckpointStore(folder, TrainerConfig(**settings))


def write(store, step, score=None, weights=None):
    draft = store.begin(step)
    record = write_file(draft.folder("learner") / "weights", [weights or str(step).encode()])
    state = {"step": step, "version": step, "score": score, "folders": ["learner"]}
    parts = {"ledger": {"cursor": step}}
    draft.seal({**state, "parts": parts}, [record.within("learner")])
    return store.commit(draft)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_newest_is_found_and_old_ones_go(tmp_path):
    store = store_of(tmp_path, keep_checkpoints=2)
    for step in (5, 10, 15):
        write(store, step)
    latest = store.latest()
    assert (latest.step, latest.version, latest.score) == (15, 15, None)
    assert latest.parts == {"ledger": {"cursor": 15}}
    assert (latest.folder("learner") / "weights").read_text() == "15"
    assert names(tmp_path) == ["step_000010", "step_000015"]
    assert store.latest("step_000010").step == 10
    with pytest.raises(ValueError, match="has no critic/: it was saved without that role"):
        latest.folder("critic")


@pytest.mark.parametrize(
    ("best_is", "kept", "best"),
    [("max", [20, 30, 40], 20), ("min", [10, 30, 40], 10)],
)
def test_the_best_one_stays_and_is_marked(tmp_path, best_is, kept, best):
    store = store_of(tmp_path, keep_checkpoints=2, keep_best=1, best_is=best_is)
    for step, score in ((10, 0.2), (20, 0.9), (30, 0.9 if best_is == "min" else 0.5), (40, None)):
        write(store, step, score)
    assert names(tmp_path) == ["best", *(f"step_{step:06d}" for step in kept)]
    assert os.readlink(tmp_path / "checkpoints" / "best") == f"step_{best:06d}"
    assert store.latest("best").step == best
    assert store.latest().step == 40


def test_of_equal_scores_the_newest_is_best_and_zero_keeps_all(tmp_path):
    store = store_of(tmp_path, keep_checkpoints=0)
    for step in (1, 2, 3):
        write(store, step, 1.0)
    assert store.latest("best").step == 3
    assert names(tmp_path)[1:] == ["step_000001", "step_000002", "step_000003"]


def test_an_unfinished_write_is_no_checkpoint(tmp_path):
    store = store_of(tmp_path)
    assert store.latest() is None
    write(store, 5)
    store.begin(10).folder("learner")  # and the process dies here
    (tmp_path / "checkpoints" / "step_000004.removed").mkdir()  # or while it removes
    assert store.latest().step == 5
    write(store, 15)
    assert names(tmp_path) == ["step_000005", "step_000015"]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("learner/weights", lambda data: data[:-1], "weights has 4095 bytes, 4096 were written"),
        ("learner/weights", lambda data: b"x" + data[1:], "weights is not what was written"),
        ("learner/weights", None, "weights is missing"),
        ("state.json", lambda data: data.replace(b"10", b"11"), "state.json is not what was"),
        ("manifest.json", lambda data: data[:50], "manifest.json can't be read"),
        ("manifest.json", lambda data: data.replace(b"4096", b"4095"), "manifest.json is not what"),
        ("manifest.json", lambda data: data.replace(b'"format": 2', b'"format": 9'), "format 9"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, file, damage, message):
    store = store_of(tmp_path)
    write(store, 5)
    path = write(store, 10, weights=b"w" * 4096) / file
    data = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(data))
    with pytest.raises(ValueError, match=message) as caught:
        store.latest()
    assert "remove the folder" in str(caught.value)
    assert "to resume from step_000005" in str(caught.value)
    assert store.latest("step_000005").step == 5


def test_a_file_records_what_sha256sum_prints(tmp_path):
    record = write_file(tmp_path / "abc", [b"a", b"bc"])
    assert (record.path, record.num_bytes) == ("abc", 3)
    # FIPS 180-2, appendix B.1
    assert record.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    """The kernel's limit on the size of a file stands for the disk: the write itself fails."""
    store = store_of(tmp_path)
    write(store, 5)
    draft = store.begin(10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_file(draft.folder("learner") / "weights", [bytes(2 << 20)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.discard(draft)
    assert names(tmp_path) == ["step_000005"]
    assert json.loads((store.latest().path / "state.json").read_text())["step"] == 5


def test_a_process_that_dies_between_two_renames_loses_no_checkpoint(tmp_path):
    store = store_of(tmp_path)
    write(store, 5, weights=b"old")
    draft = store.begin(5)
    record = write_file(draft.folder("learner") / "weights", [b"new"])
    state = {"step": 5, "version": 5, "score": None, "folders": ["learner"], "parts": {}}
    draft.seal(state, [record.within("learner")])
    final = draft.path.with_suffix("")
    final.rename(final.with_suffix(".removed"))  # and the process dies here
    assert store.latest() is None
    store.recover()
    assert (store.latest().folder("learner") / "weights").read_bytes() == b"new"
    assert names(tmp_path) == ["step_000005", "step_000005.removed"]
    store.begin(6)
    assert names(tmp_path) == ["step_000005", "step_000006.partial"]


def test_a_replaced_folder_comes_back_where_its_successor_is_not_whole(tmp_path):
    store = store_of(tmp_path)
    write(store, 5)
    path = store.latest().path
    store.begin(7).folder("learner")  # a draft without a manifest
    path.rename(path.with_suffix(".removed"))
    store.recover()
    assert store.latest().step == 5
    assert names(tmp_path) == ["step_000005", "step_000007.partial"]


def test_what_cannot_be_removed_does_not_end_the_run(tmp_path, monkeypatch):
    store = store_of(tmp_path, keep_checkpoints=1)
    write(store, 1)

    def refuse(path, *args, **kwargs):
        if not kwargs.get("ignore_errors"):
            raise OSError(39, "Directory not empty", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        write(store, 2)
        assert store.latest().step == 2
    write(store, 3)
    assert names(tmp_path) == ["step_000003"]
