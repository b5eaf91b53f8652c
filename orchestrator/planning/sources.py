"""Prepare the run's inputs on disk: the model folder and the prompt files, built on first use.

`model.build` and `data.build` name functions that write into a folder and skip finished files. All
checks of the inputs are made here, in the driver, before a process starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hydra.utils import instantiate

from conf.schema import (
    AdapterConfig,
    DataConfig,
    EvaluationSetConfig,
    ModelConfig,
    SourceConfig,
    TrainConfig,
)
from orchestrator.planning.judges import check_folder
from orchestrator.planning.settings import image_limits
from workers.data.images.settings import read_image_settings
from workers.data.prompts import ChatTemplate, PromptEncoder, PromptSet
from workers.data.sources.messages import PromptFormat
from workers.data.sources.source import PromptSource
from workers.engines.model.heads import check_heads
from workers.engines.model.lora_settings import (
    adapted_modules,
    check_published,
    check_targets,
    linear_names,
)
from workers.engines.model.vision.support import supported_images
from workers.models.vocabulary import check_stop
from workers.tasks.tables import EVAL_FILE, TRAIN_FILE

SET_COLUMN = "evaluation_set"  # of held-out rows, by which the scorer of a set is chosen


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Checked inputs of a run."""

    model_path: Path
    critic_path: Path  # the model from which a critic starts
    train: PromptSet
    heldout: PromptSet | None
    sets: Mapping[str, PromptSet] = field(default_factory=dict)  # of evaluation.sets


def prepare(config: TrainConfig) -> Sources:
    """Build or find the model and the prompts.

    Raises:
        ValueError: a folder of the model or of the run's own judge without weights or a tokenizer,
            a model without the layers to adapt, a stop token or
            string that its tokenizer lacks, a missing column, an empty or unreadable file of
            prompts or of a chat template;
            the message names the path and the remedy.
    """
    model_path = model_folder(config.model)
    check_context(model_path, config.rollout.max_model_len)
    for name in ("sampling", "eval_sampling"):
        ends = getattr(config.rollout, name)
        check_stop(model_path, f"rollout.{name}", token_ids=ends.stop_token_ids, texts=ends.stop)
    check_sequence_parallel(model_path, config.learner.sequence_parallel_size)
    if supported_images(model_path) is not None:
        check_images(model_path, config)
    critic_path = model_path
    if config.critic.model is not None:
        critic_path = Path(config.critic.model).absolute()
        check_vocabulary(critic_path, model_path)
    if config.model.adapter.trains:
        check_adapter(model_path, config.model.adapter)
    check_shown(model_path, config.data)
    check_sets(model_path, config)
    check_environments(model_path, config)
    check_folder(config)
    chat_template(config.data)
    train, heldout = prompt_sets(config.data)
    return Sources(
        model_path=model_path,
        critic_path=critic_path,
        train=train,
        heldout=heldout,
        sets=heldout_prompts(config),
    )


def model_folder(config: ModelConfig) -> Path:
    """Return the policy's Hugging Face folder, with config, weights and tokenizer.

    Raises:
        ValueError: one of them is missing.
    """
    path = Path(instantiate(config.build) if config.path is None else config.path).absolute()
    if not path.is_dir():
        raise ValueError(f"model.path={path} is not a folder; give a local Hugging Face folder")
    if not (path / "config.json").exists():
        raise ValueError(f"model.path={path} has no config.json; it is not a model folder")
    if not list(path.glob("*.safetensors")):
        raise ValueError(
            f"model.path={path} holds no *.safetensors weights; save the model with "
            "save_pretrained, which writes them"
        )
    if not list(path.glob("tokenizer*")):
        raise ValueError(f"model.path={path} holds no tokenizer; save one beside the weights")
    return path


def check_context(model_path: Path, max_model_len: int) -> None:
    """Raise ValueError where `max_model_len` exceeds the model's own context, in tokens."""
    record = json.loads((model_path / "config.json").read_text())
    limit = record.get("text_config", record).get("max_position_embeddings")
    if limit is not None and max_model_len > limit:
        raise ValueError(
            f"rollout.max_model_len={max_model_len} exceeds the context of {model_path.name}, "
            f"{limit} tokens; lower it"
        )


def check_sequence_parallel(model_path: Path, size: int) -> None:
    """Raise ValueError where `size` ranks of one micro-batch can't share the model's heads."""
    record = json.loads((model_path / "config.json").read_text())
    record = record.get("text_config", record)
    num_heads = record.get("num_attention_heads")
    if size > 1 and num_heads is not None:
        check_heads(num_heads, record.get("num_key_value_heads") or num_heads, size)


def check_adapter(model_path: Path, adapter: AdapterConfig) -> None:
    """Raise ValueError for targets that the model lacks, or that engines cannot apply."""
    names = linear_names(model_path)
    check_targets(adapter.target_modules, names)
    check_published(adapter.publish, adapted_modules(adapter.target_modules, names))


def check_images(model_path: Path, config: TrainConfig) -> None:
    """Raise ValueError for settings that a vision-language model cannot run with."""
    size = config.learner.sequence_parallel_size
    if size > 1:
        raise ValueError(
            f"learner.sequence_parallel_size={size} with {model_path.name}: ranks that share a "
            "batch do not divide images; set learner.sequence_parallel_size=1"
        )


def check_vocabulary(critic_path: Path, model_path: Path) -> None:
    """Raise ValueError where the critic's vocabulary lacks tokens of the policy's."""
    if not (critic_path / "config.json").exists():
        raise ValueError(
            f"critic.model={critic_path} has no config.json; give a local Hugging Face folder, or "
            "null to start from the policy's"
        )
    sizes = [
        record.get("text_config", record).get("vocab_size")
        for record in (
            json.loads((path / "config.json").read_text()) for path in (critic_path, model_path)
        )
    ]
    if None not in sizes and sizes[0] < sizes[1]:
        raise ValueError(
            f"critic.model={critic_path} has a vocabulary of {sizes[0]}, the policy one of "
            f"{sizes[1]}: the critic reads the policy's tokens, so start it from a model with the "
            "same tokenizer"
        )


def check_shown(model_path: Path, config: DataConfig) -> None:
    """Raise ValueError where prompts show images and the model takes none, or not of this size."""
    for key, column in config.image_columns.items():
        if read_image_settings(model_path, max_pixels=config.images.max_pixels) is None:
            raise ValueError(
                f"{key}={column}: {model_path.name} is a model of text alone; choose a "
                f"vision-language model, or {key}=null"
            )


def check_sets(model_path: Path, config: TrainConfig) -> None:
    """Raise ValueError where a held-out set shows images to a model of text."""
    for name, own in config.evaluation.sets.items():
        if own.image_column is None:
            continue
        if read_image_settings(model_path, max_pixels=config.data.images.max_pixels) is None:
            raise ValueError(
                f"evaluation.sets.{name}.image_column={own.image_column}: {model_path.name} is a "
                "model of text alone; leave the set out, or choose a vision-language model"
            )


def check_environments(model_path: Path, config: TrainConfig) -> None:
    """Raise ValueError where an environment shows images to a model of text."""
    for key, own in config.environments.items():
        if not own.shows_images:
            continue
        if read_image_settings(model_path, max_pixels=config.data.images.max_pixels) is None:
            name = f"{key}.environment" if key else "environment"
            raise ValueError(
                f"{name}.shows_images=true: {model_path.name} is a model of text alone; choose a "
                "vision-language model, or shows_images=false"
            )


def prompt_sets(config: DataConfig) -> tuple[PromptSet, PromptSet | None]:
    """Return the training prompts, and the held-out prompts or None; build them if need be."""
    if config.sources:
        train = PromptSet.of([_source(config, each) for each in config.sources])
        return train, None if config.eval_path is None else _one_file(config, config.eval_path)
    train_path, eval_path = config.train_path, config.eval_path
    if train_path is None:
        folder = Path(instantiate(config.build))
        train_path, eval_path = str(folder / TRAIN_FILE), str(folder / EVAL_FILE)
    train = _one_file(config, train_path)
    return train, None if eval_path is None else _one_file(config, eval_path)


def heldout_prompts(config: TrainConfig) -> dict[str, PromptSet]:
    """Return the prompts of every set of `evaluation.sets`; build them if need be."""
    return {name: _set(config.data, name, own) for name, own in config.evaluation.sets.items()}


def _one_file(config: DataConfig, path: str) -> PromptSet:
    only = PromptSource(
        path,
        prompt_column=config.prompt_column,
        ground_truth_column=config.ground_truth_column,
        image_column=config.image_column,
        form=_form(config, config.prompt_template),
    )
    return PromptSet.of([only])


def _source(config: DataConfig, source: SourceConfig) -> PromptSource:
    return PromptSource(
        source.path,
        name=source.name,
        weight=source.weight,
        prompt_column=source.prompt_column or config.prompt_column,
        ground_truth_column=source.ground_truth_column or config.ground_truth_column,
        image_column=source.image_column or config.image_column,
        form=_form(config, source.prompt_template or config.prompt_template),
        environment="" if source.environment is None else f"data.sources.{source.name}",
    )


def _set(config: DataConfig, name: str, own: EvaluationSetConfig) -> PromptSet:
    path = own.path or Path(instantiate(own.build)) / EVAL_FILE
    only = PromptSource(
        path,
        name=name,
        prompt_column=own.prompt_column,
        ground_truth_column=own.ground_truth_column,
        image_column=own.image_column,
        form=PromptFormat(
            template=own.prompt_template,
            system_prompt=config.system_prompt,
            as_chat=config.as_chat if own.as_chat is None else own.as_chat,
        ),
        more={SET_COLUMN: name},
        environment="" if own.environment is None else f"evaluation.sets.{name}",
    )
    return PromptSet.of([only])


def _form(config: DataConfig, template: str | None) -> PromptFormat:
    return PromptFormat(
        template=template, system_prompt=config.system_prompt, as_chat=config.as_chat
    )


def chat_template(config: DataConfig) -> ChatTemplate:
    """Read the chat template that the run uses in place of the tokenizer's own.

    Raises:
        ValueError: the file can't be read.
    """
    text = None
    if config.chat_template is not None:
        try:
            text = Path(config.chat_template).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"data.chat_template={config.chat_template} can't be read ({error}); name a file "
                "with a Jinja template"
            ) from error
    return ChatTemplate(text=text, keywords=config.template_kwargs)


def encoder_of(config: TrainConfig, model_path: Path) -> PromptEncoder:
    """Return an encoder that makes the tokens that the run's engines make."""
    return PromptEncoder(
        model_path,
        config.data.max_prompt_tokens,
        chat_template(config.data),
        images=image_limits(config),
    )
