"""Scorers on literal samples, what counts as a reward, and what is refused when they are built."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from workers.reward.base import RewardSample, score_sample
from workers.reward.scorers.exact import Exact
from workers.reward.scorers.function import Function
from workers.reward.scorers.gym import ReasoningGym
from workers.reward.scorers.math import Math
from workers.reward.scorers.pattern import Pattern
from workers.reward.scorers.positions import Positions
from workers.reward.scorers.weighted import Weighted
from workers.tasks.reasoning import reasoning

ROOT = Path(__file__).parents[3]


def sample(response: str, ground_truth: str | None = "5", **columns: object) -> RewardSample:
    return RewardSample(
        prompt="2+3=", response=response, ground_truth=ground_truth, columns=columns
    )


@pytest.mark.parametrize(
    ("scorer", "response", "truth", "expected"),
    [
        (Exact(), "5", "5", 1.0),
        (Exact(), " 5 \n", "5", 1.0),
        (Exact(), "5\n4+4=8", "5", 0.0),
        (Exact(stop_at="\n"), "5\n4+4=8", "5", 1.0),
        (Exact(stop_at="\n"), "\n5", "5", 0.0),
        (Exact(), "The  Cat", "the cat", 1.0),
        (Exact(normalise=False), "The cat", "the cat", 0.0),
        (Exact(normalise=False), "the cat", "the cat", 1.0),
        (Exact(), "", "5", 0.0),
    ],
)
def test_exact(scorer: Exact, response: str, truth: str, expected: float) -> None:
    assert scorer(sample(response, truth)) == expected


def test_columns_named_like_an_argument_of_every_call_disturb_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def reward(prompt, response, ground_truth, level, scale):\n"
        "    assert (prompt, response, ground_truth) == ('2+3=', '5', '5')\n"
        "    return level * scale\n"
    )
    path = f"{tmp_path}/mine.py:reward"
    columns = {"prompt": "another", "response": "a", "ground_truth": "b", "level": 3, "scale": 7}
    finished = RewardSample(prompt="2+3=", response="5", ground_truth="5", columns=columns)
    result = score_sample(Function(path=path, arguments={"scale": 2}), finished)
    assert (result.outcome, result.reward) == ("scored", 6.0)
    with pytest.raises(ValueError, match="reward.scorer.arguments holds \\[.response.\\]"):
        Function(path=path, arguments={"response": 1})


@pytest.mark.parametrize(
    ("response", "reward", "positions", "exact"),
    [
        ("12345", 1.0, 1.0, 1.0),
        ("12845", 0.4, 0.8, 0.0),  # 0.5 * 4/5
        ("21345", 0.3, 0.6, 0.0),  # 0.5 * 3/5
        ("123", 0.3, 0.6, 0.0),
        ("123456", 0.5, 1.0, 0.0),  # every position right, and one character too many
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_positions(response: str, reward: float, positions: float, exact: float) -> None:
    score = Positions()(sample(response, "12345"))
    assert score == pytest.approx({"reward": reward, "positions": positions, "exact": exact})


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        ("The answer is $\\frac{1}{2}$", "0.5", 1.0),
        ("so \\boxed{x^2+2x+1}", "$(x+1)^2$", 1.0),
        ("\\boxed{3}", "\\boxed{4}", 0.0),
        ("it is 12", "12", 1.0),
        ("no idea", "12", 0.0),
        ("\\boxed{\\{1,2\\}}", "\\{2, 1\\}", 1.0),
    ],
)
def test_math(response: str, truth: str, expected: float) -> None:
    assert Math()(sample(response, truth)) == expected


def test_pattern() -> None:
    scorer = Pattern(pattern="<think>.*</think><answer>.+</answer>")
    assert scorer(sample("<think>a\nb</think><answer>5</answer>\n")) == 1.0
    assert scorer(sample("<answer>5</answer>")) == 0.0
    assert scorer(sample("x <think></think><answer>5</answer>")) == 0.0
    assert Pattern(pattern=r"\d", whole=False)(sample("about 5 or so")) == 1.0


@pytest.mark.parametrize("style", ["few_shot", "chat"])
def test_reasoning_gym_gives_its_own_answers_full_marks(style: str) -> None:
    names = ("chain_sum", "coin_flip", "number_sorting", "countdown", "spell_backward")
    table = reasoning(datasets={n: {} for n in names}, num_train=20, num_eval=5, style=style)
    chat = style == "chat"
    scorer = ReasoningGym(
        answer_pattern="<answer>(.*?)</answer>" if chat else None, stop_at=None if chat else "\n"
    )
    for row in table.train.to_pylist():
        truth = row["ground_truth"]
        response = f"well <answer>{truth}</answer>" if chat else f" {truth}\n\nQuestion: more"
        assert scorer(sample(response, truth, entry=row["entry"])) == {
            "reward": 1.0,
            "answered": 1.0,
        }
    wrong = scorer(sample("bogus", "1", entry=row["entry"]))
    assert wrong["reward"] < 0.1
    assert wrong["answered"] == (0.0 if chat else 1.0)


def test_reasoning_gym_without_the_entry_fails() -> None:
    result = score_sample(ReasoningGym(), sample("5", dataset="x"))
    assert result.outcome.startswith("failed:KeyError")
    assert "no column 'entry' among ['dataset']" in result.outcome


def test_weighted_keeps_the_parts() -> None:
    scorer = Weighted(
        scorers={"places": Positions(), "digits": Pattern(pattern=r"\d+")},
        weights={"places": 1.0, "digits": 0.25},
    )
    score = scorer(sample("12845", "12345"))
    # 1.0 * 0.4 + 0.25 * 1
    assert score == pytest.approx(
        {
            "reward": 0.65,
            "places": 0.4,
            "places/positions": 0.8,
            "places/exact": 0.0,
            "digits": 1.0,
        }
    )
    failed = score_sample(scorer, sample("12845", None))
    assert failed.reward is None
    assert "places: failed:ValueError" in failed.outcome


def write_module(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(body)
    return f"{path}:reward"


def test_function_gets_every_column(tmp_path: Path) -> None:
    path = write_module(
        tmp_path,
        "def reward(prompt, response, ground_truth, **columns):\n"
        "    parts = {'length': len(response), 'level': columns['level'], 'x': columns['x']}\n"
        "    return {'reward': response == ground_truth, **parts}\n",
    )
    result = score_sample(Function(path=path, arguments={"x": 2}), sample("5", level=3))
    assert (result.outcome, result.reward) == ("scored", 1.0)
    assert result.parts == {"length": 1.0, "level": 3.0, "x": 2.0}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.module.reward", "ModuleNotFoundError: No module named 'no'"),
        ("json.no_such_name", "AttributeError"),
        ("json.decoder", "is not callable"),
        ("reward", "cannot be imported"),
        ("/no/such/file.py:reward", "FileNotFoundError"),
    ],
)
def test_function_is_resolved_at_once(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Function(path=path)


def test_bad_construction() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        Pattern(pattern="(")
    with pytest.raises(ValueError, match="needs a group"):
        ReasoningGym(answer_pattern="<answer>")
    with pytest.raises(ValueError, match=r"exact_weight must lie in \[0, 1\], got 2"):
        Positions(exact_weight=2)
    with pytest.raises(ValueError, match=r"weights must name the scorers \['a'\], got \['b'\]"):
        Weighted(scorers={"a": Exact()}, weights={"b": 1.0})
    with pytest.raises(ValueError, match="at least one scorer"):
        Weighted(scorers={})


@pytest.mark.parametrize(
    ("returned", "reward"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.array([0.25]), 0.25),
        (torch.tensor(0.75), 0.75),
        ({"reward": 2}, 2.0),
        (Decimal("0.5"), 0.5),
        (np.float64(0.25), 0.25),
        (torch.tensor([0.5]), 0.5),
        ({"reward": 1, "note": "good"}, 1.0),
    ],
)
def test_what_counts_as_a_reward(returned: object, reward: float) -> None:
    result = score_sample(lambda _: returned, sample("5"))  # type: ignore[arg-type, return-value]
    assert (result.outcome, result.reward) == ("scored", reward)


@pytest.mark.parametrize(
    ("returned", "outcome"),
    [
        (None, "dropped:abstained"),
        ({"reward": None, "pred": "?"}, "dropped:abstained"),
        ("0.5", "failed:TypeError: reward must be a number, got str '0.5'"),
        ({"score": 1}, 'failed:ValueError: a reward mapping needs the key "reward"'),
        ({"reward": "1"}, "failed:TypeError: reward must be a number, got str '1'"),
        (float("nan"), "failed:non-finite reward nan"),
        (float("inf"), "failed:non-finite reward inf"),
        (1e39, "failed:non-finite reward 1e+39"),  # in the 32 bits of the record
        ({"reward": 1, "x": float("nan")}, "failed:non-finite part {'x': nan}"),
        (np.zeros(3), "failed:ValueError"),
        ({"reward": 1} | {str(i): 0 for i in range(100)}, "failed:ValueError: a reward has at"),
    ],
)
def test_what_does_not(returned: object, outcome: str) -> None:
    result = score_sample(lambda _: returned, sample("5"))  # type: ignore[arg-type, return-value]
    assert result.outcome.startswith(outcome)
    assert result.reward is None


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf/reward").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_config_builds_and_scores(path: Path) -> None:
    config = OmegaConf.load(path)
    if path.stem.startswith("judge") or path.stem == "reward_model":
        return  # tests/workers/reward/scorers/ has a service and a model for them
    assert set(config) == {"scorer", "num_processes", "timeout_s"}
    if path.stem == "function":
        config.scorer.path = "workers.reward.scorers.exact.cut_at"  # any importable callable
        assert callable(instantiate(config.scorer))
        return
    if path.stem == "http":  # tests/workers/reward/scorers/test_remote.py has a service
        assert instantiate(config.scorer).whole_group
        return
    entry = {"dataset": "chain_sum", "config": {}, "question": "2+3", "answer": "5", "metadata": {}}
    response = "<answer>5</answer>" if path.stem in ("format", "pattern") else "5"
    response = (
        f"<think>2+3</think><answer>{response}</answer>" if path.stem == "marked" else response
    )
    truth = "B" if path.stem == "choice" else "5"
    columns = {
        "entry": json.dumps(entry),
        "dataset": "math",  # chooses in by_column
        "schema": {"type": "integer"},
        "instruction_id_list": ["punctuation:no_comma"],
    }
    response = "B" if path.stem == "choice" else response
    if path.stem == "python":
        response, truth = "print(5)", '[{"input": "", "output": "5"}]'
    scorer = instantiate(config.scorer, _convert_="all")
    result = score_sample(scorer, sample(response, truth, **columns))
    assert result.outcome == "scored"
    # Of the weighted ones, "weighted" adds 0.1 for the format and "marked" 0.5.
    assert result.reward == {"weighted": 1.1, "marked": 1.5}.get(path.stem, result.reward)
    assert result.reward >= 1.0


def test_importing_rewards_is_light() -> None:
    code = (
        "import sys, workers.reward.pool, workers.reward.scorers.exact, "
        "workers.reward.scorers.weighted, workers.reward.scorers.gym, "
        "workers.reward.scorers.math, workers.reward.scorers.function\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'hydra', 'pyarrow', 'sympy', 'numpy', "
        "'reasoning_gym'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
