"""Try the scorer on the first rows before Ray starts, and note what looks wrong with the data.

Runs in the driver, which starts one scoring process for it. Each row is scored twice: with a
made-up response, and with the ground truth itself as the response. Nothing is sampled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from algorithms.composition import part_values
from conf.schema import TrainConfig
from orchestrator.planning.plan import scored_alone
from orchestrator.planning.sources import SET_COLUMN, Sources, encoder_of
from orchestrator.telemetry.counting import describe_reasons
from workers.data.images.decoding import ImageFaultError, read_file
from workers.data.prompts import PromptEncoder, PromptSet
from workers.data.sources.source import Prompt, PromptSource
from workers.data.sources.truths import Truth
from workers.reward.base import (
    ABSTAINED,
    CORRECT,
    RewardResult,
    RewardSample,
    Siblings,
    reads_images,
    takes_group,
)
from workers.reward.pool import RewardPool
from workers.reward.scorers.by_column import ByColumn

NUM_ROWS = 4  # of each file
THINK = "<think>"
MADE_UP = "This is a made-up response."


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Row that was scored twice.

    Example:
        Tried(uid="train:7", truth="5", made_up=RewardResult(outcome="scored", reward=0.0),
              with_truth=RewardResult(outcome="scored", reward=1.0))
    """

    uid: str
    truth: Truth
    made_up: RewardResult
    with_truth: RewardResult | None  # None where the row has no ground truth

    @property
    def results(self) -> list[RewardResult]:
        """Both results."""
        return [self.made_up] if self.with_truth is None else [self.made_up, self.with_truth]

    @property
    def failed(self) -> bool:
        """True if the row can't be scored, whatever the response."""
        return all(result.outcome.startswith("failed:") for result in self.results)


def build_scorer(raw: DictConfig) -> Any:
    """Build the scorer of a run; held-out sets with a scorer of their own are scored by that."""
    scorer = instantiate(raw.reward.scorer, _convert_="all")
    own = {
        name: instantiate(each.scorer, _convert_="all")
        for name, each in raw.evaluation.sets.items()
        if each.scorer is not None
    }
    return ByColumn(scorers=own, column=SET_COLUMN, other=scorer) if own else scorer


def try_scorer(
    config: TrainConfig,
    scorer: Any,
    sources: Sources,
    part_readers: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Score the first rows of every prompt file; return what should be looked at, a line each.

    A scorer that can't be tried yet is checked instead: `try_files` once it can.

    Args:
        config: of the run.
        scorer: of `build_scorer`.
        sources: the prompts.
        part_readers: key of a part of the algorithm -> the parts of the reward that it reads.

    Raises:
        ValueError: the scorer can't be built in a scoring process, no row of a file can be scored,
            or the images of none can be used (the message holds the first row's own error); the
            scorer waits for siblings that would be stopped; it does not return a part of the reward
            that the algorithm reads.
    """
    _check_early_stop(config, scorer)
    notes = list(_ends_of_responses(config, scorer, sources.train))
    notes += _opened_turns(config, sources)
    notes += _try_images(config, sources, _files(sources))
    return notes + try_files(config, scorer, sources, part_readers)


def try_files(
    config: TrainConfig,
    scorer: Any,
    sources: Sources,
    part_readers: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Score the first rows of every prompt file; return notes on the scores, a line each.

    Arguments and errors are those of `try_scorer`.
    """
    notes: list[str] = []
    check = getattr(scorer, "check", None)
    if check is not None:
        check()
        return notes
    with open_pool(config, scorer) as pool:
        for prompts in _files(sources):
            rows = [prompts[row] for row in range(min(NUM_ROWS, len(prompts)))]
            tried = try_rows(pool, scorer, rows)
            notes += _judge(prompts, tried)
            alone = scored_alone(config.environments[prompts.environment])
            if alone and any(prompts is one for one in sources.train.sources):
                _check_parts(part_readers or {}, tried)
    return notes


def _files(sources: Sources) -> list[PromptSource]:
    """Return the files of training prompts and of all held-out ones."""
    heldout = [] if sources.heldout is None else [sources.heldout]
    sets = [sources.train, *heldout, *sources.sets.values()]
    return [source for prompts in sets for source in prompts.sources]


def _check_parts(part_readers: Mapping[str, Sequence[str]], tried: Sequence[Tried]) -> None:
    """Raise ValueError where a score lacks a part of the reward that the algorithm reads."""
    parts = [one.parts for row in tried for one in row.results if one.reward is not None]
    for reader, names in part_readers.items():
        for name in names if parts else ():
            part_values(reader, name, parts)


def _try_images(
    config: TrainConfig, sources: Sources, files: Sequence[PromptSource]
) -> Iterator[str]:
    """Yield notes on prompts whose images can't be sent.

    Raises:
        ValueError: none of the first rows of a file can be sent.
    """
    shown = [prompts for prompts in files if prompts.image_column is not None]
    if not shown:
        return
    encoder = encoder_of(config, sources.model_path)
    for prompts in shown:
        rows = [prompts[row] for row in range(min(NUM_ROWS, len(prompts)))]
        faults = [(row.uid, fault) for row in rows if (fault := image_fault(encoder, row))]
        if faults and len(faults) == len(rows):
            raise ValueError(
                f"image_column={prompts.image_column}: none of the first {len(rows)} prompts of "
                f"{prompts.path} can be sent; {faults[0][0]}: {faults[0][1]}. Mend the "
                "rows; ballast data inspect tries every row"
            )
        for uid, fault in faults:
            yield f"images: {uid} will be dropped: {fault}"


def image_fault(encoder: PromptEncoder, row: Prompt) -> str | None:
    """Return the reason against sending a prompt with its images, or None."""
    try:
        loaded = encoder.load(row.images) if row.images else ()
    except ImageFaultError as fault:
        return str(fault)
    return encoder.encode_shown(row.prompt, loaded)[2]


def open_pool(config: TrainConfig, scorer: Any) -> RewardPool:
    """Start a scoring process with the scorer.

    Raises:
        ValueError: it can't be built there.
    """
    try:
        return RewardPool(
            scorer,
            num_processes=1,
            timeout_s=config.reward.timeout_s,
            start_s=config.reward.start_s,
            max_memory_mib=config.reward.max_memory_mib,
        )
    except RuntimeError as error:
        raise ValueError(f"reward.scorer: {error}") from error


def try_rows(pool: RewardPool, scorer: Any, rows: Sequence[Prompt]) -> list[Tried]:
    """Score each row with a made-up response and with its ground truth.

    A row whose prompt can't be read as text is left out, as is one without a file of an image that
    the scorer reads: the encoder refuses that row by name.
    """
    shows = reads_images(scorer) and any(row.images for row in rows)
    readable: list[tuple[Prompt, int]] = []
    groups: list[Siblings] = []
    for row in rows:
        try:
            text = PromptEncoder.text(row.prompt)
            images = tuple(map(read_file, row.images)) if shows else None
        except (TypeError, KeyError, IndexError, ValueError, ImageFaultError):
            continue
        truth = row.ground_truth
        first = truth[0] if isinstance(truth, list) else truth
        responses = [MADE_UP, *([first] if first is not None else [])]
        samples = tuple(
            RewardSample(
                prompt=text,
                response=each,
                ground_truth=truth,
                columns=row.columns,
                messages=() if isinstance(row.prompt, str) else tuple(row.prompt),
                images=images,
            )
            for each in responses
        )
        readable.append((row, len(samples)))
        groups += [samples] if takes_group(scorer) else [(sample,) for sample in samples]
    results = iter([one for group in asyncio.run(pool.score_groups(groups)) for one in group])
    return [
        Tried(
            uid=row.uid,
            truth=row.ground_truth,
            made_up=next(results),
            with_truth=next(results) if count == 2 else None,
        )
        for row, count in readable
    ]


def reasons(tried: Sequence[Tried]) -> str:
    """Return the reasons of all failures, by kind."""
    return describe_reasons(
        Counter(
            result.outcome
            for row in tried
            for result in row.results
            if result.outcome.startswith("failed:")
        )
    )


def gives_less(result: RewardResult | None) -> bool:
    """Return True if the ground truth as a response was scored, and not as right."""
    if result is None or result.reward is None:
        return False
    return result.parts.get(CORRECT, result.reward) < 1.0


def _judge(prompts: PromptSource, tried: Sequence[Tried]) -> Iterator[str]:
    """Yield notes on the rows of one file.

    Raises:
        ValueError: no row can be scored.
    """
    failed = [row for row in tried if row.failed]
    if tried and len(failed) == len(tried):
        raise ValueError(
            f"the reward can't score one of the first {len(tried)} rows of {prompts.path}: "
            f"{reasons(failed)}. Mend the reward, or the keys data.ground_truth_column and "
            "data.prompt_column; ballast data inspect tries every row"
        )
    if failed:
        yield (
            f"reward: {len(failed)} of the first {len(tried)} rows of {prompts.path.name} can't be "
            f"scored ({failed[0].uid}): {reasons(failed)}"
        )
    less = [row for row in tried if gives_less(row.with_truth)]
    if less and less[0].with_truth is not None:
        yield (
            f"reward: the ground truth {shorten(less[0].truth)} of {less[0].uid}, as the response, "
            f"earns {less[0].with_truth.reward:g}: right if the reward wants more than the bare "
            "answer (a format, a program), wrong if not"
        )
    if any(result.outcome == ABSTAINED for row in tried for result in row.results):
        yield "reward: the scorer abstains (None) from some responses; they do not train"


def _check_early_stop(config: TrainConfig, scorer: Any) -> None:
    """Raise ValueError where siblings may be stopped, which a scorer of whole groups waits for."""
    if takes_group(scorer) and config.rollout.early_stop_samples:
        raise ValueError(
            f"rollout.early_stop_samples={config.rollout.early_stop_samples} with a reward that "
            "scores all siblings of a prompt together: nothing is scored before the last sibling "
            "has ended, so none could be stopped; set it to 0, or choose a reward of single samples"
        )


def _opened_turns(config: TrainConfig, sources: Sources) -> Iterator[str]:
    """Yield a note where the template begins the response itself and the reward does not see it."""
    prompt = sources.train[0].prompt
    if config.reward.include_prefill or not isinstance(prompt, list) or not prompt:
        return
    files = ("chat_template.jinja", "tokenizer_config.json")
    texts = [path for name in files if (path := sources.model_path / name).exists()]
    own = config.data.chat_template is not None
    if not own and not any(THINK in path.read_text() for path in texts):
        return  # the tokenizer, which is slow to load, has nothing to say
    try:
        opened = encoder_of(config, sources.model_path).prefill(prompt)
    # A row or a template that can't be rendered is refused elsewhere, by row.
    except Exception:
        return
    if THINK in opened:
        yield describe_opened(opened)


def describe_opened(opened: str) -> str:
    """Return the note on a template that opens a part of the response."""
    return (
        f"the template's generation prompt opens {opened.strip()}: the reward sees the response "
        "without it, and one that looks for it finds none; reward.include_prefill=true shows the "
        "whole turn to the reward"
    )


def _ends_of_responses(config: TrainConfig, scorer: Any, prompts: PromptSet) -> Iterator[str]:
    """Yield a note where nothing but the length limit may end the response to a text prompt."""
    sampling = config.rollout.sampling
    ends = sampling.stop or sampling.stop_token_ids or getattr(scorer, "stop_at", None)
    if isinstance(prompts[0].prompt, str) and not ends:
        yield (
            "prompts are plain text without a stop: a response ends at the model's own end token "
            f"or at {sampling.max_new_tokens} tokens. Set rollout.sampling.stop or "
            "reward.scorer.stop_at, or give chat messages to a chat model"
        )


def shorten(text: Truth, limit: int = 60) -> str:
    """Return a text, or several, as a literal of at most `limit` characters."""
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
