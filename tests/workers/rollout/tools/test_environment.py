"""Rollouts with tools: real processes, vLLM's own parser, and an engine that follows a script."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from workers.data.prompts import PromptEncoder
from workers.data.requests import Sample, Sampling
from workers.models.tokenizer import build_tokenizer
from workers.rollout.environments.contract import Outcome, Task
from workers.rollout.environments.guarded_play import EnvironmentClock
from workers.rollout.environments.preparing import prepared
from workers.rollout.environments.single_turn import SingleTurn
from workers.rollout.limits import RolloutLimits
from workers.rollout.session import Rollout
from workers.rollout.tools.environment import ToolEnvironment, ToolFaultError, ToolPlayer
from workers.rollout.tools.toolset import Functions
from workers.rollout.turn_texts import TurnTexts

NAMES = ("add", "divide", "die", "sleep", "flood")
TOOLS = Functions(paths=[f"tests.workers.rollout.tools.hostile.{name}" for name in NAMES])
SETTINGS = ToolEnvironment(
    toolsets={"tools": TOOLS, "none": None},
    tool_parser="pythonic",
    max_calls=3,
    max_output_bytes=40,
    time_s=2.0,
    num_processes=2,
)
END = "<|im_end|>"
TASK = Task(uid="p:0", prompt=[{"role": "user", "content": "2+3?"}], ground_truth="5")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(model_max_length=512).save_pretrained(folder)
    return PromptEncoder(folder, 100)


@pytest.fixture(scope="module")
def player(encoder: PromptEncoder) -> Iterator[ToolPlayer]:
    player = SETTINGS.prepare(encoder.tokenizer)
    yield player
    player.pool.close()


def open_rollout(
    encoder: PromptEncoder, turns: list[str], *, max_turns: int = 4, max_tokens: int = 400
) -> Rollout:
    """Return a rollout whose engine says `turns`, each closed by the end token."""
    told = iter(turns)

    async def sample(tokens: list[int], turn: int, sampling: Sampling, images) -> Sample:
        text = next(told)
        ids = encoder.continuation(text + END)
        return Sample(
            tokens=ids,
            logprobs=[-0.5] * len(ids),
            weight_versions=[1] * len(ids),
            finish_reason="stop",
            text=text,
        )

    return Rollout(
        TASK,
        encoder.encode(TASK.prompt)[0],
        sampling=Sampling(max_tokens=max_tokens),
        limits=RolloutLimits(max_turns=max_turns),
        texts=TurnTexts(encoder),
        sample=sample,
        clock=EnvironmentClock(stretch_s=60.0),
    )


def play(
    player: ToolPlayer, encoder: PromptEncoder, *turns: str, **limits: int
) -> tuple[Outcome, str]:
    """Return the outcome, and all text that the policy saw behind its first turn."""
    rollout = open_rollout(encoder, list(turns), **limits)
    ended = asyncio.run(player.play(TASK, rollout.first))
    text = encoder.decode(list(rollout.first.tokens))
    return ended, text.split(turns[0], 1)[1]


def shown(text: str) -> str:
    return f"{END}\n<|im_start|>tool\n{text}{END}\n<|im_start|>assistant\n"


def test_a_call_is_made_its_result_is_shown_and_the_answer_is_what_the_scorer_sees(
    player: ToolPlayer, encoder: PromptEncoder
):
    ended, text = play(player, encoder, "[add(a=2,b=3)]", "5")
    assert text == shown("5") + "5" + END
    assert ended == Outcome(response="5", parts={"tool_calls": 1.0, "tool_errors": 0.0})


def test_only_what_the_policy_sampled_trains(player: ToolPlayer, encoder: PromptEncoder):
    rollout = open_rollout(encoder, ["[add(a=2,b=3)]", "5"])
    asyncio.run(player.play(TASK, rollout.first))
    (row,) = rollout.rows()
    trained = [t for t, trains in zip(row.tokens, row.loss_mask, strict=True) if trains]
    assert encoder.decode(trained) == f"[add(a=2,b=3)]{END}5{END}"


@pytest.mark.parametrize(
    ("turn", "seen", "calls", "errors"),
    [
        ("[add(a=2), add(a=5)]", shown("3").removesuffix("<|im_start|>assistant\n"), 2, 0),
        ("[add(b=2)]", shown("error: a: field required"), 1, 1),
        ("[lookup(a=2)]", shown("error: there is no tool 'lookup', only a"), 1, 1),
        ("[add(a=", shown("error: not a call that can be read"), 0, 1),
        ("[divide(a=0)]", shown("error: zerodivisionerror: float division"), 1, 1),
        ("[die()]", shown("error: the call ended the process of the tools"), 1, 1),
        ("[sleep(seconds=60)]", shown("error: the call took longer than 2 s"), 1, 1),
        ("[flood()]", "\n[cut: the first 40 of 5000000 bytes]", 1, 0),
        ("[add(a=1)" + ", add(a=1)" * 3 + "]", shown("error: at most 3 calls are made"), 3, 1),
    ],
)
def test_whatever_a_call_does_is_shown_and_the_rollout_goes_on(
    player: ToolPlayer, encoder: PromptEncoder, turn: str, seen: str, calls: int, errors: int
):
    ended, text = play(player, encoder, turn, "5")
    words = seen.split(END)[1] if seen.startswith(END) else seen
    assert words.rstrip("\n") in text
    assert ended.response == "5"
    assert ended.parts == {"tool_calls": float(calls), "tool_errors": float(errors)}


def test_a_tool_that_fails_can_fail_the_sample_but_a_wrong_call_does_not(
    player: ToolPlayer, encoder: PromptEncoder
):
    strict = replace(player, settings=replace(SETTINGS, on_tool_error="fail"))
    with pytest.raises(ToolFaultError, match="divide: ZeroDivisionError"):
        play(strict, encoder, "[divide(a=0)]", "5")
    assert play(strict, encoder, "[add(b=2)]", "5")[0].response == "5"


def test_results_can_be_shown_as_the_users_message(player: ToolPlayer, encoder: PromptEncoder):
    plain = replace(player, settings=replace(SETTINGS, observe_as="user"))
    _, text = play(plain, encoder, "[add(a=1), add(a=2)]", "5")
    assert text.startswith(f"{END}\n<|im_start|>user\n2\n3{END}\n")


@pytest.mark.parametrize("limits", [{"max_turns": 2}, {"max_tokens": 60}])
def test_a_budget_that_ends_before_an_answer_leaves_the_scorer_an_empty_one(
    player: ToolPlayer, encoder: PromptEncoder, limits: dict[str, int]
):
    ended, _ = play(player, encoder, *["[add(a=2,b=3)]"] * 9, **limits)
    assert ended.response == ""
    assert ended.parts["tool_calls"] == 2.0


def test_a_tool_that_hangs_slows_no_other_rollout(player: ToolPlayer, encoder: PromptEncoder):
    async def timed(turns: list[str]) -> float:
        rollout = open_rollout(encoder, turns)
        began = time.monotonic()
        await player.play(TASK, rollout.first)
        return time.monotonic() - began

    async def together() -> list[float]:
        hanging = ["[sleep(seconds=60)]", "5"]
        return await asyncio.gather(
            timed(hanging), *(timed(["[add(a=2,b=3)]", "[add(a=5)]", "5"]) for _ in range(32))
        )

    asyncio.run(timed(["[add(a=2), add(a=2)]", "5"]))  # both processes are ready
    hung, *others = asyncio.run(together())
    assert hung > 2.0
    assert max(others) < 1.0, f"{max(others):.2f} s beside a tool that hangs"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"toolsets": {"none": None}}, "toolsets is empty"),
        ({"on_tool_error": "ignore"}, "on_tool_error=ignore must be one of observe, fail"),
        ({"observe_as": "system"}, "observe_as=system must be one of tool, user"),
        ({"time_s": 0.0}, "time_s=0.0 must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict, why: str):
    with pytest.raises(ValueError, match=why):
        replace(SETTINGS, **change)


def test_an_environment_is_prepared_once_and_one_without_needs_plays_as_it_is(
    player: ToolPlayer, encoder: PromptEncoder
):
    assert prepared(player, encoder.tokenizer) is player
    single = SingleTurn()
    assert prepared(single, encoder.tokenizer) is single
