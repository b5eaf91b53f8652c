"""Show prompt files as a run would send them: `ballast data inspect`.

Reads every row of the training and held-out files, renders and tokenizes each with the model's own
tokenizer and chat template, and scores each row's ground truth. Runs in the process of the command;
a scoring process runs the scorer. Samples and trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from conf.schema import TrainConfig
from orchestrator.planning.capacity import describe_turns
from orchestrator.planning.sources import Sources, encoder_of
from orchestrator.planning.trial import (
    describe_opened,
    gives_less,
    open_pool,
    reasons,
    shorten,
    try_rows,
)
from orchestrator.telemetry.counting import counted, describe_reasons
from workers.data.images.decoding import describe_picture
from workers.data.images.prompt_images import PromptImages
from workers.data.prompts import PromptEncoder, PromptSet
from workers.data.sources.source import Prompt
from workers.reward.pool import RewardPool

NUM_SHOWN = 2  # rows that are printed whole
BAR_WIDTH = 40


@dataclass(kw_only=True)
class _Read:
    """Facts about all rows of one file."""

    keys: Counter[str] = field(default_factory=Counter)  # prompts as JSON, to compare
    lengths: list[int] = field(default_factory=list)  # tokens of each row that can be sent
    messages: Counter[int] = field(default_factory=Counter)  # of each chat prompt
    refused: Counter[str] = field(default_factory=Counter)  # reasons against a row
    refused_uids: list[str] = field(default_factory=list)
    num_double_bos: int = 0
    shown: list[str] = field(default_factory=list)
    opened: set[str] = field(default_factory=set)  # by the template, of a shown row's response


def inspect(config: TrainConfig, scorer: Any, sources: Sources) -> Iterator[str]:
    """Yield the lines of the report."""
    encoder = encoder_of(config, sources.model_path)
    named = {"train": sources.train}
    if sources.heldout is not None:
        named["held-out"] = sources.heldout
    named |= sources.sets
    read = {name: _read(prompts, encoder) for name, prompts in named.items()}
    check = getattr(scorer, "check", None)
    with ExitStack() as held:
        pool = None if check else held.enter_context(open_pool(config, scorer))
        for name, prompts in named.items():
            yield from _about_rows(name, prompts, read[name], config)
            if pool is not None:
                yield from _about_scores(prompts, pool, scorer)
    if check is not None:
        check()
        yield "reward: its model can be used; it is not loaded here, so no row was scored"
    yield from (f"rollouts: {line}" for line in describe_turns(config))
    for name in (name for name in read if name != "train"):
        both = read["train"].keys.keys() & read[name].keys.keys()
        yield f"overlap: {counted(len(both), f'{name} prompt')} also in the training files"


def _read(prompts: PromptSet, encoder: PromptEncoder) -> _Read:
    found = _Read()
    for row in range(len(prompts)):
        prompt = prompts[row]
        found.keys[_key(prompt)] += 1
        try:
            loaded = encoder.load(prompt.images) if prompt.images else ()
            tokens, images, why = encoder.encode_shown(prompt.prompt, loaded)
        # Whatever a file, a template or a tokenizer raises, the row is what must be named.
        except Exception as error:
            tokens, why = [], f"{type(error).__name__}: {error}"
        if why is not None:
            found.refused[re.sub(r"\d+", "N", why)] += 1  # one kind, however long
            found.refused_uids.append(prompt.uid)
            continue
        found.lengths.append(len(tokens))
        if not isinstance(prompt.prompt, str):
            found.messages[len(prompt.prompt)] += 1
        found.num_double_bos += encoder.begins_twice(tokens)
        if len(found.shown) < NUM_SHOWN:
            opened = encoder.prefill(prompt.prompt)
            found.opened |= {opened} if opened.strip() else set()
            found.shown.append(
                f"  {prompt.uid}, {counted(len(tokens), 'token')}: "
                f"{_text(encoder, tokens, images)!r}\n"
                f"{_about_images(prompt, images)}"
                f"    ground truth {shorten(prompt.ground_truth, 200)}, "
                f"columns {sorted(prompt.columns)}"
            )
    return found


def _key(prompt: Prompt) -> str:
    """Return a text that is equal for prompts that are: words and images."""
    images = [
        source if isinstance(source, str) else hashlib.sha256(source).hexdigest()
        for source in prompt.images
    ]
    return json.dumps([prompt.prompt, images], default=str, sort_keys=True)


def _text(encoder: PromptEncoder, tokens: list[int], images: PromptImages) -> str:
    """Return the text of a prompt, with `<image: n tokens>` for the tokens of an image."""
    pieces, begin = [], 0
    for span in images.spans:
        pieces += [encoder.decode(tokens[begin : span.offset]), f"<image: {span.length} tokens>"]
        begin = span.offset + span.length
    return "".join([*pieces, encoder.decode(tokens[begin:])])


def _about_images(prompt: Prompt, images: PromptImages) -> str:
    """Return a line for each image of a prompt: its file, sizes and colours."""
    return "".join(
        f"    image {source if isinstance(source, str) else f'of {len(source)} bytes'}: "
        f"{describe_picture(image.file)}, patches {image.grid[1]} x {image.grid[2]}\n"
        for source, image in zip(prompt.images, images.loaded, strict=True)
    )


def _about_rows(name: str, prompts: PromptSet, read: _Read, config: TrainConfig) -> Iterator[str]:
    yield f"{name}: {counted(len(prompts), 'row')} of {prompts.where}"
    yield from read.shown
    yield from _histogram(read.lengths)
    for number, count in sorted(read.messages.items()):
        yield f"  chats of {counted(number, 'message')}: {counted(count, 'row')}"
    if read.refused:
        yield (
            f"  {counted(read.refused.total(), 'row')} would not be sampled "
            f"({', '.join(read.refused_uids[:3])}; data.max_prompt_tokens="
            f"{config.data.max_prompt_tokens}): {describe_reasons(read.refused)}"
        )
    repeated = sum(count - 1 for count in read.keys.values())
    yield f"  duplicates: {counted(repeated, 'row')} repeat a prompt of this file"
    if read.num_double_bos:
        yield (
            f"  {counted(read.num_double_bos, 'row')} begin with two BOS tokens: the text has one "
            "that the tokenizer adds again"
        )
    for opened in sorted(read.opened):
        if config.reward.include_prefill:
            yield f"  the reward sees responses with what the template opens, {opened!r}"
        else:
            yield f"  {describe_opened(opened)}"


def _histogram(lengths: list[int]) -> Iterator[str]:
    """Yield the token lengths in classes of powers of two."""
    classes = Counter(max(0, length - 1).bit_length() for length in lengths)
    most = max(classes.values(), default=1)
    for power in sorted(classes):
        bar = "#" * max(1, round(BAR_WIDTH * classes[power] / most))
        yield f"  up to {2**power:>6} tokens {classes[power]:>8} {bar}"


def _about_scores(prompts: PromptSet, pool: RewardPool, scorer: Any) -> Iterator[str]:
    """Score the ground truth of every row as a response."""
    tried = try_rows(pool, scorer, [prompts[row] for row in range(len(prompts))])
    failed = [row for row in tried if row.failed]
    if failed:
        yield (
            f"  reward: {counted(len(failed), 'row')} can't be scored ({failed[0].uid}): "
            f"{reasons(failed)}"
        )
    rewards = [
        r.with_truth.reward for r in tried if r.with_truth and r.with_truth.reward is not None
    ]
    made_up = [r.made_up.reward for r in tried if r.made_up.reward is not None]
    if rewards and made_up:
        less = [row for row in tried if gives_less(row.with_truth)]
        yield (
            f"  reward: the ground truth as the response earns {sum(rewards) / len(rewards):.3f} "
            f"on average, a made-up response {sum(made_up) / len(made_up):.3f}"
        )
        if less:
            yield f"  reward: {counted(len(less), 'ground truth')} not right ({less[0].uid})"
