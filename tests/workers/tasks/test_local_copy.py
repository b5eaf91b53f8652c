"""Local copies of published datasets become prompt files: rows by hand, in each file format."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.compose import compose
from orchestrator.planning.sources import prompt_sets
from workers.tasks.local_copy import build_local_copy, convert

QUESTIONS = [
    ("What is 1+1?", "2"),
    ("What is 2+2?", "4"),
    ("What is 1+1? ", "3"),  # the first again, with another answer
    ("1加1等于几？", "2"),
    ("What is 3+3?", "6"),
]


def verl_rows(questions=QUESTIONS):
    return [
        {
            "data_source": "math_dapo",
            "prompt": [{"content": question, "role": "user"}],
            "reward_model": {"ground_truth": truth, "style": "rule"},
        }
        for question, truth in questions
    ]


@pytest.fixture(params=["parquet", "jsonl", "json"])
def copy(request, tmp_path):
    """A folder as a published dataset comes: its files below `data/`, a page beside them."""
    folder = tmp_path / "DAPO-Math-17k"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("a dataset")
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(verl_rows()), folder / "data" / "train.parquet")
    elif request.param == "jsonl":
        lines = "\n".join(json.dumps(row) for row in verl_rows())
        (folder / "data" / "train.jsonl").write_text(lines)
    else:
        (folder / "data" / "train.json").write_text(json.dumps(verl_rows()))
    return folder


def pairs(table):
    return {(row["prompt"][0]["content"], row["ground_truth"]) for row in table.to_pylist()}


def test_every_question_once_with_its_first_answer(copy):
    tables = convert(copy, num_heldout=1)
    assert (tables.train.num_rows, tables.heldout.num_rows) == (3, 1)
    assert pairs(tables.train) | pairs(tables.heldout) == {
        ("What is 1+1?", "2"),
        ("What is 2+2?", "4"),
        ("1加1等于几？", "2"),
        ("What is 3+3?", "6"),
    }


def test_the_english_part(copy):
    tables = convert(copy, language="english", num_heldout=1, dataset="d")
    both = tables.train.to_pylist() + tables.heldout.to_pylist()
    assert sorted(row["ground_truth"] for row in both) == ["2", "4", "6"]
    assert {row["dataset"] for row in both} == {"d"}
    assert both[0]["prompt"][0]["role"] == "user"


def test_a_heldout_source_leaves_the_training_prompts(copy, tmp_path):
    heldout = tmp_path / "AIME-2024" / "aime.jsonl"
    heldout.parent.mkdir()
    rows = verl_rows([("What is 2+2?", "4"), ("What is 9+9?", "18")])
    heldout.write_text("\n".join(json.dumps(row) for row in rows))
    tables = convert(copy, heldout_source=heldout.parent)
    assert "What is 2+2?" not in {question for question, _ in pairs(tables.train)}
    assert pairs(tables.heldout) == {("What is 2+2?", "4"), ("What is 9+9?", "18")}


def test_plain_text_columns(tmp_path):
    path = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"question": ["a", "b"], "answer": [1, 2]}), path)
    tables = convert(path, prompt_column="question", ground_truth_column="answer", num_heldout=1)
    assert pairs(tables.train) | pairs(tables.heldout) == {("a", "1"), ("b", "2")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_column": "question"}, "no column 'question'; a row has .*prompt_column"),
        ({"ground_truth_column": "reward_model.answer"}, "no column 'reward_model.answer'"),
        ({"num_heldout": 4}, "4 different questions, of which num_heldout=4"),
        ({"language": "klingon"}, "language must be one of"),
    ],
)
def test_bad_arguments_are_named(copy, arguments, message):
    with pytest.raises(ValueError, match=message):
        convert(copy, **arguments)


def test_a_missing_copy_says_where_to_put_it(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist: put a local copy"):
        convert(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .parquet, .jsonl, .json file"):
        convert(tmp_path / "empty")


def test_the_recipes_data_group_reads_the_copy(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("BALLAST_DATA", str(copy.parent))
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    _, config = compose(["experiment=rpg_qwen3_4b_2k", "data.build.num_heldout=1"])
    train, heldout = prompt_sets(config.data)
    assert (len(train), len(heldout)) == (2, 1)
    assert train[0].prompt[0]["role"] == "user"
    assert train[0].ground_truth in ("2", "4", "6")


def test_another_content_is_another_folder(copy, tmp_path):
    first = build_local_copy(tmp_path / "out", source=str(copy), num_heldout=1)
    assert build_local_copy(tmp_path / "out", source=str(copy), num_heldout=1) == first
    for path in (copy / "data").iterdir():
        path.unlink()
    rows = "\n".join(json.dumps(row) for row in verl_rows(QUESTIONS[:2]))
    (copy / "data" / "train.jsonl").write_text(rows)
    assert build_local_copy(tmp_path / "out", source=str(copy), num_heldout=1) != first


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))


def published(folder):
    """Two rows of each set, as its files lie in a copy."""
    first = {"question": "2+3?", "answer": "Add.\n#### 5"}
    write(folder / "gsm8k" / "train.jsonl", first, {"question": "1k?", "answer": "#### 1,000"})
    write(folder / "gsm8k" / "test.jsonl", {"question": "9+9?", "answer": "#### 18"}, first)
    box = {"problem": "Half of 1?", "solution": r"It is $\boxed{\frac12}$."}
    write(folder / "MATH" / "train" / "algebra" / "1.json", box)
    write(folder / "MATH" / "train" / "algebra" / "2.json", {"problem": "?", "solution": "none"})
    write(folder / "MATH" / "test" / "algebra" / "1.json", {**box, "problem": "1/2?"})
    numina = folder / "NuminaMath-CoT"
    write(numina / "data" / "train.jsonl", box, {**box, "problem": "0.5?"})
    write(numina / "data" / "test.jsonl", {**box, "problem": "2/4?"})
    scaler = folder / "DeepScaleR-Preview-Dataset"
    write(
        scaler / "deepscaler.json", {"problem": "a", "answer": "1"}, {"problem": "b", "answer": 2}
    )


@pytest.mark.parametrize(
    ("group", "overrides", "train", "heldout"),
    [
        ("gsm8k", [], {("1k?", "1000")}, {("9+9?", "18"), ("2+3?", "5")}),
        ("math", [], {("Half of 1?", r"\frac12")}, {("1/2?", r"\frac12")}),
        (
            "numina_math",
            [],
            {("Half of 1?", r"\frac12"), ("0.5?", r"\frac12")},
            {("2/4?", r"\frac12")},
        ),
        ("deepscaler", ["data.build.num_heldout=1"], None, None),
    ],
)
def test_published_sets_are_read_as_they_lie_in_a_copy(
    tmp_path, monkeypatch, group, overrides, train, heldout
):
    published(tmp_path)
    monkeypatch.setenv("BALLAST_DATA", str(tmp_path))
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    lengths = ["rollout.max_model_len=2048", "learner.token_budget=2048"]
    _, config = compose(["experiment=tiny", f"data={group}", *lengths, *overrides])
    found = [
        {(prompts[row].prompt[0]["content"], prompts[row].ground_truth) for row in range(size)}
        for prompts in prompt_sets(config.data)
        for size in (len(prompts),)
    ]
    if train is None:
        assert found[0] | found[1] == {("a", "1"), ("b", "2")}
    else:
        assert found == [train, heldout]


def test_a_split_that_is_not_there_is_named(tmp_path):
    published(tmp_path)
    with pytest.raises(ValueError, match="no file or folder whose name begins with 'validation'"):
        convert(tmp_path / "gsm8k", prompt_column="question", split="validation")
    with pytest.raises(ValueError, match="answer must be one of text, hashes, boxed, got 'last'"):
        convert(tmp_path / "gsm8k", answer="last")
