"""Rows of a copy's files: by split, in each form of JSON."""

import json

import pytest

from workers.tasks.copy_files import digest_of, read_rows


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "train" / "algebra").mkdir(parents=True)
    (tmp_path / "train" / "algebra" / "1.json").write_text(json.dumps({"q": "1+1"}, indent=1))
    (tmp_path / "train" / "algebra" / "2.json").write_text('{"q": "2+2", "level": 5}')
    (tmp_path / "test.json").write_text('[{"q": "3+3"}, {"q": "4+4"}]')
    return tmp_path


def test_a_split_is_files_or_folders_whose_name_begins_so(copy):
    train = list(read_rows(copy, ["q"], split="train", optional=["level"]))
    assert train == [{"q": "1+1", "level": None}, {"q": "2+2", "level": 5}]
    assert [row["q"] for row in read_rows(copy, ["q"], split="te")] == ["3+3", "4+4"]
    assert len(list(read_rows(copy, ["q"]))) == 4


def test_a_missing_column_is_named_with_its_file(copy):
    with pytest.raises(ValueError, match=r"test.json has no column 'a'; a row has q"):
        list(read_rows(copy, ["a"], split="test"))


def test_the_digest_follows_the_content(copy):
    before = digest_of(copy)
    assert before == digest_of(copy)
    (copy / "test.json").write_text("[]")
    assert digest_of(copy) != before
