"""A recorded run is whole, of this schema and of this vocabulary, or refused with the remedy."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.supply.recording import Recording, discard_after
from workers.data.record_files import describe_rows
from workers.data.trajectory import Trajectory, describe, from_record_batch, to_record_batch


def sample(k, *, group="0-0", tokens=(5, 6, 7, 2), versions=(-1, -1, 3, 4), **changes):
    values = {
        "run_id": "run",
        "begun_version": 0,
        "prompt_uid": "p:0",
        "group_id": group,
        "rollout_id": f"{group}/{k}",
        "dataset": "copy",
        "tokens": list(tokens),
        "loss_mask": [version >= 0 for version in versions],
        "rollout_logprobs": [0.0 if version < 0 else -0.5 for version in versions],
        "weight_versions": list(versions),
        "finish_reason": "stop",
        "outcome": "scored",
        "reward": 0.25,
        "reward_parts": {"exact": 1.0},
        "timings": {"generate": 0.25, "reward": 0.125},
    }
    return Trajectory(**{**values, **changes})


def record(run_dir, step, trajectories, **columns):
    """What `recorder.py` leaves behind."""
    (run_dir / "rollouts").mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text("seed: 0\n")
    table = pa.Table.from_batches([to_record_batch(trajectories)])
    for name, values in columns.items():
        table = table.append_column(name, values)
    file = run_dir / "rollouts" / f"step_{step:06d}.parquet"
    pq.write_table(table, file, compression="zstd")
    return file


@pytest.fixture
def run(tmp_path):
    for step in (1, 2, 3):
        record(tmp_path / "run", step, [sample(0), sample(1)])
    return tmp_path / "run"


def test_the_steps_come_in_order(run):
    (run / "rollouts" / "step_000004.partial").write_bytes(b"half")
    files = Recording.open(run).files
    assert [file.name for file in files] == [f"step_00000{k}.parquet" for k in (1, 2, 3)]


def test_computed_columns_do_not_disturb(run):
    record(run, 3, [sample(0)], advantages=pa.array([[0.0] * 4], pa.list_(pa.float32())))
    assert len(Recording.open(run).files) == 3


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder=.* is not a run's folder \(no config.yaml\)"):
        Recording.open(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ValueError, match="holds no recorded step .* tracking.rollouts=true"):
        Recording.open(tmp_path)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_last_file_is_refused(run, kept):
    last = run / "rollouts" / "step_000003.parquet"
    last.write_bytes(last.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"step_000003.parquet is cut off .* remove it to replay"):
        Recording.open(run)


def test_a_missing_step_is_refused(run):
    (run / "rollouts" / "step_000002.parquet").unlink()
    with pytest.raises(ValueError, match="lacks step 2 between 1 and 3; restore its file"):
        Recording.open(run)


def test_another_schema_is_refused(run):
    file = run / "rollouts" / "step_000002.parquet"
    whole = pq.read_table(file)
    pq.write_table(whole.drop_columns(["rollout_logprobs"]), file)
    with pytest.raises(ValueError, match=r"no column 'rollout_logprobs': .* record the run again"):
        Recording.open(run)
    place = whole.schema.get_field_index("tokens")
    wide = whole["tokens"].cast(pa.large_list(pa.int64()))
    pq.write_table(whole.set_column(place, "tokens", wide), file)
    with pytest.raises(
        ValueError, match=r"column 'tokens' is large_list<.*int64>, .* has large_list<.*int32>"
    ):
        Recording.open(run)


def test_a_record_of_an_older_schema_is_refused_by_its_version(run):
    file = run / "rollouts" / "step_000002.parquet"
    whole = pq.read_table(file)
    assert whole.schema.metadata[b"ballast.schema_version"] == b"5"
    names = ["step" if name == "begun_version" else name for name in whole.column_names]
    pq.write_table(whole.rename_columns(names).replace_schema_metadata(None), file)
    with pytest.raises(ValueError, match=r"schema 1, this version reads 5; record the run again"):
        Recording.open(run)


@pytest.mark.parametrize("statistics", [True, False])
def test_another_vocabulary_is_refused(run, statistics):
    recording = Recording.open(run)
    if not statistics:
        for file in recording.files:
            pq.write_table(pq.read_table(file), file, write_statistics=False)
    recording.check_tokens(8)
    with pytest.raises(ValueError, match=r"step_000001.parquet holds token id 7, .* has 7: replay"):
        recording.check_tokens(7)


def test_rows_are_described_as_their_trajectories_are():
    batch = to_record_batch(
        [
            sample(0),
            sample(1, tokens=[], versions=[], outcome="dropped:empty prompt", reward=None),
            sample(2, tokens=[9], versions=[-1], outcome="failed:timeout", reward=None),
            sample(0, group="0-7", tokens=[1, 2, 3], versions=[-1, 9, 8], finish_reason="length"),
        ]
    )
    assert describe_rows(batch) == [describe(one) for one in from_record_batch(batch)]


def test_a_resumed_run_records_later_steps_again(run):
    failed = [run / "rollouts" / "failed" / f"step_00000{step}.parquet" for step in (1, 2)]
    failed[0].parent.mkdir()
    for file in failed:
        file.touch()
    discard_after(run, 1)
    assert [file.exists() for file in failed] == [True, False]
    assert [file.name for file in Recording.open(run).files] == ["step_000001.parquet"]
