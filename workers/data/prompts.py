"""Number the prompts of all sources, order them by seed and epoch, and encode them to token ids.

The driver uses `PromptSet`, prompts by number; a rollout worker uses `PromptEncoder`, which turns
one prompt into tokens. The token ids made here are the ids that train: nothing is
re-tokenised. The module does not record the state of a prompt: the ledger does.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

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
from workers.data.prefill import prefill_of
from workers.data.sources.source import Prompt, PromptSource
from workers.data.trajectory import reason_of


class PromptSet:
    """The prompts of one source, or of several, whose rows are counted on from source to source.

    Args:
        path: of the only source; `of` makes a set of several.
        prompt_column: text, or chat messages.
        ground_truth_column: the answer.

    Attributes:
        sources: in the order of their rows.

    Raises:
        ValueError: the path is missing, unreadable or empty, or lacks a named column.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        prompt_column: str,
        ground_truth_column: str,
        image_column: str | None = None,
    ) -> None:
        only = PromptSource(
            path,
            prompt_column=prompt_column,
            ground_truth_column=ground_truth_column,
            image_column=image_column,
        )
        self._hold((only,))

    @classmethod
    def of(cls, sources: Sequence[PromptSource]) -> PromptSet:
        """Return the set of several sources.

        Raises:
            ValueError: two sources of one name, whose prompts would have one uid.
        """
        names = Counter(source.name for source in sources)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise ValueError(
                f"data.sources: {', '.join(twice)} names several sources; give each another name"
            )
        made = cls.__new__(cls)
        made._hold(tuple(sources))
        return made

    def _hold(self, sources: tuple[PromptSource, ...]) -> None:
        self.sources = sources
        self._ends = list(accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> Prompt:
        source = self.source_of(row)
        return self.sources[source][row - self.start_of(source)]

    def source_of(self, row: int) -> int:
        """Return the number of the source that holds a row."""
        return bisect.bisect_right(self._ends, row)

    def start_of(self, source: int) -> int:
        """Return the row at which a source begins."""
        return self._ends[source - 1] if source else 0

    def order(self, *, epoch: int, seed: int, shuffle: bool, source: int = 0) -> list[int]:
        """Return the rows of a source in the order of an epoch; equal seeds give equal orders."""
        start, count = self.start_of(source), len(self.sources[source])
        if not shuffle:
            return list(range(start, start + count))
        key = [seed, epoch, source] if source else [seed, epoch]
        return (start + np.random.default_rng(key).permutation(count)).tolist()

    @property
    def where(self) -> str:
        """The files, for messages."""
        return ", ".join(str(source.path) for source in self.sources)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the bytes of the files, read once, for the run manifest and the ledger."""
        digests = [source.digest for source in self.sources]
        return (
            digests[0]
            if len(digests) == 1
            else hashlib.sha256("".join(digests).encode()).hexdigest()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """Template in the place of the tokenizer's own, and the values that a template asks for.

    Example: ChatTemplate(text=None, keywords={"enable_thinking": False})

    Attributes:
        text: Jinja; None for the tokenizer's own.
        keywords: variables of the template.
    """

    text: str | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)


class PromptEncoder:
    """Encoder of text or chat messages, with the model's own tokenizer.

    Args:
        model_path: folder of the tokenizer.
        max_prompt_tokens: longest prompt that is sampled, the tokens of its images counted.
        template: of chats; None for the model's own.
        images: limits of the images; None where prompts and environments show none.

    Attributes:
        keywords: variables of the template.
    """

    def __init__(
        self,
        model_path: str | Path,
        max_prompt_tokens: int,
        template: ChatTemplate | None = None,
        images: ImageLimits | None = None,
    ) -> None:
        from transformers import AutoTokenizer  # slow to import, and only engines encode

        self._tokenizer = AutoTokenizer.from_pretrained(str(model_path))
        self.keywords = dict(template.keywords) if template else {}
        if template is not None and template.text is not None:
            self._tokenizer.chat_template = template.text
        self._max_prompt_tokens = max_prompt_tokens
        self._limits = images or ImageLimits()
        # Rows that show the same picture hold it once; one that no row holds is forgotten.
        self._known: MutableMapping[str, LoadedImage] = WeakValueDictionary()
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

    def load(
        self,
        sources: Sequence[str | bytes],
        *,
        held: int = 0,
    ) -> list[LoadedImage]:
        """Read the images of a prompt; may run in a thread of its own.

        Args:
            sources: a path, an address or the bytes of each.
            held: images that the row shows already, which count towards the limit.

        Raises:
            ImageFaultError: names the image and the reason.
        """
        if self._images is None:
            raise ImageFaultError(
                f"prompt with {len(sources)} images for a model that takes none; name a "
                "vision-language model in model.path, and the images in data.image_column"
            )
        most = self._limits.max_per_prompt
        if held + len(sources) > most:
            raise ImageFaultError(
                f"prompt with {held + len(sources)} images, limit {most}; raise "
                "data.images.max_per_prompt"
            )
        return load_images(sources, self._images, known=self._known)

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
                "instruct model, prompts of plain text, or data.chat_template"
            )
        try:
            tokens = self._tokens(prompt if settings is None else with_places(prompt, settings))
        except Exception as error:  # a template is a program of the model's, run on a user's row
            return [], NO_IMAGES, f"not encoded: {reason_of(error)}"
        if settings is None:
            return tokens, NO_IMAGES, self.fault_of_length(tokens)
        try:
            tokens, images = self.placed(tokens, loaded)
        except ImageFaultError as mismatch:
            return tokens, NO_IMAGES, str(mismatch)
        return tokens, images, self.fault_of_length(tokens, images.num_tokens)

    def placed(
        self, tokens: Sequence[int], loaded: Sequence[LoadedImage]
    ) -> tuple[list[int], PromptImages]:
        """Return ids whose placeholders became all tokens of their images, and the images.

        Raises:
            ImageFaultError: another number of placeholders than of images.
        """
        settings = self._images
        if settings is None:
            return list(tokens), NO_IMAGES
        shown = [(image.grid, image.digest) for image in loaded]
        ids, spans = expand(tokens, shown, settings, self.continuation)
        return ids, PromptImages(spans=tuple(spans), loaded=tuple(loaded), settings=settings)

    def fault_of_length(self, tokens: list[int], of_images: int = 0) -> str | None:
        """Return the reason against sampling behind so few or so many tokens, or None."""
        if not tokens:
            return "empty prompt"
        if len(tokens) <= self._max_prompt_tokens:
            return None
        fault = f"prompt of {len(tokens)} tokens, limit {self._max_prompt_tokens}"
        if not of_images:
            return fault
        return f"{fault}: {of_images} are of images; lower data.images.max_pixels"

    def continuation(self, text: str) -> list[int]:
        """Return the token ids of a text that follows other tokens: no token opens it."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, of transformers."""
        return self._tokenizer

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
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **self.keywords
        )
        return list(encoded["input_ids"])

    def prefill(self, prompt: str | list[dict[str, Any]]) -> str:
        """Return the part of the assistant's turn that the chat template opens, such as `<think>`.

        Empty for a text prompt.
        """
        return "" if isinstance(prompt, str) else prefill_of(self._rendered, prompt)

    def _rendered(self, messages: list[dict[str, Any]], opens: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=opens, tokenize=False, **self.keywords
            )
        )

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
