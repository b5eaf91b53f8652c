"""A rollout whose turns a test says: an engine and an encoder of letters, with no model."""

import pytest

from workers.data.images.prompt_images import NO_IMAGES
from workers.data.requests import Sample, Sampling
from workers.rollout.environments.contract import Task
from workers.rollout.environments.guarded_play import EnvironmentClock
from workers.rollout.limits import RolloutLimits
from workers.rollout.session import Rollout
from workers.rollout.turn_texts import TurnTexts


class Encoder:
    """Letters are their code points; a prompt has at most eight."""

    image_settings = None  # prompts show no images

    def encode_shown(self, prompt, loaded):
        tokens = self.continuation(prompt)
        return tokens, NO_IMAGES, self.fault_of_length(tokens)

    def fault_of_length(self, tokens, of_images=0):
        return f"prompt of {len(tokens)} tokens, limit 8" if len(tokens) > 8 else None

    def continuation(self, text):
        return [ord(letter) for letter in text]


class Engine:
    """Answers every turn with the next of `answers`, cut at the turn's bound."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def __call__(self, tokens, turn, sampling, images):
        self.asked.append(("".join(map(chr, tokens)), turn, sampling.max_tokens, sampling.stop))
        text = self.answers.pop(0)
        cut = text[: sampling.max_tokens]
        return Sample(
            tokens=[ord(letter) for letter in cut],
            logprobs=[-0.5] * len(cut),
            weight_versions=[2] * len(cut),
            finish_reason="stop" if cut == text else "length",
            text=cut,
        )


def make_rollout(engine, *, prompt="q:", max_tokens=20, **limits):
    encoder = Encoder()
    return Rollout(
        Task(uid="p:0", prompt=prompt, ground_truth=None),
        encoder.continuation(prompt),
        sampling=Sampling(max_tokens=max_tokens, stop=("#",)),
        limits=RolloutLimits(**{"max_turns": 4, **limits}),
        texts=TurnTexts(encoder),
        sample=engine,
        clock=EnvironmentClock(stretch_s=60.0),
    )


@pytest.fixture
def says():
    """`says("ab", "c")` is an engine that samples "ab" and then "c"."""
    return Engine


@pytest.fixture
def rollout():
    """`rollout(engine, prompt=..., max_tokens=..., max_turns=...)` before its first turn."""
    return make_rollout
