"""Generated prompts: literal rows, disjoint splits, the same files from the same seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from workers.data.images.decoding import decode
from workers.tasks.addition import addition, build_addition
from workers.tasks.colours import COLOURS, colours
from workers.tasks.counting import counting
from workers.tasks.digits import build_digits, digit_strings
from workers.tasks.guessing import build_guessing, hidden_numbers, random_games
from workers.tasks.reasoning import build_reasoning, reasoning
from workers.tasks.tables import write_parquet


def test_single_digit_addition_covers_all_pairs_once() -> None:
    tables = addition(digits=1, seed=0)
    assert (tables.train.num_rows, tables.heldout.num_rows) == (70, 30)
    rows = tables.train.to_pylist() + tables.heldout.to_pylist()
    assert {row["prompt"] for row in rows} == {
        f"2+3=5\n4+1=5\n{a}+{b}=" for a in range(10) for b in range(10)
    }
    truths = {row["prompt"]: row["ground_truth"] for row in rows}
    assert truths["2+3=5\n4+1=5\n7+8="] == "15"
    assert {row["dataset"] for row in rows} == {"addition_1"}
    heldout = set(tables.heldout["prompt"].to_pylist())
    assert not heldout & {"2+3=5\n4+1=5\n2+3=", "2+3=5\n4+1=5\n4+1="}  # solved in the prompt


def test_two_digit_addition() -> None:
    tables = addition(digits=2, max_heldout=100, seed=3)
    # 90 x 90 pairs, 30 % held out, 100 of those used
    assert (tables.train.num_rows, tables.heldout.num_rows) == (5670, 100)
    assert not set(tables.train["prompt"].to_pylist()) & set(tables.heldout["prompt"].to_pylist())
    row = tables.train.to_pylist()[0]
    assert row["prompt"].startswith("12+34=46\n50+27=77\n")


def test_the_seed_decides_the_split() -> None:
    assert addition(seed=1).train.equals(addition(seed=1).train)
    assert not addition(seed=1).train.equals(addition(seed=2).train)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (digit_strings("copy", length=4, num_train=50, num_eval=10), lambda s: s),
        (digit_strings("sort", length=4, num_train=50, num_eval=10), lambda s: "".join(sorted(s))),
        (digit_strings("reverse", length=4, num_train=50, num_eval=10), lambda s: s[::-1]),
    ],
)
def test_digit_strings(tables, expected) -> None:  # type: ignore[no-untyped-def]
    rows = tables.train.to_pylist() + tables.heldout.to_pylist()
    assert (tables.train.num_rows, tables.heldout.num_rows) == (50, 10)
    assert len({row["prompt"] for row in rows}) == 60
    for row in rows:
        digits = row["prompt"].removesuffix("=")
        assert len(digits) == 4
        assert digits.isdecimal()
        assert row["ground_truth"] == expected(digits)


def test_files_are_built_once(tmp_path: Path) -> None:
    folder = build_digits(tmp_path, task="copy", length=3, num_train=20, num_eval=5)
    before = (folder / "train.parquet").stat().st_mtime_ns
    assert build_digits(tmp_path, task="copy", length=3, num_train=20, num_eval=5) == folder
    assert (folder / "train.parquet").stat().st_mtime_ns == before
    assert pq.read_table(folder / "eval.parquet").num_rows == 5
    assert build_digits(tmp_path, task="copy", length=4, num_train=20, num_eval=5) != folder
    assert len(list(tmp_path.iterdir())) == 2


def test_default_folder_is_named_after_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path))
    first, second = build_addition(seed=0), build_addition(seed=1)
    assert first.parent == tmp_path / "data"
    assert first != second


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: addition(digits=0), "digits must be 1, 2 or 3, got 0"),
        (lambda: colours(num_train=6), "num_train=6 must be a positive multiple of 4"),
        (lambda: counting(most=10), "most=10 must be from 2 to 9"),
        (lambda: addition(heldout_frac=1.0), "heldout_frac must lie"),
        (lambda: digit_strings("copy", length=1, num_train=9, num_eval=2), "exceed the 10 strings"),
        (lambda: digit_strings("copy", num_train=0), "must be at least 1"),
        (lambda: digit_strings("shuffle"), "one of copy, reverse, sort"),
        (lambda: reasoning(datasets={}), "needs datasets"),
        (lambda: reasoning(datasets={"no_such": {}}), "'no_such'"),
        (lambda: reasoning(datasets={"coin_flip": {"bogus": 1}}), "bogus"),
        (lambda: reasoning(datasets={"coin_flip": {}}, style="poem"), "poem"),
        (lambda: reasoning(datasets={"coin_flip": {}}, weights={"coin": 1}), "coin=1"),
        (lambda: reasoning(datasets={"coin_flip": {}}, weights={"coin_flip": 0}), "coin_flip=0"),
        (
            lambda: reasoning(datasets={"coin_flip": {}, "lcm": {}}, weights={"lcm": 1e-3}),
            "lcm has no share of 128 rows",
        ),
        (
            lambda: reasoning(datasets={"letter_counting": {}}, max_question_chars=9),
            "gave only 0 different questions",
        ),
    ],
)
def test_bad_arguments(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_reasoning_few_shot(tmp_path: Path) -> None:
    settings = {"chain_sum": {"min_digits": 1, "max_digits": 1}, "letter_counting": {}}
    folder = build_reasoning(tmp_path, datasets=settings, num_train=21, num_eval=6, num_shots=2)
    train = pq.read_table(folder / "train.parquet")
    heldout = pq.read_table(folder / "eval.parquet")
    assert (train.num_rows, heldout.num_rows) == (21, 6)
    assert sorted(heldout["dataset"].to_pylist()) == ["chain_sum"] * 3 + ["letter_counting"] * 3
    assert train["dataset"].to_pylist().count("chain_sum") == 11
    assert not set(train["prompt"].to_pylist()) & set(heldout["prompt"].to_pylist())
    row = heldout.to_pylist()[0]
    assert row["prompt"].count("Question: ") == 3
    assert row["prompt"].endswith("\nAnswer:")
    entry = json.loads(row["entry"])
    assert entry["config"] == {"min_digits": 1, "max_digits": 1}
    assert entry["answer"] == row["ground_truth"]
    again = reasoning(datasets=settings, num_train=21, num_eval=6, num_shots=2)
    assert again.train.equals(train)


def test_reasoning_by_weight() -> None:
    tables = reasoning(
        datasets={"coin_flip": {}, "lcm": {}, "chain_sum": {}},
        weights={"lcm": 2},
        num_train=22,
        num_eval=5,
    )
    counts = [Counter(table["dataset"].to_pylist()) for table in (tables.train, tables.heldout)]
    assert counts[0] == {"coin_flip": 6, "lcm": 11, "chain_sum": 5}
    assert counts[1] == {"coin_flip": 1, "lcm": 3, "chain_sum": 1}


def test_reasoning_chat() -> None:
    tables = reasoning(datasets={"coin_flip": {}}, num_train=4, num_eval=2, style="chat")
    message = tables.train["prompt"][0].as_py()[0]
    assert message["role"] == "user"
    assert message["content"].endswith("inside <answer> and </answer>.")


def test_write_parquet_is_atomic(tmp_path: Path) -> None:
    table = digit_strings("copy", length=2, num_train=5, num_eval=5).train
    path = write_parquet(table, tmp_path / "deep" / "file.parquet")
    assert pq.read_table(path).equals(table)
    assert [p.name for p in path.parent.iterdir()] == ["file.parquet"]


def test_every_number_is_hidden_equally_often(tmp_path: Path) -> None:
    tables = hidden_numbers(high=6, num_train=70, num_eval=7)
    assert set(tables.train["prompt"].to_pylist()) == {"0-6?"}
    assert Counter(tables.train["ground_truth"].to_pylist()) == dict.fromkeys("0123456", 10)
    assert sorted(tables.heldout["ground_truth"].to_pylist()) == [*"0123456"]
    folder = build_guessing(tmp_path, num_train=7)
    assert pq.read_table(folder / "eval.parquet").num_rows == 60
    games = random_games(num_train=200).train
    assert {len(prompt) for prompt in games["prompt"].to_pylist()} == {4, 4 + 12}  # one turn or two
    assert set(games["ground_truth"].to_pylist()) == {*"0123456789"}
    with pytest.raises(ValueError, match=r"low=3 and high=3 hold no range"):
        hidden_numbers(low=3, high=3)


def _pixels(file: bytes) -> np.ndarray:
    return np.asarray(decode(file)).astype(float)


def test_the_colour_of_a_picture_is_its_answer_and_blank_pictures_have_none() -> None:
    tables = colours(num_train=40, num_heldout=8, seed=3)
    for row in tables.train.to_pylist():
        mean = _pixels(row["image"]).reshape(-1, 3).mean(axis=0)
        near = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
        assert row["ground_truth"] == near
        assert row["prompt"] == "<image>colour:"
    assert len(set(tables.train["image"].to_pylist() + tables.heldout["image"].to_pylist())) == 48
    blank = colours(num_train=40, num_heldout=8, seed=3, blank=True).train.to_pylist()
    means = [_pixels(row["image"]).mean() for row in blank]
    assert max(means) - min(means) < 3
    assert sorted(row["ground_truth"] for row in blank) == sorted("rgby" * 10)


def test_the_squares_of_a_picture_are_as_many_as_its_answer() -> None:
    for row in counting(num_train=40, num_heldout=8, seed=3).train.to_pylist():
        bright = _pixels(row["image"]).max(axis=2) > 100
        cells = bright.reshape(4, 14, 4, 14).any(axis=(1, 3))
        assert int(row["ground_truth"]) == cells.sum()
