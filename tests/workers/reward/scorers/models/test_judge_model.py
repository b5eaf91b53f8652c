"""A judge has a service or the run's own engines, whose addresses are filled in and shared."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from workers.reward.base import RewardSample, score_group
from workers.reward.scorers.by_column import ByColumn
from workers.reward.scorers.exact import Exact
from workers.reward.scorers.models.judge import Judge
from workers.reward.scorers.models.judge_model import JudgeEngines, JudgeModel, on_engines
from workers.reward.scorers.weighted import Weighted
from workers.reward.service import Patience

URLS = ("http://10.0.0.1:20001/v1", "http://10.0.0.2:20002/v1")
ENGINES = JudgeEngines(urls=URLS, model="/models/judge", token_variable="BALLAST_JUDGE_KEY")
OWN = JudgeModel()
SERVICE = JudgeModel(url="http://localhost:8000/v1", model="qwen")


def judge(**judges: JudgeModel) -> Judge:
    return Judge(
        judges=judges,
        prompt="{{ prompt }}{{ response }}",
        patience=Patience(request_s=5.0, max_repeats=0, pause_s=0.01),
    )


def test_the_runs_own_engines_are_filled_in_and_services_stay() -> None:
    filled = on_engines(judge(own=OWN, other=SERVICE), ENGINES)
    assert filled.judges["other"] == SERVICE
    assert filled.judges["own"] == JudgeModel(
        engines=URLS, model="/models/judge", token_variable="BALLAST_JUDGE_KEY"
    )
    assert (OWN.waits, filled.judges["own"].waits, SERVICE.waits) == (True, False, False)


def test_they_are_filled_into_combined_scorers() -> None:
    both = Weighted(
        scorers={"judge": judge(own=OWN), "exact": Exact()},
        weights=dict.fromkeys(("judge", "exact"), 1),
    )
    rows = ByColumn(scorers={"aime": Exact()}, other=both)
    assert rows.check is not None  # it can't be tried before the engines run
    filled = on_engines(rows, ENGINES)
    assert filled.other.scorers["judge"].judges["own"].engines == URLS
    assert filled.other.weights == {"judge": 1.0, "exact": 1.0}
    assert filled.check is None
    assert on_engines(Exact(), ENGINES) == Exact()


@pytest.mark.parametrize("given", [{"model": "qwen"}, {"token_variable": "KEY"}])
def test_a_judge_of_the_run_has_no_other_model_and_no_other_token(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="the run's own engines serve it"):
        JudgeModel(**given)


def test_a_service_needs_the_name_of_its_model() -> None:
    with pytest.raises(ValueError, match="model of the judge at http://x/v1"):
        JudgeModel(url="http://x/v1")


def test_a_judge_without_engines_is_not_asked() -> None:
    with pytest.raises(ValueError, match="judge own has no url, and no engine"):
        judge(own=OWN).prepare()


def test_equal_calls_go_to_one_engine_and_different_calls_to_all() -> None:
    own = OWN.on(ENGINES)
    assert own.addresses("a call") == own.addresses("a call")
    assert sorted(own.addresses("a call")) == sorted(URLS)
    first = Counter(own.addresses(f"call {number}")[0] for number in range(1000))
    assert min(first[url] for url in URLS) > 400
    assert SERVICE.addresses("a call") == ["http://localhost:8000/v1"]


class Eight(BaseHTTPRequestHandler):
    """Gives every response the score 8."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        verdict = json.dumps({"reason": "so", "score": 8})
        content = json.dumps({"choices": [{"message": {"content": verdict}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def living() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Eight)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_where_one_engine_is_gone_another_is_asked(
    living: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALLAST_JUDGE_KEY", "secret")
    samples = [RewardSample(prompt="2+3=", response=f"{n}", ground_truth="5") for n in range(8)]
    dead = "http://127.0.0.1:9/v1"
    two = JudgeEngines(urls=(dead, living), model="m", token_variable="BALLAST_JUDGE_KEY")
    results = score_group(on_engines(judge(own=OWN), two), samples)
    assert {result.reward for result in results} == {0.8}
    none = JudgeEngines(urls=(dead,), model="m", token_variable="BALLAST_JUDGE_KEY")
    (result,) = score_group(on_engines(judge(own=OWN), none), samples[:1])
    assert result.reward is None  # never a zero
    assert result.outcome.startswith("failed:RuntimeError: judge own: no answer from")
