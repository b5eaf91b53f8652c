"""Judges behind a service: prompts, verdicts, repeats, a file of calls; a failure is no zero."""

from __future__ import annotations

import asyncio
import json
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from workers.reward.base import RewardSample, score_group
from workers.reward.pool import RewardPool
from workers.reward.scorers.exact import Exact
from workers.reward.scorers.models.judge import Judge, JudgeModel
from workers.reward.scorers.weighted import Weighted
from workers.reward.service import Patience

SAMPLES = [
    RewardSample(prompt="2+3=", response="5", ground_truth="5"),
    RewardSample(prompt="2+3=", response="6", ground_truth="5"),
    RewardSample(prompt="2+3=", response="seven", ground_truth="5"),
]
HURRY = Patience(request_s=5.0, max_repeats=2, pause_s=0.01)
RANK = "{% for s in samples %}{{ s.response }};{% endfor %}"


class Service:
    """Chat completions; `answer` gives the text, or a status, for a prompt."""

    def __init__(self, answer: Callable[[str], str | int]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.bodies.append(body | {"path": self.path})
                service.tokens.append(self.headers["Authorization"])
                given = answer(body["messages"][-1]["content"])
                message = {"choices": [{"message": {"content": given}}]}
                content = json.dumps(message if isinstance(given, str) else {}).encode()
                self.send_response(200 if isinstance(given, str) else given)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str], str | int]], Service]]:
    made: list[Service] = []

    def start(answer: Callable[[str], str | int]) -> Service:
        made.append(Service(answer))
        return made[-1]

    yield start
    for service in made:
        service.server.shutdown()
        service.server.server_close()


def judge(*services: Service, **options: Any) -> Judge:
    models = {
        name: JudgeModel(url=service.url, model=f"model {name}")
        for name, service in zip("abc", services, strict=False)
    }
    given = {"judges": models, "prompt": "{{ prompt }}{{ response }}", "patience": HURRY}
    return Judge(**given | options)


def scored(score: float, reason: str = "so") -> str:
    return json.dumps({"reason": reason, "score": score})


def test_the_verdict_is_the_reward_and_prompt_answer_and_latency_are_kept(serve: Any) -> None:
    service = serve(lambda prompt: scored(10 if prompt.endswith("=5") else 2.5))
    scorer = judge(service, system="Be strict.", sampling={"temperature": 0.0})
    right, wrong, _ = score_group(scorer, SAMPLES)
    assert (right.reward, wrong.reward) == (1.0, 0.25)
    assert right.notes == {"a/prompt": "2+3=5", "a/answer": scored(10), "a/reason": "so"}
    assert right.parts["a"] == 1.0
    assert 0 < right.parts["a/seconds"] < 5
    body = service.bodies[0]
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("model a", 0.0)
    assert body["messages"][0] == {"role": "system", "content": "Be strict."}
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["reason", "score"]


def test_several_judges_and_repeats_are_a_weighted_mean(serve: Any) -> None:
    """a says 2, 6, 2, 6: mean 4; b says 10 twice. Weights 1 and 3: (0.4 + 3 * 1) / 4 = 0.85."""
    turns = iter([2, 6])
    first, second = serve(lambda _: scored(next(turns))), serve(lambda _: scored(10))
    judges = {
        "a": JudgeModel(url=first.url, model="m"),
        "b": JudgeModel(url=second.url, model="m", weight=3.0),
    }
    (result,) = score_group(judge(judges=judges, repeats=2), SAMPLES[:1])
    assert result.reward == pytest.approx(0.85)
    assert (result.parts["a"], result.parts["b"]) == (pytest.approx(0.4), 1.0)
    assert (result.parts["a/spread"], result.parts["b/spread"]) == (pytest.approx(0.4), 0.0)


def test_siblings_are_ranked_in_one_call_that_begins_with_another_one_in_each_repeat(
    serve: Any,
) -> None:
    """The judge prefers short answers: 5 and 6 before seven, and what comes first among equals."""

    def rank(prompt: str) -> str:
        shown = prompt.rstrip(";").split(";")
        order = sorted(range(len(shown)), key=lambda k: len(shown[k]))
        return json.dumps({"reason": "short", "ranking": [k + 1 for k in order]})

    service = serve(rank)
    scorer = judge(service, prompt=RANK, together="ranking", repeats=2)
    results = score_group(scorer, SAMPLES)
    assert sorted(body["messages"][0]["content"] for body in service.bodies) == [
        "5;6;seven;",
        "6;seven;5;",
    ]
    # 5: first, then second of three; 6: second, then first; seven: last twice.
    assert [result.reward for result in results] == [0.75, 0.75, 0.0]


def test_siblings_are_scored_in_one_call(serve: Any) -> None:
    service = serve(lambda _: json.dumps({"reason": "", "scores": [10, 5, 0]}))
    results = score_group(judge(service, prompt=RANK, together="scores"), SAMPLES)
    assert [result.reward for result in results] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("answer", "reason", "num_calls"),
    [
        (503, "answered 503", 3),
        (429, "answered 429", 3),
        (401, "answered 401", 1),
        ("I would say 8.", "the judge gave no verdict (no JSON object): 'I would say 8.'", 1),
        ("", "the judge gave no verdict", 1),
    ],
)
def test_a_call_without_a_verdict_is_a_failure_and_is_kept_but_not_believed(
    serve: Any, tmp_path: Path, answer: str | int, reason: str, num_calls: int
) -> None:
    service = serve(lambda _: answer)
    scorer = judge(service)
    scorer.keep_in(str(tmp_path))
    for asked in (1, 2):
        (result,) = score_group(scorer, SAMPLES[:1])
        assert result.reward is None
        assert result.outcome.startswith("failed:RuntimeError: judge a: ")
        assert reason in result.outcome
        assert len(service.bodies) == asked * num_calls
    assert [(row[0], reason in row[2]) for row in calls(tmp_path)] == [("a", True)] * 2


def calls(folder: Path) -> list[tuple[Any, ...]]:
    (file,) = folder.glob("judge_calls.*.sqlite")
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(
            "SELECT judge, answer, error, seconds > 0 FROM calls ORDER BY at"
        ).fetchall()


def test_an_equal_call_is_answered_by_the_file_in_a_later_process_too(
    serve: Any, tmp_path: Path
) -> None:
    service = serve(lambda _: scored(7))
    scorer = judge(service, repeats=2)
    scorer.keep_in(str(tmp_path))
    first = score_group(scorer, SAMPLES[:1])
    assert len(service.bodies) == 2
    with RewardPool(judge(service, repeats=2), timeout_s=30.0, folder=str(tmp_path)) as pool:
        (again,) = asyncio.run(pool.score(SAMPLES[:1]))
    assert len(service.bodies) == 2
    assert (again.reward, again.notes) == (first[0].reward, first[0].notes)
    assert calls(tmp_path) == [("a", scored(7), "", 1)] * 2
    other = judge(service, repeats=2, sampling={"temperature": 0.5})
    other.keep_in(str(tmp_path))
    score_group(other, SAMPLES[:1])
    assert len(service.bodies) == 4


def test_calls_keep_the_pace_of_their_judge(serve: Any) -> None:
    service = serve(lambda _: scored(7))
    judges = {"a": JudgeModel(url=service.url, model="m", calls_per_minute=600)}
    began = time.perf_counter()
    score_group(judge(judges=judges, repeats=3), SAMPLES[:1])
    assert time.perf_counter() - began >= 0.2


def test_a_judge_sends_its_token_and_needs_it_before_the_first_sample(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(lambda _: scored(7))
    judges = {"a": JudgeModel(url=service.url, model="m", token_variable="JUDGE_TOKEN")}
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    with pytest.raises(ValueError, match="token_variable=JUDGE_TOKEN: that environment variable"):
        judge(judges=judges).prepare()
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    score_group(judge(judges=judges), SAMPLES[:1])
    assert service.tokens == ["Bearer secret"]


def test_a_judge_goes_into_a_weighted_sum_alone_and_of_siblings(serve: Any) -> None:
    """0.5 for the exact answer, and 0.5 times the verdict; one sample that fails does so alone."""

    def answer(prompt: str) -> str | int:
        if "seven" in prompt and ";" not in prompt:
            return 401
        return scored(10) if ";" not in prompt else '{"reason": "", "scores": [10, 0, 10]}'

    service = serve(answer)
    weights = {"exact": 0.5, "judge": 0.5}
    alone = Weighted(scorers={"exact": Exact(), "judge": judge(service)}, weights=weights)
    assert not alone.whole_group
    assert [result.reward for result in score_group(alone, SAMPLES)] == [1.0, 0.5, None]
    of_all = judge(service, prompt=RANK, together="scores")
    siblings = Weighted(scorers={"exact": Exact(), "judge": of_all}, weights=weights)
    assert siblings.whole_group
    truthless = RewardSample(prompt="2+3=", response="x")
    results = score_group(siblings, [*SAMPLES[:2], truthless])
    assert [result.reward for result in results] == [1.0, 0.0, None]
    assert results[2].outcome.startswith("failed:ValueError: exact: failed:ValueError: the sample")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "{{ answer }}"}, "prompt asks for answer; a template may use columns"),
        ({"prompt": "{% if %}"}, "prompt is no Jinja template"),
        ({"prompt": RANK}, "prompt asks for samples"),
        ({"together": "best"}, "together must be null, scores or ranking, got 'best'"),
        ({"repeats": 0}, "repeats at least 1"),
        ({"sampling": {"model": "x"}}, "sampling may not hold model"),
        ({"judges": {}}, "at least one judge"),
        ({"verdict": {"type": "object"}}, "must have the required property 'score'"),
        ({"verdict": {"type": 3}}, "verdict is no JSON schema"),
    ],
)
def test_what_is_refused_when_it_is_built(options: dict[str, Any], message: str) -> None:
    judges = {"a": JudgeModel(url="http://x/v1", model="m")}
    with pytest.raises(ValueError, match=message):
        Judge(**{"judges": judges, "prompt": "{{ response }}"} | options)


@pytest.mark.parametrize(("member", "together"), [("judge", None), ("judge_ranking", "ranking")])
def test_the_shipped_prompts_show_what_is_judged(
    serve: Any, member: str, together: str | None
) -> None:
    verdict = {"reason": "", "score": 5} if together is None else {"reason": "", "ranking": [2, 1]}
    service = serve(lambda _: json.dumps(verdict))
    one = "reward.scorer.judges.judge"
    given = [f"reward={member}", f"{one}.url={service.url}", f"{one}.model=m"]
    raw, _ = compose(["experiment=tiny", *given])
    scorer = pickle.loads(pickle.dumps(instantiate(raw.reward.scorer, _convert_="all")))
    results = score_group(scorer, SAMPLES[:2] if together else SAMPLES[:1])
    prompt = service.bodies[0]["messages"][0]["content"]
    assert "Right answer: 5" in prompt
    assert "\n5\n</answer>" in prompt
    # Ranked twice, in both orders, with the second of the shown as the best: both earn a half.
    assert [result.reward for result in results] == ([0.5] if together is None else [0.5, 0.5])
