"""A run gets a folder of its own, and a resumed one the folder that it left."""

import json

import pytest

from conf.compose import compose
from orchestrator.checkpoints.owner_file import FolderInUseError
from orchestrator.run_folder import open_run


def config_of(folder, *overrides):
    _, config = compose([f"output_dir={folder}", "run_name=r", *overrides])
    return config


def test_two_runs_that_start_at_once_get_two_folders(tmp_path):
    config = config_of(tmp_path)
    with open_run(config) as (first, _), open_run(config) as (second, _):
        assert (first.name, second.name) == ("r", "r-2")


def test_a_folder_with_anything_in_it_is_not_taken(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    (tmp_path / "r-2").mkdir()  # empty
    with open_run(config_of(tmp_path)) as (run_dir, checkpoint):
        assert run_dir.name == "r-2"
        assert checkpoint is None


def test_a_live_run_is_neither_resumed_nor_cut(tmp_path):
    with open_run(config_of(tmp_path)) as (run_dir, _):
        line = json.dumps({"step": 1}) + "\n"
        (run_dir / "metrics.jsonl").write_text(line)
        resumed = config_of(tmp_path, "resume=auto")
        with pytest.raises(FolderInUseError, match="is in use by process"), open_run(resumed):
            pass
        assert (run_dir / "metrics.jsonl").read_text() == line


def test_a_resumed_run_without_a_checkpoint_begins_again(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    with open_run(config_of(tmp_path, "resume=auto")) as (run_dir, checkpoint):
        assert (run_dir.name, checkpoint) == ("r", None)
        assert (run_dir / "metrics.jsonl").read_text() == ""
