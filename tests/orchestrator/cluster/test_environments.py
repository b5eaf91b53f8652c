"""A source and a held-out set may name their own environment; all are built before the start."""

import pytest
from hydra.utils import instantiate

from conf.compose import ConfigError, compose
from orchestrator.cluster.environments import build_environments
from orchestrator.planning import plan
from orchestrator.planning.sources import prompt_sets
from orchestrator.supply.ledger import Ledger
from orchestrator.supply.producer import Producer
from workers.rollout.environments.guessing import Guessing
from workers.rollout.environments.single_turn import SingleTurn
from workers.rollout.limits import RolloutLimits
from workers.rollout.tools.environment import ToolEnvironment

MIXED = """# @package _global_
defaults: [tiny, {override /data: files}]
data:
  max_prompt_tokens: 16
  sources:
    - {name: quiz, path: quiz.jsonl}
    - name: steps
      path: steps.jsonl
      environment:
        player:
          _target_: workers.rollout.tools.environment.ToolEnvironment
          tool_parser: pythonic
          toolsets:
            calculator:
              _target_: workers.rollout.tools.toolset.Functions
              paths: [workers.rollout.tools.calculator.calculate]
        max_turns: 3
        max_turn_tokens: 2
        time_s: 7.5
evaluation:
  sets:
    plain: {path: steps.jsonl}
    game:
      path: quiz.jsonl
      environment:
        player: {_target_: workers.rollout.environments.guessing.Guessing, low: 0, high: 5}
        max_turns: 2
"""


@pytest.fixture
def composed(tmp_path, monkeypatch):
    """Compose the mixed run, with overrides and changes of its text."""
    monkeypatch.chdir(tmp_path)
    for name in ("quiz", "steps"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1+1=", "ground_truth": "2"}\n' * 3)

    def run(*overrides, **changes):
        (tmp_path / "experiment").mkdir(exist_ok=True)
        text = MIXED
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "experiment" / "mixed.yaml").write_text(text)
        return compose(["experiment=mixed", *overrides], config_dir=str(tmp_path))

    return run


def test_every_environment_has_its_own_player_and_budgets(composed):
    found = build_environments(composed("cluster.timeouts.environment_s=9")[1])
    assert list(found) == ["", "data.sources.steps", "evaluation.sets.game"]
    assert found[""].environment == SingleTurn()
    assert found[""].limits == RolloutLimits(max_turns=1, stretch_s=9.0)
    assert isinstance(found["data.sources.steps"].environment, ToolEnvironment)
    assert found["data.sources.steps"].limits == RolloutLimits(
        max_turns=3, max_turn_tokens=2, stretch_s=9.0, total_s=7.5
    )
    assert found["evaluation.sets.game"].environment == Guessing(low=0, high=5)


def test_the_rows_of_a_source_carry_its_environment_to_the_engines(composed):
    _, config = composed("trainer.prompts_per_step=6", "data.shuffle=false")
    prompts, _ = prompt_sets(config.data)
    sent = []

    class Engines:
        def submit(self, requests):
            sent.extend(requests)

    producer = Producer(Engines(), prompts, Ledger(prompts, seed=0, shuffle=False), config)
    producer._begin(6, version=0)
    played = {request.prompt_uid: request.environment for request in sent}
    assert played == {
        **{f"quiz:{row}": "" for row in range(3)},
        **{f"steps:{row}": "data.sources.steps" for row in range(3)},
    }


def test_the_plan_has_a_line_for_each_and_notes_name_the_right_key(composed):
    raw, config = composed(max_turn_tokens="# max_turn_tokens")
    algorithm = instantiate(raw.algorithm, _convert_="all")
    text = plan.describe(config, algorithm)
    assert "data.sources.steps: up to 3 turns, together 5 tokens behind the prompt" in text
    assert "evaluation.sets.game: up to 2 turns" in text
    assert "data.sources.steps.environment.max_turn_tokens  null, so one turn" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_turns: 3": "max_turns: 0"}, r"data.sources\[1\].environment.max_turns=0"),
        ({"time_s: 7.5": "time: 7.5"}, "time"),
        (
            {"{_target_: workers.rollout.environments.guessing.Guessing, low: 0, high: 5}": "null"},
            "evaluation.sets.game.environment.player=None: must name a class",
        ),
        (
            {"{_target_: workers.rollout.environments.guessing.Guessing, low: 0, high: 5}": "???"},
            "evaluation.sets.game.environment.player has no value",
        ),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(composed, changes, message):
    with pytest.raises(ConfigError, match=message):
        composed(**changes)


def test_a_player_that_refuses_its_values_is_named_with_its_source(composed):
    _, config = composed(**{"tool_parser: pythonic": "tool_parser: pythonic\n          time_s: 0"})
    with pytest.raises(ValueError, match=r"^data.sources.steps: .*time_s=0 must be positive"):
        build_environments(config)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            {"max_turns: 3": "max_turns: 3\n        isolation: process"},
            r"^data.sources.steps.environment.isolation=process: ToolEnvironment has a method",
        ),
        (
            {"max_turns: 2": "max_turns: 2\n        isolation: process"},
            r"^evaluation.sets.game.environment.isolation=process: Guessing never blocks",
        ),
    ],
)
def test_a_process_for_each_rollout_is_refused_where_none_can_be_or_none_is_of_use(
    composed, added, message
):
    _, config = composed(**added)
    with pytest.raises(ValueError, match=message):
        build_environments(config)


def test_the_default_environment_is_refused_by_the_key_of_the_run(composed):
    _, config = composed("environment.isolation=process")
    with pytest.raises(ValueError, match=r"^environment.isolation=process: SingleTurn never"):
        build_environments(config)
    with pytest.raises(ConfigError, match="environment.isolation='forks': must be one of thread"):
        composed("environment.isolation=forks")


def test_an_environment_of_ones_own_may_have_a_process_for_each_rollout(composed, tmp_path):
    (tmp_path / "mine.py").write_text("async def play(task, session):\n    pass\n")
    player = f"environment.player.path={tmp_path / 'mine.py'}:play"
    raw, config = composed("environment=function", player, "environment.isolation=process")
    assert build_environments(config)[""].isolation == "process"
    text = plan.describe(config, instantiate(raw.algorithm, _convert_="all"))
    assert "what is observed included; each in a process of its own" in text
