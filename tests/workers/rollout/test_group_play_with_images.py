"""A group with images: read once, sent with every draw, recorded with every sibling."""

import asyncio
from dataclasses import replace

import pytest

from tests.workers.data.images.folders import file_of, noise
from tests.workers.rollout.test_group_play import Engine, Rewards, play
from workers.data.images.settings import ImageLimits
from workers.data.prompts import PromptEncoder
from workers.data.record_files import describe_rows
from workers.data.trajectory import describe, from_record_batch, to_record_batch
from workers.models.tiny_vision import build_tiny_vision
from workers.rollout.environments.contract import Outcome
from workers.rollout.environments.single_turn import SingleTurn
from workers.rollout.limits import BoundedEnvironment, RolloutLimits
from workers.rollout.turn_texts import TurnTexts

SMALL, OTHER = file_of(noise(56, 56)), file_of(noise(56, 56, seed=1))
WIDE = file_of(noise(112, 56, seed=2))


class Watching(Engine):
    """Keeps the images of every request."""

    async def generate(self, tokens, *, request_id, sampling, seed, images):
        self.shown = [*getattr(self, "shown", []), images]
        return await super().generate(
            tokens, request_id=request_id, sampling=sampling, seed=seed, images=images
        )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = build_tiny_vision(tmp_path_factory.mktemp("models") / "tiny")
    return PromptEncoder(folder, 32, images=ImageLimits())


def group_of(encoder, *images, prompt="<image>a", environment=None):
    engine = Watching({f"g/{k}/1": 2 for k in range(4)})
    group = play(engine, Rewards({2: 1.0}), samples=4, environment=environment)
    group._request = replace(group._request, prompt=prompt, images=images)
    group._context = replace(group._context, encoder=encoder, texts=TurnTexts(encoder))
    return engine, asyncio.run(group.run())


def test_an_image_is_sent_with_every_draw_and_recorded_once(encoder):
    engine, siblings = group_of(encoder, SMALL)
    assert [shown.spans[0].offset for shown in engine.shown] == [1] * 4
    assert len({id(shown) for shown in engine.shown}) == 1
    for one in siblings:
        assert (one.outcome, one.images, list(one.image_files)) == (
            "scored",
            engine.shown[0].spans,
            [SMALL],
        )
        assert list(one.tokens[1:5]) == [encoder.image_settings.image_token_id] * 4
    assert len(to_record_batch(siblings)["image_files"].values.dictionary) == 1


@pytest.mark.parametrize(
    ("images", "prompt", "reason"),
    [
        ((b"broken",), "<image>a", "dropped:p: image 0: image can't be read"),
        (("/no/such.png",), "<image>a", "dropped:p: image 0: image '/no/such.png': No such file"),
        ((SMALL,), "a", "dropped:p: 0 places for images in the prompt and 1 images"),
        ((), "<image>a", "dropped:p: 1 places for images in the prompt and 0 images"),
        ((SMALL,) * 9, "<image>" * 9, "dropped:p: prompt with 9 images, limit 8"),
        ((SMALL,), "<image>" + "a" * 30, "dropped:p: prompt of 36 tokens, limit 32: 4 are"),
    ],
)
def test_a_prompt_that_can_not_be_sent_is_dropped_with_its_name(encoder, images, prompt, reason):
    engine, siblings = group_of(encoder, *images, prompt=prompt)
    assert engine.asked == []
    assert [one.outcome[: len(reason)] for one in siblings] == [reason] * 4


def test_equal_tokens_with_other_images_are_another_prompt(encoder):
    crcs = [describe(group_of(encoder, file)[1][0]).prompt_crc for file in (SMALL, SMALL, OTHER)]
    assert crcs[0] == crcs[1] != crcs[2]


class Shows(SingleTurn):
    """Shows each sibling one of two pictures, and the same one to all."""

    async def play(self, task, session):
        await session.draw()
        own = OTHER if task.sibling % 2 else SMALL
        parts = [{"type": "image", "image": file} for file in (own, WIDE)]
        await session.observe([{"role": "user", "content": parts}])
        return await super().play(task, session)


def two_turns():
    return BoundedEnvironment(environment=Shows(), limits=RolloutLimits(max_turns=2))


def test_what_siblings_see_later_is_recorded_once_and_leaves_their_prompt_shared(encoder):
    engine = Watching({f"g/{k}/{turn}": 2 for k in range(4) for turn in (1, 2)})
    group = play(engine, Rewards({2: 1.0, 5: 1.0}), samples=4, environment=Shows())
    group._request = replace(group._request, prompt="<image>a", images=(SMALL,))
    environments = {"": two_turns()}
    group._context = replace(
        group._context, encoder=encoder, texts=TurnTexts(encoder), environments=environments
    )
    siblings = asyncio.run(group.run())
    assert [one.outcome for one in siblings] == ["scored"] * 4
    # <start> 4 <end> a | 7 7 | <start> 4 <end> <start> 8 <end> | 7 7
    assert [[s.offset for s in one.images] for one in siblings] == [[1, 10, 16]] * 4
    assert [list(one.image_files) for one in siblings] == [
        [SMALL, SMALL, WIDE],
        [SMALL, OTHER, WIDE],
    ] * 2
    batch = to_record_batch(siblings)
    assert sorted(batch["image_files"].values.dictionary.to_pylist()) == sorted(
        [SMALL, OTHER, WIDE]
    )
    metas = describe_rows(batch)
    assert metas == [describe(one) for one in from_record_batch(batch)]
    assert {(meta.num_prompt, meta.prompt_crc) for meta in metas} == {(7, metas[0].prompt_crc)}


class SendsBroken(SingleTurn):
    async def play(self, task, session):
        await session.draw()
        if task.sibling == 1:
            part = {"type": "image", "image": b"broken"}
            await session.observe([{"role": "user", "content": [part]}])
        return Outcome(reward=0.0)


def test_a_broken_image_of_an_environment_costs_its_sample_alone(encoder):
    _, siblings = group_of(encoder, SMALL, environment=SendsBroken())
    assert [one.outcome for one in siblings[::2]] == ["scored"] * 2
    assert siblings[1].outcome.startswith(
        "failed:environment:raised ImageFaultError: image 0: image can't be read"
    )
    assert [span.offset for span in siblings[1].images] == [1]  # its finished turn is recorded


class Keeps(Rewards):
    """Keeps the samples that it scores."""

    def __init__(self):
        super().__init__({2: 1.0})
        self.samples = []

    async def score(self, sample):
        self.samples.append(sample)
        return await super().score(sample)


@pytest.mark.parametrize("asked", [True, False])
def test_the_scorer_gets_the_files_if_it_asks_for_them(encoder, asked):
    rewards = Keeps()
    group = play(Watching({"g/0/1": 2}), rewards, samples=1)
    group._request = replace(group._request, prompt="<image>a<image>", images=(SMALL, OTHER))
    group._context = replace(
        group._context, encoder=encoder, texts=TurnTexts(encoder), images_for_reward=asked
    )
    asyncio.run(group.run())
    assert rewards.samples[0].images == ((SMALL, OTHER) if asked else None)
