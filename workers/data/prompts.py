"""Read prompts from Parquet, order them by seed and epoch, and encode them to token ids.

The driver uses `PromptSet`, a table with rows by position; a rollout worker uses `PromptEncoder`,
which turns one prompt into tokens. The token ids made here are the ids that train: nothing is
re-tokenised. The module does not record the state of a prompt: the ledger does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from workers.data.images.columns import sources_of
from workers.data.images.decoding import ImageFaultError
from workers.data.images.prompt_images import (
    NO_IMAGES,
    LoadedImage,
    PromptImages,
    load_images,
    shows_image,
    text_of,
    with_places,
)
from workers.data.images.settings import ImageLimits, ImageSettings, read_image_settings
from workers.data.images.spans import expand
from workers.data.trajectory import reason_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One row of a prompt file.

    Example:
        Prompt(uid="train:7", prompt="2+3=", ground_truth="5", dataset="add")

    Example, of a row with an image:
        Prompt(
            uid="train:8",
            prompt="<image>colour?",
            ground_truth="red",
            dataset="colours",
            images=("/data/colours/8.png",),
        )
    """

    uid: str
    prompt: str | list[dict[str, Any]]
    ground_truth: str | None
    dataset: str
    columns: dict[str, Any] = field(default_factory=dict)
    images: tuple[str | bytes, ...] = ()  # path or bytes of each


class PromptSet:
    """The prompts of one Parquet file or folder.

    Raises:
        ValueError: when it is missing, unreadable or empty, or lacks a named column.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        prompt_column: str,
        ground_truth_column: str,
        image_column: str | None = None,
    ) -> None:
        self.path = Path(path)
        self._prompt_column = prompt_column
        self._truth_column = ground_truth_column
        self._image_column = image_column
        if not self.path.exists():
            raise ValueError(f"prompt file {self.path} does not exist; check data.train_path")
        try:
            self._table = pads.dataset(self.path, format="parquet").to_table()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{self.path} is not readable as Parquet: {error}") from error
        for key, column in (
            ("data.prompt_column", prompt_column),
            ("data.ground_truth_column", ground_truth_column),
            ("data.image_column", image_column),
        ):
            if column is not None and column not in self._table.column_names:
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
        images: tuple[str | bytes, ...] = ()
        if self._image_column is not None:
            folder = self.path if self.path.is_dir() else self.path.parent
            images = sources_of(values.pop(self._image_column), folder)
        return Prompt(
            uid=f"{self.path.stem}:{row}",
            prompt=prompt,
            ground_truth=None if truth is None else str(truth),
            dataset=str(values.get("dataset", self.path.stem)),
            columns=values,
            images=images,
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
    """Encoder of text or chat messages, with the model's own tokenizer and chat template.

    Args:
        model_path: folder of the model.
        max_prompt_tokens: longest prompt, the tokens of its images counted.
        images: limits of the images; None where prompts show none.
    """

    def __init__(
        self, model_path: str | Path, max_prompt_tokens: int, images: ImageLimits | None = None
    ) -> None:
        from transformers import AutoTokenizer  # slow to import, and only engines encode

        self._tokenizer = AutoTokenizer.from_pretrained(str(model_path))
        self._max_prompt_tokens = max_prompt_tokens
        self._limits = images or ImageLimits()
        self._images = (
            None
            if images is None
            else read_image_settings(model_path, max_pixels=images.max_pixels)
        )

    def encode(self, prompt: str | list[dict[str, Any]]) -> tuple[list[int], str | None]:
        """Return token ids of a prompt without images, and the reason against sampling, or None.

        A prompt that is no prompt, that the chat template refuses, that has no tokens, that has
        more than `max_prompt_tokens`, or that has a place for an image, is not sampled.

        Raises:
            ValueError: chat messages, and a tokenizer without a chat template.
        """
        tokens, _, fault = self.encode_shown(prompt, ())
        return tokens, fault

    @property
    def image_settings(self) -> ImageSettings | None:
        """Settings of the model's pixels; None where prompts show no images."""
        return self._images

    def load(self, sources: Sequence[str | bytes]) -> list[LoadedImage]:
        """Read the images of a prompt; may run in a thread of its own.

        Raises:
            ImageFaultError: names the image and the reason.
        """
        if self._images is None:
            raise ImageFaultError(
                f"prompt with {len(sources)} images for a model that takes none; name a "
                "vision-language model in model.path, and the images in data.image_column"
            )
        return load_images(sources, self._images, max_per_prompt=self._limits.max_per_prompt)

    def encode_shown(
        self, prompt: str | list[dict[str, Any]], loaded: Sequence[LoadedImage]
    ) -> tuple[list[int], PromptImages, str | None]:
        """Encode a prompt with images: every image's placeholder becomes all of its tokens, once.

        Args:
            prompt: text with `<image>`, or chat messages with `<image>` or parts of type "image".
            loaded: its images, in order.

        Returns:
            Token ids, the images' places, and the reason against sampling as `encode` has it.

        Raises:
            ValueError: chat messages, and a tokenizer without a chat template.
        """
        settings = self._images
        fault = _fault_of(prompt)
        if fault is None and settings is None and shows_image(prompt):
            fault = "message with an image for a model that takes none"
        if fault is not None:
            return [], NO_IMAGES, fault
        if not isinstance(prompt, str) and not self._tokenizer.chat_template:
            raise ValueError(
                "prompts are chat messages, but the model's tokenizer has no chat template; use an "
                "instruct model, or prompts of plain text"
            )
        try:
            tokens = self._tokens(prompt if settings is None else with_places(prompt, settings))
        except Exception as error:  # a template is a program of the model's, run on a user's row
            return [], NO_IMAGES, f"not encoded: {reason_of(error)}"
        if settings is None:
            return tokens, NO_IMAGES, self._fault_of_length(tokens, 0)
        try:
            shown = [(image.grid, image.digest) for image in loaded]
            tokens, spans = expand(tokens, shown, settings, self._plain)
        except ImageFaultError as mismatch:
            return tokens, NO_IMAGES, str(mismatch)
        images = PromptImages(spans=tuple(spans), loaded=tuple(loaded), settings=settings)
        return tokens, images, self._fault_of_length(tokens, sum(span.length for span in spans))

    def _fault_of_length(self, tokens: list[int], of_images: int) -> str | None:
        if not tokens:
            return "empty prompt"
        if len(tokens) <= self._max_prompt_tokens:
            return None
        fault = f"prompt of {len(tokens)} tokens, limit {self._max_prompt_tokens}"
        if not of_images:
            return fault
        return f"{fault}: {of_images} are of images; lower data.images.max_pixels"

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._tokenizer.decode(tokens))

    def begins_twice(self, tokens: list[int]) -> bool:
        """Return True if a prompt begins with two BOS tokens."""
        bos = self._tokenizer.bos_token_id
        return bos is not None and tokens[:2] == [bos, bos]

    def _tokens(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt)["input_ids"])
        encoded = self._tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])

    @staticmethod
    def text(prompt: str | list[dict[str, Any]]) -> str:
        """Return the prompt that the reward sees: the text, or the last message's content."""
        return prompt if isinstance(prompt, str) else text_of(prompt[-1].get("content"))


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
        content = message.get("content")
        if content is None and not message.get("tool_calls"):
            return f"message {number} without content"
        if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
            return f"message {number} with a part that is no mapping"
    return None
