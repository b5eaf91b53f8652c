"""Prompts: sources, columns, form and lengths.

Read by the driver. Opens no file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import require
from conf.schema.environment import EnvironmentConfig

PLACE = "{prompt}"  # in a template, for the prompt
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # stands in uids and in names of metrics


@dataclass(kw_only=True)
class SourceConfig:
    """One of several sources of training prompts."""

    name: str = MISSING  # of the rows: in their uid, their column `dataset`, and the metrics
    path: str = MISSING  # Parquet, JSON lines, or a folder of one of them or of Arrow files
    weight: float | None = None  # share of the prompts; null for all sources: as many as their rows
    prompt_column: str | None = None  # null: data.prompt_column
    ground_truth_column: str | None = None  # null: data.ground_truth_column
    image_column: str | None = None  # null: data.image_column
    prompt_template: str | None = None  # null: data.prompt_template
    environment: EnvironmentConfig | None = None  # null: environment

    def check(self, key: str) -> None:
        """Raise a ValueError for an impossible value that stands under `key`."""
        check_name(f"{key}.name", self.name)
        check_template(f"{key}.prompt_template", self.prompt_template)
        require(
            self.weight is None or self.weight > 0,
            f"{key}.weight",
            self.weight,
            "must be positive; leave the source out instead",
        )
        if self.environment is not None:
            self.environment.check(f"{key}.environment")


@dataclass(kw_only=True)
class WindowConfig:
    """Pass rates of the prompts that are begun from a step on; one that is not measured is."""

    from_step: int = 1
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0


@dataclass(kw_only=True)
class SourceWeightsConfig:
    """Weights of the sources from a step on, in place of their own; one left out gives nothing."""

    from_step: int = 1
    sources: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class CurriculumConfig:
    """Prompts that are passed over by how often the policy was right, and sources over steps."""

    skip_solved: bool = False  # a prompt of which all samples were right when it was last sampled
    windows: list[WindowConfig] = field(default_factory=list)
    pass_rate_column: str | None = None  # of the files, until the run has measured its own
    weights: list[SourceWeightsConfig] = field(default_factory=list)

    def check(self, sources: list[str]) -> None:
        """Raise a ValueError for an impossible value.

        Args:
            sources: names of `data.sources`.
        """
        for key, stages in (("windows", self.windows), ("weights", self.weights)):
            steps = [stage.from_step for stage in stages]
            require(
                steps == sorted(set(steps)) and min(steps, default=1) >= 1,
                f"data.curriculum.{key}",
                steps,
                "from_step must be 1 or more, and rise",
            )
        for number, window in enumerate(self.windows):
            require(
                0 <= window.min_pass_rate <= window.max_pass_rate <= 1,
                f"data.curriculum.windows[{number}]",
                [window.min_pass_rate, window.max_pass_rate],
                "needs 0 <= min_pass_rate <= max_pass_rate <= 1",
            )
        for number, stage in enumerate(self.weights):
            key = f"data.curriculum.weights[{number}].sources"
            unknown = sorted(set(stage.sources) - set(sources))
            require(not unknown, key, unknown, f"data.sources has {', '.join(sources) or 'none'}")
            weights = stage.sources.values()
            require(
                min(weights, default=0) >= 0 and sum(weights) > 0,
                key,
                dict(stage.sources),
                "must not be negative, and one of them positive",
            )


@dataclass(kw_only=True)
class ImagesConfig:
    """Limits of the images that prompts and environments show."""

    max_pixels: int | None = None  # of one image, which is scaled down; null: the model's own limit
    max_per_prompt: int = 8  # of one row: of its prompt and of all its turns

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        require(
            self.max_pixels is None or self.max_pixels >= 1,
            "data.images.max_pixels",
            self.max_pixels,
            "must be at least 1; null takes the model's own limit",
        )
        require(
            self.max_per_prompt >= 1,
            "data.images.max_per_prompt",
            self.max_per_prompt,
            "must be at least 1; data.image_column=null is a run without images",
        )


@dataclass(kw_only=True)
class DataConfig:
    """Prompts: where they are, the names of their columns, and the form in which they are sent."""

    name: str = MISSING
    train_path: str | None = None  # Parquet, JSON lines, or a folder of these or of Arrow files
    eval_path: str | None = None
    sources: list[SourceConfig] = field(default_factory=list)  # several, in place of train_path
    build: Any = None  # `_target_` of a function that generates both into a folder
    prompt_column: str = "prompt"  # string, or list of {role, content} messages; dots lead inside
    ground_truth_column: str = "ground_truth"  # a text, or a list of which any is right
    image_column: str | None = None  # path, bytes, {bytes, path} or a list of them; null: no images
    images: ImagesConfig = field(default_factory=ImagesConfig)
    prompt_template: str | None = None  # text around the last user message, with {prompt}
    system_prompt: str | None = None  # before chats that have none
    as_chat: bool = False  # a text prompt becomes a chat of one user message
    chat_template: str | None = None  # file with a Jinja template; null: the tokenizer's own
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # such as enable_thinking: false
    max_prompt_tokens: int = 1024
    shuffle: bool = True
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    eval_limit: int = 0  # held-out prompts used; 0: all

    def __post_init__(self) -> None:
        if self.chat_template is not None:  # the run changes its folder before engines start
            self.chat_template = str(Path(self.chat_template).expanduser().absolute())

    @property
    def image_columns(self) -> dict[str, str]:
        """Columns of images of training and held-out prompts, by the keys that name them."""
        sources = {
            f"data.sources.{each.name}.image_column": each.image_column for each in self.sources
        }
        named = {"data.image_column": self.image_column, **sources}
        return {key: column for key, column in named.items() if column is not None}

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        given = [self.train_path is not None, self.build is not None, bool(self.sources)]
        require(
            sum(given) == 1,
            "data.train_path",
            self.train_path,
            "give one of data.train_path (a file or folder), data.sources (several) and data.build",
        )
        self._check_sources()
        check_template("data.prompt_template", self.prompt_template)
        require(
            self.max_prompt_tokens >= 1,
            "data.max_prompt_tokens",
            self.max_prompt_tokens,
            "must be at least 1",
        )
        self.images.check()
        require(self.eval_limit >= 0, "data.eval_limit", self.eval_limit, "must not be negative")

    def _check_sources(self) -> None:
        for number, source in enumerate(self.sources):
            source.check(f"data.sources[{number}]")
        names = [source.name for source in self.sources]
        require(
            len(set(names)) == len(names),
            "data.sources",
            names,
            "two sources have one name, so their prompts would have one uid; give each another",
        )
        self.curriculum.check(names)
        weighted = [source.weight is not None for source in self.sources]
        require(
            all(weighted) or not any(weighted),
            "data.sources",
            [source.weight for source in self.sources],
            "give every source a weight, or none",
        )


def check_name(key: str, value: str) -> None:
    """Raise ValueError for a name that can't stand in a uid and in the name of a metric."""
    require(
        NAME.fullmatch(value) is not None,
        key,
        value,
        "use letters, digits, '_', '-' and '.', the first a letter or a digit",
    )


def check_template(key: str, value: str | None) -> None:
    """Raise ValueError for a template of prompts that has no place for the prompt."""
    require(
        value is None or PLACE in value,
        key,
        value,
        f"has no {PLACE}, where the prompt of each row would stand",
    )
