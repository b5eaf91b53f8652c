"""Check the run's inputs: model folder, tokenizer, chat template, prompts.

Runs in the process of `ballast doctor`. Downloads and builds no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.schema import TrainConfig
from orchestrator.planning.doctor.findings import Finding, fault, note, ok
from orchestrator.planning.judges import check_folder
from orchestrator.planning.sources import (
    check_context,
    check_shown,
    encoder_of,
    model_folder,
    prompt_sets,
)
from orchestrator.planning.trial import image_fault
from orchestrator.telemetry.counting import counted
from workers.data.prompts import PromptSet
from workers.tasks.copy_files import source_files

SAMPLED_PROMPTS = 64


def check(config: TrainConfig) -> list[Finding]:
    """Check the model, the prompts, and the model's tokenizer on these prompts."""
    prompts, about_data = data(config)
    return [*model(config), *judge(config), *about_data, *tokenizer(config, prompts)]


def model(config: TrainConfig) -> Iterator[Finding]:
    """Check that the folder holds a model that can be loaded, with every shard whole."""
    if config.model.path is None:
        yield ok("model", f"{config.model.name}, built on first use")
        return
    try:
        folder = model_folder(config.model)
        check_context(folder, config.rollout.max_model_len)
        check_shown(folder, config.data)
    except ValueError as error:
        yield fault("model", str(error), "put a local copy of the model there, or set model.path")
        return
    problems = list(_broken_shards(folder))
    if problems:
        yield fault("model", "; ".join(problems), "copy the model's folder again")
    else:
        yield ok("model", f"{folder}: configuration and weights are readable")


def judge(config: TrainConfig) -> Iterator[Finding]:
    """Check the folder of the judge that the run serves itself, if there is one."""
    path = config.reward.engine.model
    if path is None or config.rollout.replay.replays:
        return
    try:
        check_folder(config)
    except ValueError as error:
        yield fault("judge", str(error), "put a local copy of the model there")
        return
    problems = list(_broken_shards(Path(path)))
    if problems:
        yield fault("judge", "; ".join(problems), "copy the model's folder again")
    else:
        yield ok("judge", f"{path}: configuration and weights are readable")


def _broken_shards(folder: Path) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = set(json.loads(index.read_text())["weight_map"].values())
        yield from (f"{name} is missing" for name in sorted(named) if not (folder / name).exists())
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(shard, framework="np") as weights:
                if not list(weights.keys()):
                    yield f"{shard.name} holds no tensor"
        except (SafetensorError, OSError) as error:
            yield f"{shard.name}: {error}"


def data(config: TrainConfig) -> tuple[PromptSet | None, list[Finding]]:
    """Load the training prompts if they exist or are generated quickly; return them and findings.

    A source that would be converted is only listed.
    """
    build: Any = config.data.build
    try:
        if build is not None and "source" in build:
            files = source_files(build["source"])
            return None, [
                ok("data", f"{counted(len(files), 'file')} to convert, below {build['source']}")
            ]
        prompts, _ = prompt_sets(config.data)
    except ValueError as error:
        return None, [fault("data", str(error), "see data.build.source, or data.train_path")]
    return prompts, [ok("data", f"{counted(len(prompts), 'prompt')}: {prompts.where}")]


def tokenizer(config: TrainConfig, prompts: PromptSet | None) -> Iterator[Finding]:
    """Check that the prompts pass through the model's tokenizer and chat template."""
    if config.model.path is None or not Path(config.model.path).is_dir():
        return
    try:
        encoder = encoder_of(config, Path(config.model.path))
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        yield fault("tokenizer", f"can't be loaded: {first}", "copy the tokenizer's files, too")
        return
    if prompts is None:
        yield ok("tokenizer", "loads")
        return
    sample = [prompts[row] for row in range(min(SAMPLED_PROMPTS, len(prompts)))]
    chats = [prompt for prompt in sample if not isinstance(prompt.prompt, str)]
    try:
        refused = [why for prompt in sample if (why := image_fault(encoder, prompt))]
    except ValueError as error:  # transformers: no chat template
        yield fault(
            "chat template",
            f"{len(chats)} of {len(sample)} prompts are chats: {str(error).splitlines()[0]}",
            "use an instruct model, or prompts of plain text",
        )
        return
    if len(refused) == len(sample):
        yield fault("tokenizer", refused[0], "raise data.max_prompt_tokens")
    elif refused:
        yield note(
            "tokenizer",
            f"{len(refused)} of {len(sample)} prompts would be dropped: {refused[0]}",
            "raise data.max_prompt_tokens, or accept it",
        )
    else:
        kind = "with the chat template" if chats else "as plain text"
        yield ok("tokenizer", f"encodes {counted(len(sample), 'prompt')} {kind}")
