"""Each tracker on its real package, offline: a run that ends at step 6 and resumes from step 4.

Packages that are not installed are skipped: `pip install --target FOLDER wandb` and
`PYTHONPATH=FOLDER` add one without a change of the environment.
"""

import json
import struct
import time

import pytest

from conf.schema import TrackingConfig
from orchestrator.telemetry.trackers.sinks import markdown, truncate_board
from orchestrator.telemetry.trackers.tracking import Tracker

ROWS = [
    {"prompt": "2+3=", "response": "5", "reward": 1.0},
    {"prompt": "1+1=", "response": "<b>|x", "reward": None},
]


def run_twice(folder, name):
    """Steps 1 to 6 with an evaluation at step 4; then, cut at step 4, steps 5 to 7 and a report."""
    lines = []
    config = TrackingConfig(trackers=[name], project="tests")
    arguments = {"run_name": "mine", "settings": {"seed": 1}, "print_line": lines.append}
    tracker = Tracker(folder, config, **arguments)
    for step in range(1, 7):
        tracker.log(step, {"reward/mean": step / 10})
        if step == 4:
            tracker.log(4, {"eval/pass@1": 0.5})
            tracker.table(4, ROWS)
    tracker.close()
    truncate_board(folder, 4)
    tracker = Tracker(folder, config, **arguments)
    for step in range(5, 8):
        tracker.log(step, {"reward/mean": step / 10})
    (folder / "report.html").write_text("<html>the report</html>")
    tracker.keep(folder / "report.html")
    tracker.close()
    assert lines == []
    return json.loads((folder / "trackers.json").read_text())[name]


def contents(folder):
    return {path.name: path for path in folder.rglob("*") if path.is_file()}


STEPS = [(step, pytest.approx(step / 10)) for step in range(1, 8)]


def test_tensorboard_is_cut_where_the_checkpoint_was(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_twice(tmp_path, "tensorboard")
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("reward/mean")] == STEPS
    assert [e.step for e in board.Scalars("eval/pass@1")] == [4]
    files = list((tmp_path / "tensorboard").glob("events*"))
    assert len(files) == 2
    (text,) = board.Tensors("samples/text_summary")
    assert text.step == 4
    assert b"2+3=" in text.tensor_proto.string_val[0]
    truncate_board(tmp_path, 0)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == []


def test_half_an_event_is_dropped(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_twice(tmp_path, "tensorboard")
    (first, *_) = sorted((tmp_path / "tensorboard").glob("events*"))
    first.write_bytes(first.read_bytes()[:-5])
    truncate_board(tmp_path, 7)
    board = EventAccumulator(str(first))
    board.Reload()
    assert [e.step for e in board.Scalars("reward/mean")] == [1, 2, 3, 4]


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_id = run_twice(tmp_path, "wandb")["id"]
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert {run.name.rsplit("-", 1)[1] for run in runs} == {run_id}
    files = contents(tmp_path / "wandb")
    assert "report.html" in files
    (table,) = [path for name, path in files.items() if name.endswith(".table.json")]
    assert json.loads(table.read_text())["data"][0] == ["2+3=", "5", 1.0]
    deadline = time.monotonic() + 20
    while len(wandb_history(runs)) < 7 and time.monotonic() < deadline:
        time.sleep(0.1)  # wandb's own process writes a little later than `finish` returns
    assert wandb_history(runs) == STEPS


def wandb_history(runs):
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for run in runs:
        for data in leveldb_records(next(run.glob("*.wandb")).read_bytes()):
            record = Record.FromString(data)
            values = {i.key or ".".join(i.nested_key): i.value_json for i in record.history.item}
            if "reward/mean" in values:
                found.append((record.history.step.num, json.loads(values["reward/mean"])))
    return found


def leveldb_records(content):
    """Read a log as LevelDB writes it: blocks of 32 KiB; behind 7 bytes, wandb's own header."""
    place, parts = 7, []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:  # what is left of a block that holds no header is padding
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield b"".join(parts)
            parts = []


def test_mlflow_goes_on_in_the_same_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_id = run_twice(tmp_path, "mlflow")["id"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    history = client.get_metric_history(run_id, "reward/mean")
    assert [(point.step, point.value) for point in history] == STEPS
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_run(run_id).data.metrics["eval/pass_1"] == 0.5
    files = contents(tmp_path / "mlflow_files")
    assert {"report.html", "config.yaml", "step_000004.json"} <= set(files)
    assert json.loads(files["step_000004.json"].read_text())["data"][0] == ["2+3=", "5", 1.0]


def test_trackio_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "db")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "db")
    run_id = run_twice(tmp_path, "trackio")["id"]
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("tests", run_id)
    assert [(log["step"], log["reward/mean"]) for log in logs if "reward/mean" in log] == STEPS
    (table,) = [log["samples"] for log in logs if "samples" in log]
    assert table["_value"][0] == {"prompt": "2+3=", "response": "5", "reward": 1.0}


def test_swanlab_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    run_id = run_twice(tmp_path, "swanlab")["id"]
    runs = list((tmp_path / "swanlab").glob("run-*"))
    assert {run.name.rsplit("-", 1)[1] for run in runs} == {run_id}
    assert "report.html" in contents(tmp_path / "swanlab")
    assert any("2+3=" in path.read_text() for path in (tmp_path / "swanlab").rglob("media/text/*"))


def test_a_table_shows_what_a_model_wrote_as_text():
    assert markdown(ROWS).splitlines()[-1] == r"| 1+1= | \<b\>\|x |  |"
