"""The server of a judge's engine: started again at its address, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from workers.engines.judge import server
from workers.engines.judge.server import KeptServer, free_port

# Answers /health, and has a process below it, as vLLM's server has. With the word "mute" it is
# silent after its first answer, in its first life.
FAKE = """
import os, pathlib, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
port, mark, word = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with mark.open("a") as file:
    file.write(f"{os.getpid()} {below.pid}\\n")
first = len(mark.read_text().splitlines()) == 1
answers = 0
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        global answers
        answers += 1
        if word == "mute" and first and answers > 1:
            self.send_response(503)
        else:
            self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Lives:
    """The server under test, and the process ids of each of its lives."""

    def __init__(self, folder: Path, word: str = "", **options: Any) -> None:
        self.mark, self.port = folder / "lives", unused_port()
        command = [sys.executable, "-c", FAKE, str(self.port), str(self.mark), word]
        given = {"silence_s": 60.0, "env": dict(os.environ), "log": folder / "log"} | options
        self.server = KeptServer(command, host="127.0.0.1", port=self.port, **given)

    def pids(self) -> list[list[int]]:
        lines = self.mark.read_text().splitlines() if self.mark.exists() else []
        return [[int(word) for word in line.split()] for line in lines]

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health").status == 200
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PROBE_S", 0.05)
    monkeypatch.setattr(server, "HEALTH_S", 0.2)
    monkeypatch.setattr(server, "SHORTEST_PAUSE_S", 0.05)
    monkeypatch.setattr(server, "PORT_S", 0.2)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Lives]]:
    made: list[Lives] = []

    def start(*words: str, **options: Any) -> Lives:
        made.append(Lives(tmp_path, *words, **options))
        return made[-1]

    yield start
    for lives in made:
        lives.server.close()


def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pids: list[int]) -> bool:
    return all(
        not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        for pid in pids
    )


def test_a_killed_server_is_started_again_at_its_address(serve: Any) -> None:
    lives = serve()
    lives.server.wait(20.0)
    (first,) = lives.pids()
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(lives.pids()) == 2 and lives.answers())
    assert gone(first)  # what stood below it went with it
    assert lives.server.num_starts == 2
    lives.server.close()
    until(lambda: gone(lives.pids()[1]))
    assert len(lives.pids()) == 2


def test_a_server_that_falls_silent_is_started_again(serve: Any) -> None:
    lives = serve("mute", silence_s=0.3)
    lives.server.wait(20.0)
    until(lambda: len(lives.pids()) == 2 and lives.answers())
    assert gone(lives.pids()[0])


def test_a_server_that_ends_while_it_starts_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model: /models/judge')"]
    kept = KeptServer(
        command,
        env=dict(os.environ),
        host="127.0.0.1",
        port=unused_port(),
        log=tmp_path / "judge.0.log",
        silence_s=60.0,
    )
    try:
        with pytest.raises(RuntimeError, match="ended while it started.*no such model: /models/"):
            kept.wait(20.0)
    finally:
        kept.close()


OWNER = """
import os, sys, time
from pathlib import Path
from tests.workers.engines.judge.test_server import Lives
lives = Lives(Path(sys.argv[1]))
lives.server.wait(20.0)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kills_children", [False, True])
def test_the_server_ends_with_the_process_that_keeps_it(
    tmp_path: Path, kills_children: bool
) -> None:
    """Ray kills the children of a worker that ends, and with them the guard of the server."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    (pids,) = [
        [int(word) for word in line.split()]
        for line in (tmp_path / "lives").read_text().splitlines()
    ]
    assert not gone(pids)
    (guard,) = psutil.Process(owner.pid).children()
    owner.kill()
    if kills_children:
        guard.kill()
    owner.wait()
    until(lambda: gone(pids))


def test_the_first_free_port_is_taken_and_none_is_an_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, free = other.getsockname()[1], unused_port()
        assert free_port("127.0.0.1", [taken, free]) == free
        with pytest.raises(RuntimeError, match="no port of"):
            free_port("127.0.0.1", [taken])
