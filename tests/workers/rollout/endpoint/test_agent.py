"""Rollouts that programs play: what comes back, and what a bad program costs."""

import asyncio
import sys
import textwrap
import time

import psutil
import pytest

from tests.workers.rollout.endpoint.served import Engine, encoder
from workers.data.requests import Sampling
from workers.rollout.endpoint.agent import Agent
from workers.rollout.environments.contract import Task
from workers.rollout.environments.guarded_play import (
    EnvironmentClock,
    EnvironmentFaultError,
    play_guarded,
)
from workers.rollout.environments.guessing import Guessing
from workers.rollout.environments.unended import Unended
from workers.rollout.limits import RolloutLimits
from workers.rollout.session import Rollout
from workers.rollout.turn_texts import TurnTexts

# A client that knows the protocol and nothing of this project.
CLIENT = """
import json, os, sys, urllib.request
TASK = json.load(open(os.environ["BALLAST_TASK"]))
def complete(prompt, **more):
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/completions",
        data=json.dumps({"prompt": prompt, **more}).encode(),
        headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
    )
    return json.load(urllib.request.urlopen(request))["choices"][0]["text"]
def result(**values):
    json.dump(values, open(os.environ["BALLAST_RESULT"], "w"))
"""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def _local(monkeypatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")


@pytest.fixture
def program(tmp_path):
    """Writes the program of an agent; returns the environment that plays."""

    def write(source, *, name="agent.py", **settings):
        path = tmp_path / name
        path.write_text(CLIENT + textwrap.dedent(source))
        agent = Agent(command=f"{sys.executable} -S {path}", **settings)
        return agent.prepare(tokenizer=None)

    return write


def rollout_of(tokens, *answers, stretch_s=30.0):
    texts, clock = TurnTexts(tokens), EnvironmentClock(stretch_s=stretch_s)
    task = Task(uid="p:0", prompt="guess:", ground_truth="7", columns={"level": 1})
    engine = Engine(tokens, *answers)
    rollout = Rollout(
        task,
        texts.opening(task.prompt, None)[0],
        sampling=Sampling(max_tokens=100),
        limits=RolloutLimits(max_turns=4),
        texts=texts,
        sample=engine,
        clock=clock,
    )
    return task, rollout, clock, engine


def play(agent, tokens, *answers, stretch_s=30.0):
    task, rollout, clock, _ = rollout_of(tokens, *answers, stretch_s=stretch_s)
    outcome = asyncio.run(play_guarded(agent, task, rollout.first, clock, Unended()))
    return outcome, rollout


def test_a_program_plays_two_turns_and_scores_itself(program, tokens):
    agent = program("""
        first = complete(TASK["prompt"])
        second = complete(TASK["prompt"] + first + " higher:")
        result(reward=float(second == TASK["ground_truth"]), turn_rewards=[0.0, 1.0],
               parts={"level": TASK["columns"]["level"]}, notes={"first": first})
    """)
    outcome, rollout = play(agent, tokens, "5", "7")
    assert (outcome.reward, outcome.turn_rewards, outcome.notes) == (
        1.0,
        (0.0, 1.0),
        {"first": "5"},
    )
    assert outcome.parts["level"] == 1 and outcome.parts["agent_s"] > 0
    (row,) = rollout.rows()
    assert tokens.decode(row.tokens) == "guess:5<|im_end|> higher:7<|im_end|>"


def test_a_program_asks_the_engine_for_what_the_environment_asks_for(program, tokens):
    """The same ids, turns and bounds, and so the same bits of an engine."""
    agent = program("""
        history, hidden, reward = TASK["prompt"], int(TASK["ground_truth"]), 0.0
        for turn in range(4):
            said = complete(history, temperature=0.3, model="any")
            if said.isdigit() and int(said) == hidden:
                reward = 1.0
                break
            history += said + ("?" if not said.isdigit() else "<" if int(said) > hidden else ">")
        result(reward=reward)
    """)

    async def one(environment):
        task, rollout, clock, engine = rollout_of(tokens, "9", "what", "5", "7")
        outcome = await play_guarded(environment, task, rollout.first, clock, Unended())
        (row,) = rollout.rows()
        columns = (row.tokens, row.loss_mask, row.rollout_logprobs, row.weight_versions)
        return outcome.reward, len(row.turns), columns, engine.asked, engine.settings

    inside, outside = asyncio.run(one(Guessing(high=9))), asyncio.run(one(agent))
    assert inside == outside
    end = "<|im_end|>"
    assert inside[3][-1] == f"guess:9{end}<what{end}?5{end}>"
    assert inside[:2] == (1.0, 4)


def test_without_a_result_the_scorer_gets_the_last_answer(program, tokens):
    agent = program("complete(TASK['prompt']); complete('another prompt')")
    outcome, _ = play(agent, tokens, "5", "7")
    assert (outcome.reward, outcome.response) == (None, "7")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("complete('q'); print('no luck', flush=True); sys.exit(3)", "exit code 3 .*no luck"),
        ("complete('q'); os.kill(os.getpid(), 9)", "exit code -9"),
        ("print('idle')", "ended without a turn.*idle"),
        ("complete('q'); open(os.environ['BALLAST_RESULT'], 'w').write('{')", "not JSON"),
        ("complete('q'); result(score=1.0)", "no object of notes, parts, response, reward"),
        ("complete('q'); result(reward='high')", "reward of type str"),
        ("complete('q'); result(parts=[1])", "parts that are no object"),
        ("[complete('q', n=2) for _ in range(9)]", "HTTP Error 400"),
        (
            "import urllib.error\nfor _ in range(20):\n  try: complete('q', n=2)\n"
            "  except urllib.error.HTTPError: pass\nimport time; time.sleep(60)",
            "more than 8 requests",
        ),
    ],
)
def test_a_program_that_fails_costs_its_sample_and_says_why(program, tokens, source, reason):
    agent = program(source, max_calls=8)
    began = time.monotonic()
    with pytest.raises(EnvironmentFaultError, match=reason):
        play(agent, tokens, *"5" * 9)
    assert time.monotonic() - began < 20.0


def test_a_program_that_hangs_is_ended_and_its_output_is_in_the_reason(program, tokens):
    agent = program("complete('q'); print('thinking', flush=True); import time; time.sleep(60)")
    with pytest.raises(EnvironmentFaultError, match="took longer than 4 s; .*thinking"):
        play(agent, tokens, "5", stretch_s=4.0)


def test_a_turn_beyond_the_budget_is_refused_and_the_rollout_is_kept(program, tokens):
    agent = program("""
        import urllib.error
        try:
            for number in range(9): complete(f"question {number}")
        except urllib.error.HTTPError as error:
            result(reward=0.5, notes={"code": json.load(error)["error"]["code"]})
    """)
    outcome, rollout = play(agent, tokens, *"123456789")
    assert (outcome.reward, outcome.notes["code"]) == (0.5, "budget_spent")
    assert len(rollout.rows()) == 4


def test_a_fault_of_the_engine_ends_the_program_and_is_not_its_fault(program, tokens):
    agent = program("complete('q')\nimport time; time.sleep(60)")
    with pytest.raises(OSError, match="engine gone"):
        play(agent, tokens, OSError("engine gone"))


def test_a_rollout_that_is_aborted_ends_its_program(program, tokens, tmp_path):
    agent = program(f"""
        complete('q')
        open({str(tmp_path / "id")!r}, "w").write(str(os.getpid()))
        import time; time.sleep(60)
    """)

    async def abort():
        task, rollout, clock, _ = rollout_of(tokens, "5")
        playing = asyncio.create_task(play_guarded(agent, task, rollout.first, clock, Unended()))
        while not (tmp_path / "id").exists() or not (tmp_path / "id").read_text():
            await asyncio.sleep(0.01)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        return rollout

    assert len(asyncio.run(abort()).turns) == 1  # what was finished stays
    assert not psutil.pid_exists(int((tmp_path / "id").read_text()))


def test_a_program_that_blocks_slows_no_other(program, tokens):
    """Eight programs play while one hangs and one floods its output."""
    quick = program("for n in range(3): complete(f'q{n}')", name="quick.py")
    hangs = program("complete('q')\nimport time; time.sleep(60)", name="hangs.py")
    floods = program("complete('q')\nwhile True: os.write(1, b'x' * 65536)", name="floods.py")

    async def one(agent):
        task, rollout, clock, _ = rollout_of(tokens, *"123", stretch_s=3.0)
        return await play_guarded(agent, task, rollout.first, clock, Unended())

    async def together():
        bad = [asyncio.create_task(one(agent)) for agent in (hangs, floods)]
        good = await asyncio.gather(*(one(quick) for _ in range(8)))
        still = [task.done() for task in bad]
        return good, still, await asyncio.gather(*bad, return_exceptions=True)

    good, still, bad = asyncio.run(together())
    assert [outcome.response for outcome in good] == ["3"] * 8
    assert still == [False, False]
    assert all(isinstance(error, EnvironmentFaultError) for error in bad)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"command": " "}, "command is empty"),
        ({"command": "a 'b"}, "can't be split"),
        ({"command": "a", "max_calls": 0}, "max_calls must be positive, got 0"),
    ],
)
def test_settings_that_can_not_work_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Agent(**settings)


def test_variables_of_a_configuration_reach_the_program_as_texts(program, tokens):
    agent = program(
        """
        complete("q")
        result(reward=0.0, notes={name: os.environ[name] for name in ("LEVEL", "SLOW")})
        assert "NONE" not in os.environ
        """,
        variables={"LEVEL": 3, "SLOW": True, "NONE": None},
    )
    outcome, _ = play(agent, tokens, "5")
    assert outcome.notes == {"LEVEL": "3", "SLOW": "True"}
