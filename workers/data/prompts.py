"""Read prompts from Parquet, order them by seed and epoch, and encode them to token ids.

The driver uses `PromptSet`, a table with rows by position; a rollout worker uses `PromptEncoder`,
which turns one prompt into tokens. The token ids made here are the ids that train: nothing is
re-tokenised. The module does not record the state of a prompt: the ledger does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from workers.data.prefill import prefill_of
from workers.data.trajectory import reason_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One row of a prompt file.

    Example:
        Prompt(uid="train:7", prompt="2+3=", ground_truth="5", dataset="add")
    """

    uid: str
    prompt: str | list[dict[str, str]]
    ground_truth: str | None
    dataset: str
    columns: dict[str, Any] = field(default_factory=dict)


class PromptSet:
    """The prompts of one Parquet file or folder.

    Raises:
        ValueError: when it is missing, unreadable or empty, or lacks a named column.
    """

    def __init__(self, path: str | Path, *, prompt_column: str, ground_truth_column: str) -> None:
        self.path = Path(path)
        self._prompt_column = prompt_column
        self._truth_column = ground_truth_column
        if not self.path.exists():
            raise ValueError(f"prompt file {self.path} does not exist; check data.train_path")
        try:
            self._table = pads.dataset(self.path, format="parquet").to_table()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{self.path} is not readable as Parquet: {error}") from error
        for key, column in (
            ("data.prompt_column", prompt_column),
            ("data.ground_truth_column", ground_truth_column),
        ):
            if column not in self._table.column_names:
                raise ValueError(
                    f"{self.path} has no column {column!r} ({key}); "
                    f"it has {', '.join(self._table.column_names)}"
                )
        if self._table.num_rows == 0:
            raise ValueError(f"{self.path} holds no prompt; give a Parquet file with rows")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, row: int) -> Prompt:
        values = self._table.slice(row, 1).to_pylist()[0]
        prompt = values.pop(self._prompt_column)
        truth = values.pop(self._truth_column)
        return Prompt(
            uid=f"{self.path.stem}:{row}",
            prompt=prompt,
            ground_truth=None if truth is None else str(truth),
            dataset=str(values.get("dataset", self.path.stem)),
            columns=values,
        )

    def order(self, *, epoch: int, seed: int, shuffle: bool) -> list[int]:
        """Return the rows in the order of an epoch; equal seeds give equal orders."""
        if not shuffle:
            return list(range(len(self)))
        return list(np.random.default_rng([seed, epoch]).permutation(len(self)).tolist())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the bytes of the files, read once, for the run manifest and the ledger."""
        files = sorted(self.path.rglob("*.parquet")) if self.path.is_dir() else [self.path]
        total = hashlib.sha256()
        for name in files:
            with name.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
        return total.hexdigest()


class PromptEncoder:
    """Encoder of text or chat messages, with the model's own tokenizer and chat template."""

    def __init__(self, model_path: str | Path, max_prompt_tokens: int) -> None:
        from transformers import AutoTokenizer  # slow to import, and only engines encode

        self._tokenizer = AutoTokenizer.from_pretrained(str(model_path))
        self._max_prompt_tokens = max_prompt_tokens

    def encode(self, prompt: str | list[dict[str, str]]) -> tuple[list[int], str | None]:
        """Return token ids, and the reason against sampling the prompt, or None.

        A prompt that is no prompt, that the chat template refuses, that has no tokens, or that has
        more than `max_prompt_tokens`, is not sampled.

        Raises:
            ValueError: chat messages, and a tokenizer without a chat template.
        """
        fault = _fault_of(prompt)
        if fault is not None:
            return [], fault
        if not isinstance(prompt, str) and not self._tokenizer.chat_template:
            raise ValueError(
                "prompts are chat messages, but the model's tokenizer has no chat template; use an "
                "instruct model, or prompts of plain text"
            )
        try:
            tokens = self._tokens(prompt)
        except Exception as error:  # a template is a program of the model's, run on a user's row
            return [], f"not encoded: {reason_of(error)}"
        if not tokens:
            return tokens, "empty prompt"
        if len(tokens) > self._max_prompt_tokens:
            return tokens, f"prompt of {len(tokens)} tokens, limit {self._max_prompt_tokens}"
        return tokens, None

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._tokenizer.decode(tokens))

    def begins_twice(self, tokens: list[int]) -> bool:
        """Return True if a prompt begins with two BOS tokens."""
        bos = self._tokenizer.bos_token_id
        return bos is not None and tokens[:2] == [bos, bos]

    def _tokens(self, prompt: str | list[dict[str, str]]) -> list[int]:
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt)["input_ids"])
        encoded = self._tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def prefill(self, prompt: str | list[dict[str, str]]) -> str:
        """Return the part of the assistant's turn that the chat template opens, such as `<think>`.

        Empty for a text prompt.
        """
        return "" if isinstance(prompt, str) else prefill_of(self._rendered, prompt)

    def _rendered(self, messages: list[dict[str, str]], opens: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=opens, tokenize=False
            )
        )

    @staticmethod
    def text(prompt: str | list[dict[str, str]]) -> str:
        """Return the prompt that the reward sees: the text, or the last message's content."""
        return prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")


def _fault_of(prompt: object) -> str | None:
    """Return the reason for which a value of the prompt column is no prompt, or None.

    A message without content is one if it calls tools.
    """
    if isinstance(prompt, str):
        return None
    if prompt is None:
        return "null prompt"
    if not isinstance(prompt, list):
        return f"prompt of type {type(prompt).__name__}, neither text nor chat messages"
    if not prompt:
        return "empty chat"
    for number, message in enumerate(prompt):
        if not isinstance(message, dict):
            return f"message {number} of type {type(message).__name__}, not a mapping"
        if message.get("content") is None and not message.get("tool_calls"):
            return f"message {number} without content"
    return None
