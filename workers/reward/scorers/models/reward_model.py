"""Score with a reward model: a Hugging Face model with a head for sequence classification.

Runs in scoring processes, each of which loads the model once and scores what waits, of whatever
prompts, in micro-batches. A conversation is rendered with the reward model's own chat template.
Trains nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from workers.reward.base import RewardSample

HEAD = "ForSequenceClassification"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModel:
    """Scorer that takes the reward from a head's logit.

    Attributes:
        path: Hugging Face folder.
        label: of the head's outputs the one that is the reward; None where the head has one.
        dtype: of weights and activations.
        gpus: share of a GPU that a reward worker has (`cluster.reward_gpus`); 0: on CPU.
        threads: of a scoring process on CPU.
        token_budget: tokens of a micro-batch, padding included.
        max_tokens: longest conversation, None for the model's own limit. A longer one is a failed
            sample: cut, it would be another conversation.
        chat_template: Jinja text instead of the tokenizer's own template.
    """

    batches: ClassVar[bool] = True

    path: str
    label: int | None = None
    dtype: str = "float32"
    gpus: float = 0.0
    threads: int = 1
    token_budget: int = 8192
    max_tokens: int | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("threads", "token_budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def check(self) -> None:
        """Check head and tokenizer without loading weights.

        Raises:
            ValueError: the folder holds no model that can score a conversation; names the fault.
        """
        _tokenizer(self)
        _check_head(self)

    def prepare(self) -> None:
        """Load tokenizer and model."""
        _tokenizer(self)
        _model(self)

    def __call__(self, samples: Sequence[RewardSample]) -> list[float | ValueError]:
        """Score samples; what can't be rendered or is too long is an error in its place."""
        scores: list[float | ValueError] = [0.0] * len(samples)
        rows: dict[int, list[int]] = {}
        for number, sample in enumerate(samples):
            try:
                rows[number] = self._tokens(sample)
            except ValueError as error:
                scores[number] = error
        for numbers in micro_batches(rows, self.token_budget):
            for number, score in zip(
                numbers, self._forward([rows[n] for n in numbers]), strict=True
            ):
                scores[number] = score
        return scores

    def _tokens(self, sample: RewardSample) -> list[int]:
        """Return the token ids of prompt and response as a conversation."""
        asked = sample.messages or ({"role": "user", "content": sample.prompt},)
        chat = [*(dict(m) for m in asked), {"role": "assistant", "content": sample.response}]
        try:
            encoded = _tokenizer(self).apply_chat_template(
                chat, chat_template=self.chat_template, tokenize=True, return_dict=True
            )
        except Exception as error:  # a template is a program of the model's, run on a user's row
            raise ValueError(f"not rendered for the reward model: {error}") from error
        tokens = list(encoded["input_ids"])
        limit = self.max_tokens or getattr(_model(self).config, "max_position_embeddings", None)
        if not tokens or (limit and len(tokens) > limit):
            raise ValueError(f"conversation of {len(tokens)} tokens, limit {limit}")
        return tokens

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Return the reward of each row of token ids, computed as one padded batch."""
        import torch

        model, width = _model(self), max(len(row) for row in rows)
        # transformers takes the last token that is no padding as the end of a row.
        pad = padding_for(rows, _tokenizer(self).pad_token_id)
        model.config.pad_token_id = pad
        model.config.get_text_config().pad_token_id = pad
        tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.inference_mode():
            logits = model(
                input_ids=tokens.to(model.device), attention_mask=mask.to(model.device)
            ).logits  # [rows, labels]
        rewards: list[float] = logits[:, self.label or 0].float().tolist()
        return rewards


def micro_batches(rows: dict[int, list[int]], token_budget: int) -> Iterator[list[int]]:
    """Yield the keys of rows that fit into a budget together, padded to the longest of them.

    Rows of equal length come together; a row above the budget comes alone.
    """
    batch: list[int] = []
    for number in sorted(rows, key=lambda key: len(rows[key])):
        if batch and (len(batch) + 1) * len(rows[number]) > token_budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def padding_for(rows: Sequence[Sequence[int]], own: int | None) -> int:
    """Return a token that ends no row: the tokenizer's own padding, or the smallest other id."""
    ends = {row[-1] for row in rows}
    if own is not None and own not in ends:
        return own
    return next(token for token in range(len(ends) + 1) if token not in ends)


def _check_head(scorer: RewardModel) -> Any:
    """Return the model's configuration.

    Raises:
        ValueError: it has no head for classification, or one of several outputs.
    """
    from transformers import AutoConfig

    where = f"reward.scorer.path={scorer.path}"
    if not (Path(scorer.path) / "config.json").exists():
        raise ValueError(f"{where}: no Hugging Face folder (no config.json)")
    config = AutoConfig.from_pretrained(scorer.path)
    names = list(config.architectures or [])
    if not any(name.endswith(HEAD) for name in names):
        raise ValueError(
            f"{where}: a reward model needs an architecture with the head {HEAD}, this one is "
            f"{', '.join(names) or 'unnamed'}; a language model judges with reward=judge"
        )
    labels = config.num_labels
    if scorer.label is None and labels != 1:
        raise ValueError(
            f"{where}: its head has {labels} outputs {dict(config.id2label)}; name the one that is "
            "the reward with reward.scorer.label"
        )
    if scorer.label is not None and not 0 <= scorer.label < labels:
        raise ValueError(
            f"reward.scorer.label={scorer.label}: the head of {scorer.path} has {labels} outputs"
        )
    return config


@functools.cache
def _tokenizer(scorer: RewardModel) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(scorer.path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"reward.scorer.path={scorer.path}: no tokenizer ({error})") from error
    if not (scorer.chat_template or tokenizer.chat_template):
        raise ValueError(
            f"reward.scorer.path={scorer.path}: its tokenizer has no chat template; give one with "
            "reward.scorer.chat_template"
        )
    return tokenizer


@functools.cache
def _model(scorer: RewardModel) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    _check_head(scorer)
    torch.set_num_threads(scorer.threads)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        scorer.path, dtype=getattr(torch, scorer.dtype), output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(
            f"reward.scorer.path={scorer.path} lacks the weights {sorted(report['missing_keys'])}, "
            "which would be random: the folder must hold the trained head"
        )
    return model.eval().to("cuda" if scorer.gpus else "cpu")
