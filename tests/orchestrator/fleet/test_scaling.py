"""What `ballast scale` writes and what a driver answers, both ends real, no cluster."""

import json
import threading

import pytest

from orchestrator.cli.parser import main
from orchestrator.fleet.scaling import (
    NoAnswerError,
    ScaleRefusedError,
    ScaleRequests,
    request_engines,
)


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.yaml").write_text("run_name: a\n")
    return tmp_path


class Driver:
    """Answers the next request with the given words, one after the other."""

    def __init__(self, requests, *words):
        self.asked = []
        self._thread = threading.Thread(target=self._run, args=(requests, words))
        self._thread.start()

    def _run(self, requests, words):
        while (request := requests.next()) is None:
            pass
        self.asked.append(request.engines)
        for status, message in words:
            requests.answer(request, status, message)

    def join(self):
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


def test_a_request_is_followed_to_its_end(run_dir):
    said = []
    with ScaleRequests(run_dir) as requests:
        driver = Driver(requests, ("done", "3 engines, 3 of them sampling"))
        assert (
            request_engines(run_dir, 3, timeout_s=20, print_line=said.append)
            == "3 engines, 3 of them sampling"
        )
        driver.join()
        assert driver.asked == [3]
        assert requests.next() is None  # once is enough


def test_a_refusal_is_an_exit_code_and_a_reason(run_dir, capsys):
    with ScaleRequests(run_dir) as requests:
        driver = Driver(requests, ("refused", "needs 49 x {CPU: 1}"))
        assert main(["scale", "--engines", "50", "--timeout", "20", str(run_dir)]) == 2
        driver.join()
    assert capsys.readouterr().err == "ballast scale: needs 49 x {CPU: 1}\n"


def test_nobody_waits_for_a_job_that_does_not_run(run_dir):
    with pytest.raises(NoAnswerError, match="has not answered after 1 s: does it run?"):
        request_engines(run_dir, 2, timeout_s=1, print_line=print)
    with ScaleRequests(run_dir) as requests:
        assert requests.next() is None  # what was given up is not done later


def test_what_is_open_when_a_job_begins_or_ends_is_refused(run_dir):
    folder = run_dir / "scale"
    folder.mkdir()
    (folder / "1.request.json").write_text(json.dumps({"id": "1", "engines": 2}))
    with ScaleRequests(run_dir) as requests:
        assert requests.next() is None
        (folder / "2.request.json").write_text(json.dumps({"id": "2", "engines": 2}))
        requests.answer(requests.next(), "working", "1 -> 2")
        (folder / "3.request.json").write_text("{garbage")
        assert requests.next() is None
    answers = [json.loads((folder / f"{k}.answer.json").read_text()) for k in (1, 2)]
    assert [answer["status"] for answer in answers] == ["refused", "refused"]
    assert "was not running" in answers[0]["message"]
    assert answers[1]["message"] == "the job has ended"


@pytest.mark.parametrize(("engines", "message"), [(0, "needs at least one"), (-1, "--engines -1")])
def test_no_engine_at_all_is_no_number(run_dir, engines, message):
    with pytest.raises(ScaleRefusedError, match=message):
        request_engines(run_dir, engines, timeout_s=1, print_line=print)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ScaleRefusedError, match=r"is no run's folder: it has no config\.yaml"):
        request_engines(tmp_path, 2, timeout_s=1, print_line=print)
