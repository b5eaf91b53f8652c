"""Calls of judges are on disk when they are kept, and only those with a verdict are found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from workers.reward.scorers.models.calls import CallFile, JudgeCall, key_of

CALL = JudgeCall(judge="a", model="m", prompt="{}", answer="yes", error="", seconds=0.5)


def test_a_call_with_a_verdict_is_found_by_another_process(tmp_path: Path) -> None:
    key = key_of({"model": "m", "messages": ["x"]}, 0)
    CallFile(str(tmp_path)).keep("other", replace(CALL, answer="no", error="no verdict"))
    CallFile(str(tmp_path)).keep(key, CALL)
    again = CallFile(str(tmp_path))
    assert again.find(key) == CALL
    assert again.find("other") is None


def test_a_key_follows_body_and_repeat_and_not_the_order_of_keys() -> None:
    body = {"model": "m", "messages": ["x"]}
    assert key_of(body, 0) == key_of({"messages": ["x"], "model": "m"}, 0)
    assert len({key_of(body, 0), key_of(body, 1), key_of(body | {"model": "n"}, 0)}) == 3


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be written here .*the run's folder must be on"):
        CallFile(str(tmp_path / "absent"))
