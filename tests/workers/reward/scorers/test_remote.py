"""A service's scores, its repeats, and its failures, which are never a zero."""

from __future__ import annotations

import json
import runpy
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from workers.reward.base import RewardResult, RewardSample, reads_images, score_group
from workers.reward.scorers.remote import Http, data_url

ROOT = Path(__file__).parents[4]
PAIR = [
    RewardSample(prompt="2+3=", response="5", ground_truth="5", columns={"level": 1}),
    RewardSample(prompt="2+3=", response="6", ground_truth="5"),
]


class Service:
    """Server that gives the listed answers, (status, body), one after another."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[Any] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                service.asked.append(json.loads(self.rfile.read(length)))
                status, content = service.answers.pop(0)
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def score(
        self, *answers: tuple[int, Any], of: Sequence[RewardSample] = PAIR, **options: Any
    ) -> list[RewardResult]:
        self.answers = list(answers)
        url = f"http://127.0.0.1:{self.server.server_port}/score"
        return score_group(Http(url=url, **{"pause_s": 0.01, **options}), of)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_siblings_are_one_request_and_keep_their_order(service: Service) -> None:
    scores = [{"reward": 0.9, "correct": True, "why": "same"}, None]
    first, second = service.score((200, {"scores": scores}))
    assert (first.reward, first.parts, first.notes) == (0.9, {"correct": 1.0}, {"why": "same"})
    assert second.outcome == "dropped:abstained"
    (asked,) = service.asked
    assert asked["samples"][0] == {
        "prompt": "2+3=",
        "response": "5",
        "ground_truth": "5",
        "columns": {"level": 1},
        "messages": [],
    }


#: a file of one black pixel
DOT = (
    b"GIF87a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00"
    b"\x01\x00\x00\x02\x02D\x01\x00;"
)


def test_images_that_siblings_share_are_sent_once(service: Service) -> None:
    shown = [replace(PAIR[0], images=(DOT, b"?")), replace(PAIR[1], images=(b"?",))]
    service.score((200, {"scores": [1, 0]}), of=shown, send_images=True)
    service.score((200, {"scores": [1, 0]}), of=shown)
    asked, plain = service.asked
    dot, other = asked["images"]
    assert dot.startswith("data:image/gif;base64,R0lGODdhAQABAI")
    assert other == "data:application/octet-stream;base64,Pw=="
    assert [sample["images"] for sample in asked["samples"]] == [[0, 1], [1]]
    assert "images" not in plain
    assert "images" not in plain["samples"][0]


def test_a_run_without_images_sends_none(service: Service) -> None:
    service.score((200, {"scores": [1, 0]}), send_images=True)
    (asked,) = service.asked
    assert (asked["images"], asked["samples"][0]["images"]) == ([], [])


def test_only_a_service_that_is_to_see_images_gets_them() -> None:
    assert reads_images(Http(url="http://x/", send_images=True))
    assert not reads_images(Http(url="http://x/"))


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_asked_again(service: Service, status: int) -> None:
    good = (200, {"scores": [1, 0]})
    results = service.score((status, {}), (status, {}), good)
    assert [result.reward for result in results] == [1.0, 0.0]
    assert len(service.asked) == 3


@pytest.mark.parametrize(
    ("answers", "message", "num_asked"),
    [
        ([(503, {})] * 3, "answered 503", 3),
        ([(401, {"error": "wrong token"})], "answered 401", 1),
        ([(200, b"<html>")], 'must answer {"scores": [...]}', 1),
        ([(200, {"rewards": [1, 0]})], 'must answer {"scores": [...]}', 1),
        ([(200, {"scores": [1]})], "2 samples need as many scores, got 1", 1),
    ],
)
def test_a_service_that_gives_no_scores_fails_the_samples(
    service: Service, answers: list[tuple[int, Any]], message: str, num_asked: int
) -> None:
    results = service.score(*answers, max_repeats=2)
    assert [result.reward for result in results] == [None, None]
    assert all(message in result.outcome for result in results)
    assert len(service.asked) == num_asked


def test_a_service_that_is_not_there_fails_the_samples() -> None:
    scorer = Http(url="http://127.0.0.1:9/", max_repeats=1, pause_s=0.01)
    results = score_group(scorer, PAIR)
    assert all("no answer from http://127.0.0.1:9/" in result.outcome for result in results)


def test_the_server_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    program = runpy.run_path(str(ROOT / "tests/tutorials/reward_server.py"))
    server = program["make_server"](0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    try:
        results = score_group(Http(url=url, token_variable="REWARD_TOKEN"), PAIR)
        refused = score_group(Http(url=url), PAIR)
    finally:
        server.shutdown()
        server.server_close()
    assert [result.reward for result in results] == [1.0, 0.0]
    assert results[0].parts == {"correct": 1.0}
    assert all("answered 401" in result.outcome for result in refused)


def test_the_server_to_copy_gives_each_sample_the_files_of_its_images() -> None:
    program = runpy.run_path(str(ROOT / "tests/tutorials/reward_server.py"))
    request = {"samples": [{"images": [1, 0]}, {"images": []}], "images": [data_url(DOT), "data:,"]}
    assert program["read_samples"](request) == [{"images": [b"", DOT]}, {"images": []}]
    assert program["read_samples"]({"samples": [{}]}) == [{"images": []}]


def test_what_is_refused_when_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="url must be http"):
        Http(url="localhost:8900")
    with pytest.raises(ValueError, match="request_s must be positive"):
        Http(url="http://x/", request_s=0)
    monkeypatch.delenv("NO_TOKEN", raising=False)
    with pytest.raises(ValueError, match="environment variable is not set"):
        Http(url="http://x/", token_variable="NO_TOKEN").prepare()
