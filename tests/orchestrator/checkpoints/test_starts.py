"""Starts of a run: the first one is its begin, every other one a resume."""

from orchestrator.checkpoints.starts import FILE, read_starts, write_start


def test_every_start_but_the_first_is_a_resume(tmp_path):
    assert read_starts(tmp_path) == []
    write_start(tmp_path, 0)
    assert read_starts(tmp_path) == []
    write_start(tmp_path, 4)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"time": "2026-')
    assert read_starts(tmp_path) == [4]
