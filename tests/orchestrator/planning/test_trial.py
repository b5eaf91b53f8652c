"""The scorer is tried on the first rows, in a scoring process, before anything else starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.compose import compose
from orchestrator.planning.sources import Sources
from orchestrator.planning.trial import open_pool, try_rows, try_scorer
from workers.data.prompts import PromptSet
from workers.models.tiny import build_tiny
from workers.reward.scorers.exact import Exact
from workers.reward.scorers.function import Function
from workers.reward.scorers.models.judge import Judge
from workers.reward.scorers.models.judge_model import JudgeEngines, JudgeModel
from workers.reward.scorers.positions import Positions
from workers.reward.service import Patience

Try = Callable[..., list[str]]


@pytest.fixture
def attempt(tmp_path: Path) -> Try:
    """Try a scorer, or the body of a module that holds one, on rows of a file."""

    def run(scorer: Any, *overrides: str, readers: Any = None, **columns: list[Any]) -> list[str]:
        if isinstance(scorer, str):
            (tmp_path / "mine.py").write_text(scorer)
            scorer = Function(path=f"{tmp_path}/mine.py:reward")
        rows = {"prompt": ["2+3=", "1+1="], "ground_truth": ["5", "2"]} | columns
        pq.write_table(pa.table(rows), tmp_path / "train.parquet")
        prompts = PromptSet(
            tmp_path / "train.parquet", prompt_column="prompt", ground_truth_column="ground_truth"
        )
        sources = Sources(model_path=tmp_path, critic_path=tmp_path, train=prompts, heldout=None)
        _, config = compose(["experiment=quickstart", *overrides])
        return try_scorer(config, scorer, sources, readers)

    return run


def test_a_reward_that_gives_the_truth_full_marks_needs_no_word(attempt: Try) -> None:
    assert attempt(Exact()) == []


def test_a_part_that_the_reward_does_not_give_is_refused_by_name(attempt: Try) -> None:
    readers = {"policy_loss": ("format",)}
    gives = "def reward(response, **all): return {'reward': 1, 'format': len(response)}"
    assert attempt(gives, readers=readers) == []
    with pytest.raises(ValueError, match="policy_loss reads 'format', which is no part of every"):
        attempt(gives.replace("'format'", "'form'"), readers=readers)
    # The environment may give reward and parts itself.
    assert attempt(Exact(), "environment=guessing", readers=readers) == []


def test_a_whole_group_function_is_tried_with_both_responses(attempt: Try) -> None:
    assert (
        attempt("def reward(samples): return [s.response == s.ground_truth for s in samples]") == []
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def reward(completion): return 1.0", "needs completion: a sample has prompt, response"),
        ("def reward(**all): return 'good'", "4 x failed:TypeError (reward must be a number"),
        ("def reward(**all): return {'score': 1}", 'a reward mapping needs the key "reward"'),
        ("def reward(**all): raise KeyError(all['response'])", "4 x failed:KeyError"),
    ],
)
def test_a_reward_that_can_score_no_row_is_refused(attempt: Try, body: str, message: str) -> None:
    with pytest.raises(ValueError, match="can't score one of the first 2 rows") as error:
        attempt(body)
    assert message in str(error.value)
    assert len(str(error.value)) < 700


def test_a_reward_that_hangs_is_refused_after_its_limit(attempt: Try) -> None:
    with pytest.raises(ValueError, match="4 x failed:timeout"):
        attempt("import time\ndef reward(): time.sleep(60)", "reward.timeout_s=0.2")


def test_a_package_that_only_the_scorer_imports_is_named(attempt: Try) -> None:
    body = (
        "class Judge:\n"
        "    def __init__(self):\n        import no_such_package\n"
        "    def __call__(self, response): return 1.0\n"
        "reward = Judge\n"
    )
    with pytest.raises(ValueError, match="No module named 'no_such_package'"):
        attempt(body)


def test_a_ground_truth_that_cannot_be_read_is_said_with_its_row(attempt: Try) -> None:
    (note,) = attempt(Positions(), ground_truth=["", "2"])
    assert note.startswith(
        "reward: 1 of the first 2 rows of train.parquet can't be scored (train:0)"
    )


def test_a_truth_that_earns_too_little_is_said(attempt: Try) -> None:
    (note,) = attempt("def reward(response): return 0.9 * (len(response) < 9)")
    assert "the ground truth '5' of train:0, as the response, earns 0.9" in note


def test_a_reward_below_one_that_calls_the_truth_correct_needs_no_word(attempt: Try) -> None:
    body = (
        "def reward(response, ground_truth):\n"
        "    right = response == ground_truth\n"
        "    return {'reward': 0.9 * right, 'correct': right}\n"
    )
    assert attempt(body) == []


def test_text_prompts_without_an_end_are_noted(attempt: Try) -> None:
    without = "rollout.sampling.stop=[]"
    (note,) = attempt(Exact(), without)
    assert note.startswith("prompts are plain text without a stop: ")
    assert attempt(Exact(stop_at="\n"), without) == []


def test_chat_prompts_need_no_stop(attempt: Try) -> None:
    chats = [[{"role": "user", "content": "2+3="}]] * 2
    assert attempt(Exact(), "rollout.sampling.stop=[]", prompt=chats) == []


def test_a_scorer_of_siblings_refuses_to_have_some_of_them_stopped(attempt: Try) -> None:
    body = "def reward(samples): return [s.response == s.ground_truth for s in samples]"
    stops = "rollout.early_stop_samples=2"
    with pytest.raises(ValueError, match="rollout.early_stop_samples=2 with a reward that scores"):
        attempt(body, stops)
    assert attempt(Exact(), stops) == []


def test_a_template_that_opens_a_thought_is_said(attempt: Try, tmp_path: Path) -> None:
    build_tiny(tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        file.rename(tmp_path / file.name)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
    )
    chats = [[{"role": "user", "content": "2+3="}]] * 2
    (note,) = attempt(Exact(), prompt=chats)
    assert note.startswith("the template's generation prompt opens <think>: the reward sees")
    assert attempt(Exact(), "reward.include_prefill=true", prompt=chats) == []


def test_a_reward_that_reads_images_is_tried_with_the_files_of_the_rows(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def reward(images): return [len(i) for i in images][0]\n")
    (tmp_path / "a.png").write_bytes(b"file")
    rows = '{"prompt": "<image>a", "ground_truth": "5", "image": "%s"}\n'
    (tmp_path / "train.jsonl").write_text(rows % "a.png" + rows % "missing.png")
    prompts = PromptSet(
        tmp_path / "train.jsonl",
        prompt_column="prompt",
        ground_truth_column="ground_truth",
        image_column="image",
    )
    scorer = Function(path=f"{tmp_path}/mine.py:reward")
    _, config = compose(["experiment=quickstart"])
    with open_pool(config, scorer) as pool:
        (tried,) = try_rows(pool, scorer, [prompts[0], prompts[1]])
    assert (tried.uid, [each.reward for each in tried.results]) == ("train:0", [4.0, 4.0])


def test_a_judge_of_the_run_is_tried_once_its_engines_are_there(
    attempt: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    hurry = Patience(request_s=1.0, max_repeats=0)
    judge = Judge(judges={"own": JudgeModel()}, prompt="{{ response }}", patience=hurry)
    assert attempt(judge) == []
    engines = JudgeEngines(urls=("http://127.0.0.1:9/v1",), model="m", token_variable="A_KEY")
    with pytest.raises(ValueError, match="failed:RuntimeError .judge own: no answer from"):
        attempt(judge.on_engines(engines))
