"""A row says what a rendering of its history would lack of the turns that were sampled."""

import asyncio

import pytest

from tests.workers.rollout.chat_templates import tokenizer_of
from workers.data.prompts import PromptEncoder
from workers.data.requests import GroupRequest, Sample, Sampling
from workers.reward.base import RewardResult
from workers.rollout.environments.contract import Outcome
from workers.rollout.group_play import GroupPlay, RolloutContext
from workers.rollout.limits import BoundedEnvironment, RolloutLimits
from workers.rollout.turn_texts import TurnTexts
from workers.spans import SpanLog


class Thinker:
    """An engine whose answers have a thought."""

    def __init__(self, encoder):
        self.encoder = encoder

    async def generate(self, tokens, **settings):
        ids = self.encoder.continuation("<think>\nso\n</think>\n\nyes<|im_end|>")
        return Sample(
            tokens=ids,
            logprobs=[-1.0] * len(ids),
            weight_versions=[1] * len(ids),
            finish_reason="stop",
            text="yes",
        )


class Rewards:
    async def score(self, sample):
        return RewardResult(outcome="scored", reward=1.0, notes={"pred": sample.response})


class Asks:
    """Asks for so many turns."""

    def __init__(self, turns):
        self.turns = turns

    async def play(self, task, session):
        for _ in range(self.turns - 1):
            await session.draw()
            await session.observe([{"role": "user", "content": "sure?"}])
        return Outcome(response=(await session.draw()).text)


def notes(tmp_path, name, *, turns):
    tokenizer_of(name).save_pretrained(tmp_path)
    encoder = PromptEncoder(tmp_path, 100)
    request = GroupRequest(
        group_id="g",
        prompt_uid="p",
        begun_version=1,
        dataset="d",
        prompt=[{"role": "user", "content": "is it?"}],
        ground_truth=None,
        num_samples=1,
        seed=40,
        sampling=Sampling(max_tokens=400),
    )
    context = RolloutContext(
        run_id="run",
        engine=Thinker(encoder),
        encoder=encoder,
        texts=TurnTexts(encoder),
        environments={
            "": BoundedEnvironment(environment=Asks(turns), limits=RolloutLimits(max_turns=4))
        },
        rewards=Rewards(),
        early_stop=None,
        spans=SpanLog(),
    )
    (row,) = asyncio.run(GroupPlay(request, context).run())
    assert encoder.decode(row.tokens).count("<think>\nso\n</think>") == turns  # the ids keep all
    return row.reward_notes


@pytest.mark.parametrize(
    ("name", "turns", "said"),
    [
        ("qwen3", 2, {"template_drops": "thoughts", "pred": "yes"}),
        ("qwen3", 1, {"pred": "yes"}),
        ("qwen2.5", 2, {"pred": "yes"}),
    ],
)
def test_a_note_says_what_the_template_drops_from_history(tmp_path, name, turns, said):
    assert notes(tmp_path, name, turns=turns) == said
