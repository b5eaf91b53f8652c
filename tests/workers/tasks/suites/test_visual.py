"""Local copies of the three sets with figures become held-out prompts that the scorer can read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.compose import compose
from orchestrator.planning.sources import heldout_prompts
from tests.workers.data.images.folders import file_of, noise
from workers.data.sources.source import Prompt
from workers.reward.base import RewardSample, score_sample
from workers.reward.scorers.typed_answer import TypedAnswer
from workers.tasks.suites.visual import build_mathverse, build_mathvision, build_mathvista

FILE = file_of(noise(40, 40))
PICTURE = {"bytes": FILE, "path": "1.png"}
VISTA = [
    {
        "pid": "1",
        "query": "Hint: give the option letter.\nQuestion: Which?\nChoices:\n(A) red\n(B) blue",
        "decoded_image": PICTURE,
        "choices": ["red", "blue"],
        "precision": None,
        "answer": "blue",
        "question_type": "multi_choice",
        "answer_type": "text",
    },
    {
        "pid": "2",
        "query": "Hint: one decimal place.\nQuestion: How long?",
        "decoded_image": PICTURE,
        "choices": None,
        "precision": 1.0,
        "answer": "1.2",
        "question_type": "free_form",
        "answer_type": "float",
    },
]
VERSE = [
    {
        "sample_index": str(number),
        "problem_version": version,
        "image": "images_version_1-4/image_1.png",
        "answer": answer,
        "question_type": kind,
        "query_cot": f"Please reason.\nQuestion: {version}?",
    }
    for number, (version, kind, answer) in enumerate(
        [("Text Lite", "multi-choice", "B"), ("Vision Only", "free-form", "2\\sqrt{3}")]
    )
]
VISION = [
    {"question": "Which?\n<image1>", "options": ["red", "blue"], "answer": "B", "level": 3},
    {"question": "Which picture?\n<image1>", "options": ["A", "B"], "answer": "A", "level": 1},
    {"question": "How many?\n<image1>", "options": [], "answer": "14", "level": 1},
]
VISION = [{**row, "subject": "counting", "image": "images/1.jpg"} for row in VISION]


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


def read(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "eval.parquet").to_pylist()


def test_mathvista_keeps_its_query_and_the_form_of_each_answer(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(VISTA), tmp_path / "data" / "testmini-0.parquet")
    pq.write_table(pa.Table.from_pylist(VISTA * 5), tmp_path / "data" / "test-0.parquet")
    first, second = read(build_mathvista(tmp_path / "built", source=str(tmp_path / "data")))
    assert first["prompt"] == f"<image>{VISTA[0]['query']}"
    assert (first["ground_truth"], first["choices"]) == ("blue", ["red", "blue"])
    assert first["image"] == PICTURE
    assert (second["answer_type"], second["precision"], second["choices"]) == ("float", 1.0, None)


def test_mathverse_is_read_by_versions_with_its_files(tmp_path: Path) -> None:
    built, copy = tmp_path / "built", tmp_path / "copy"
    lines(copy / "testmini.json", VERSE)
    lines(copy / "testmini_text_only.json", VERSE)
    with pytest.raises(ValueError, match="has no image 'images_version_1-4/image_1.png': unpack"):
        build_mathverse(built, source=str(copy))
    place = copy / "images" / "images_version_1-4" / "image_1.png"
    place.parent.mkdir(parents=True)
    place.write_bytes(FILE)
    rows = read(build_mathverse(built, source=str(copy)))
    assert [row["problem_version"] for row in rows] == ["Text Lite", "Vision Only"]
    assert [row["question_type"] for row in rows] == ["multi_choice", "free_form"]
    assert rows[0]["image"]["path"] == str(place)
    only = build_mathverse(built, source=str(copy), versions=["Vision Only"])
    assert [row["ground_truth"] for row in read(only)] == ["2\\sqrt{3}"]
    with pytest.raises(ValueError, match=r"no row with .*'Vision Dominant'.* choose another"):
        build_mathverse(built, source=str(copy), versions=["Vision Dominant"])


def test_mathvision_lists_options_that_the_picture_does_not_show(tmp_path: Path) -> None:
    built, copy = tmp_path / "built", tmp_path / "copy"
    lines(copy / "data" / "test.jsonl", VISION)
    lines(copy / "data" / "testmini.jsonl", VISION[:1])
    (copy / "images").mkdir()
    (copy / "images" / "1.jpg").write_bytes(FILE)
    rows = read(build_mathvision(built, source=str(copy), split="test."))
    assert [row["prompt"] for row in rows] == [
        "<image>Which?\n<image1>\n(A) red\n(B) blue",
        "<image>Which picture?\n<image1>",
        "<image>How many?\n<image1>",
    ]
    assert [row["ground_truth"] for row in rows] == ["blue", "A", "14"]
    assert [row["level"] for row in rows] == [3, 1, 1]
    lines(copy / "data" / "test.jsonl", [{**VISION[0], "answer": "C"}])
    with pytest.raises(ValueError, match=r"the answer 'C' names none of \['red', 'blue'\]"):
        build_mathvision(built, source=str(copy), split="test.")


def reward(row: Prompt, response: str) -> float | None:
    sample = RewardSample(
        prompt="", response=response, ground_truth=row.ground_truth, columns=row.columns
    )
    return score_sample(TypedAnswer(), sample).reward


def test_the_shipped_sets_are_read_built_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALLAST_DATA", str(tmp_path))
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    for folder in ("MathVista", "MathVerse", "MathVision"):
        (tmp_path / folder).mkdir()
    pq.write_table(pa.Table.from_pylist(VISTA), tmp_path / "MathVista" / "testmini-0.parquet")
    verse = [{**row, "image": PICTURE} for row in VERSE]
    pq.write_table(pa.Table.from_pylist(verse), tmp_path / "MathVerse" / "testmini.parquet")
    vision = [{**row, "decoded_image": PICTURE} for row in VISION]
    pq.write_table(pa.Table.from_pylist(vision), tmp_path / "MathVision" / "test-0.parquet")
    _, config = compose(
        ["experiment=cpgd_qwen25_vl_7b", "evaluation/set=[mathvista,mathverse,mathvision]"]
    )
    sets = heldout_prompts(config)
    assert {name: len(prompts) for name, prompts in sets.items()} == {
        "mathvista": 2,
        "mathverse": 2,
        "mathvision": 3,
    }
    for name, prompts in sets.items():
        own = config.evaluation.sets[name]
        assert (own.samples_per_prompt, own.sampling.temperature) == (1, 0.0)
        for row in (prompts[number] for number in range(len(prompts))):
            assert row.images == (FILE,)
            assert row.prompt[0]["content"].startswith("<image>")
            assert reward(row, f"I see \\boxed{{{row.ground_truth}}}") == 1.0
            assert reward(row, "I see nothing") == 0.0
