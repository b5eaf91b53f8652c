"""The adapters of hubs play rollouts over HTTP, against stand-ins of the hubs' interfaces.

Played by hand besides: verifiers 0.4.0 in an environment of its own.
"""

import asyncio
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from websockets.sync.server import serve

from tests.workers.rollout.endpoint.served import Engine, encoder
from workers.data.requests import Sampling
from workers.rollout.endpoint.agent import Agent, AgentError
from workers.rollout.environments.contract import Task
from workers.rollout.environments.guarded_play import EnvironmentClock
from workers.rollout.limits import RolloutLimits
from workers.rollout.session import Rollout
from workers.rollout.turn_texts import TurnTexts

AGENTS = Path(__file__).resolve().parents[2] / "deploy" / "agents"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def _local(monkeypatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")


def play(tokens, command, *answers, columns=None, **variables):
    """Outcome of a rollout that an adapter plays, and what the engine was asked."""
    task = Task(uid="p:2", prompt="play", ground_truth=None, columns=columns or {})
    texts, engine = TurnTexts(tokens), Engine(tokens, *answers)
    rollout = Rollout(
        task,
        texts.opening(task.prompt, None)[0],
        sampling=Sampling(max_tokens=400),
        limits=RolloutLimits(max_turns=3),
        texts=texts,
        sample=engine,
        clock=EnvironmentClock(stretch_s=60.0),
    )
    agent = Agent(command=f"{sys.executable} {AGENTS}/{command}", variables=variables)
    return asyncio.run(agent.prepare(tokens.tokenizer).play(task, rollout.first)), engine.asked


class Game:
    """Ends with the answer "stop"; each answer before it earns 0.5."""

    def __init__(self):
        self.turns = 0

    def reset(self, options):
        return {"observation": {"text": f"level {options.get('level', 0)}"}, "reward": None}

    def step(self, action):
        self.turns += 1
        done = action["move"] == "stop"
        text = {"text": f"seen {action['move']}", "board": [1]}
        return {"observation": text, "reward": 0.0 if done else 0.5, "done": done}


@contextmanager
def http_games():
    games = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/reset":
                games[body["episode_id"]] = Game()
                answer = games[body["episode_id"]].reset(body)
            else:
                answer = games[body["episode_id"]].step(body["action"])
            sent = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *words):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextmanager
def socket_games():
    """Speaks as an OpenEnv server does: a game lasts as long as its connection."""

    def one(socket):
        game = Game()
        for line in socket:
            message = json.loads(line)
            if message["data"].get("move") == "break":
                socket.send(json.dumps({"type": "error", "data": {"message": "no such move"}}))
                continue
            data = getattr(game, message["type"])(message["data"])
            socket.send(json.dumps({"type": "observation", "data": data}))

    with serve(one, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws"
        server.shutdown()


@pytest.mark.parametrize("games", [http_games, socket_games])
def test_reset_and_step_until_the_game_is_done(tokens, games):
    with games() as url:
        outcome, asked = play(
            tokens,
            f"reset_step.py {url} --action move --observation text",
            *("left", "stop"),
            columns={"reset": {"level": 7}},
        )
    assert (outcome.reward, outcome.turn_rewards) == (0.5, [0.5, 0.0])
    start, end = "<|im_start|>", "<|im_end|>"
    first = f"{start}user\nlevel 7{end}\n{start}assistant\n"
    assert asked == [first, f"{first}left{end}\n{start}user\nseen left{end}\n{start}assistant\n"]


def test_a_game_ends_with_the_budget_of_turns_and_keeps_what_it_earned(tokens):
    with http_games() as url:
        outcome, asked = play(
            tokens, f"reset_step.py {url} --action move --keep-prompt", *["left"] * 9
        )
    assert (outcome.reward, len(asked)) == (1.5, 3)
    assert asked[0].startswith("<|im_start|>user\nplay<|im_end|>")
    assert '"text": "level 0"' in asked[0]


def test_a_fault_of_the_game_is_the_reason_of_the_failure(tokens):
    with socket_games() as url, pytest.raises(AgentError, match="no such move"):
        play(tokens, f"reset_step.py {url} --action move", "break")


# The part of verifiers 0.4 that the adapter calls; the episode asks the model once.
VERIFIERS = """
import contextlib, json, os, urllib.request
from types import SimpleNamespace as Space

class EvalClientConfig(Space): pass
class ModelContext(Space): pass

class Environment:
    def __init__(self, config):
        self.config = config
        self.taskset = [f"say {number}" for number in range(3)]

    @contextlib.asynccontextmanager
    async def serving(self):
        yield

    async def run_episode(self, task, context):
        request = urllib.request.Request(
            context.client.base_url + "/chat/completions",
            data=json.dumps({
                "model": context.model, "messages": [{"role": "user", "content": task}],
            }).encode(),
            headers={"Authorization": "Bearer " + os.environ[context.client.api_key_var]},
        )
        said = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
        right = float(said == task[-1])
        trace = Space(errors=[], rewards={"exact": Space(value=right), "late": None},
                      metrics={"length": len(said)}, reward=right)
        broken = [Space(type="TaskError", message="no tool")] if said == "fail" else []
        return Space(ok=not broken, errors=broken, traces=[trace])
"""
LOADERS = """
from verifiers.v1 import Environment
def resolve_env_config(data):
    assert data == {"agent": {"harness": {"id": "null"}}, "taskset": {"id": "say"}}, data
    return data
def load_environment(config):
    return Environment(config)
"""


@pytest.fixture
def stand_in(tmp_path):
    package = tmp_path / "verifiers" / "v1" / "utils"
    package.mkdir(parents=True)
    (tmp_path / "verifiers" / "__init__.py").write_text("")
    (package.parent / "__init__.py").write_text(VERIFIERS)
    (package / "__init__.py").write_text("")
    (package / "loaders.py").write_text(LOADERS)
    return {"PYTHONPATH": str(tmp_path)}


SAY = """verifiers_environment.py say --env '{"agent": {"harness": {"id": "null"}}}'"""


def test_a_task_of_verifiers_is_played_and_scored_by_it(tokens, stand_in):
    outcome, asked = play(tokens, SAY, "2", **stand_in)
    assert (outcome.reward, outcome.parts["exact"], outcome.parts["length"]) == (1.0, 1.0, 1)
    assert "say 2" in asked[0]  # the row's number


def test_the_row_may_name_the_task(tokens, stand_in):
    outcome, asked = play(tokens, SAY, "2", columns={"task_index": 1}, **stand_in)
    assert (outcome.reward, "say 1" in asked[0]) == (0.0, True)


@pytest.mark.parametrize(
    ("said", "index", "reason"),
    [("fail", 0, "TaskError: no tool"), ("2", 9, "the taskset has no task number 9")],
)
def test_an_episode_that_fails_is_a_failed_sample(tokens, stand_in, said, index, reason):
    with pytest.raises(AgentError, match=reason):
        play(tokens, SAY, said, columns={"task_index": index}, **stand_in)
