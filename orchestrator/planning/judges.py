"""Check the judges of a run against the engines that shall serve them: places, context, memory.

Arithmetic on the configuration, in the driver, for the plan, the dry run and the doctor; the
folder of the judge's model is read where it is there. Starts no engine and asks no judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.schema import ArchitectureConfig, ModelConfig, TrainConfig
from orchestrator.planning.architecture import architecture_of, num_parameters
from orchestrator.planning.memory import ELEMENT_BYTES, GIB, RESERVE_BYTES, Share
from orchestrator.telemetry.counting import counted

JUDGE = "workers.reward.scorers.models.judge.Judge"
CHARACTERS_PER_TOKEN = 4  # of a template in words, about
# The judge has another tokenizer than the policy, whose tokens the configuration counts, and its
# chat template adds some.
SLACK, SLACK_TOKENS = 2, 256


@dataclass(frozen=True, kw_only=True)
class AskedJudge:
    """One judge of the configuration.

    Attributes:
        key: such as reward.scorer.judges.judge.
        url: of its service; None for the run's own engines.
        scorer: the node of the scorer that asks.
    """

    key: str
    url: str | None
    scorer: Mapping[str, Any]


def asked_judges(config: TrainConfig) -> list[AskedJudge]:
    """Return the judges of the run's scorer, and of those of held-out sets."""
    scorers = {"reward.scorer": config.reward.scorer}
    for name, own in config.evaluation.sets.items():
        scorers[f"evaluation.sets.{name}.scorer"] = own.scorer
    return [judge for key, node in scorers.items() for judge in _judges_in(key, node)]


def _judges_in(key: str, node: Any) -> Iterator[AskedJudge]:
    """Yield the judges of a scorer, and of those that it combines."""
    if not isinstance(node, Mapping):
        return
    if node.get("_target_") == JUDGE:
        for name, each in node["judges"].items():
            yield AskedJudge(key=f"{key}.judges.{name}", url=each.get("url"), scorer=node)
        return
    for name, each in node.items():
        yield from _judges_in(f"{key}.{name}", each)


def check(config: TrainConfig) -> None:
    """Check that every judge has a service or engines, and that the engines can serve.

    Raises:
        ValueError: neither or both are given, or the engines' places, context or memory do not
            suffice; the message names the key and the remedy.
    """
    if config.rollout.replay.replays:
        return
    engine, judges = config.reward.engine, asked_judges(config)
    own = [judge for judge in judges if judge.url is None]
    if engine.model is None:
        if own:
            raise ValueError(
                f"{own[0].key}.url=None: no service and no engine serves this judge; give "
                f"{own[0].key}.url=http://... and {own[0].key}.model=NAME of a service, or "
                "reward.engine.model=/path of a model that the run itself serves"
            )
        return
    if not own:
        remedy = f"set {judges[0].key}.url=null" if judges else "choose reward=judge"
        raise ValueError(
            f"reward.engine.model={engine.model}: its engines serve the judges whose url is null, "
            f"and there is none; {remedy}, or reward.engine.model=null"
        )
    _check_places(config)
    _check_context(config, own)
    _check_memory(config)


def _check_places(config: TrainConfig) -> None:
    cluster, width = config.cluster, config.reward.engine.tensor_parallel_size
    model, per_node = architecture(config), cluster.gpus_per_node
    if cluster.judge.num_gpus and per_node is not None and width > per_node:
        raise ValueError(
            f"reward.engine.tensor_parallel_size={width}: an engine stands on one node, and a node "
            f"of cluster={cluster.name} has {counted(per_node, 'GPU')}; lower it"
        )
    if model is not None and model.num_heads % width:
        raise ValueError(
            f"reward.engine.tensor_parallel_size={width} does not divide the {model.num_heads} "
            f"attention heads of {config.reward.engine.model}; choose a divisor"
        )


def _check_context(config: TrainConfig, own: list[AskedJudge]) -> None:
    """Raise ValueError where the longest call does not fit into the context."""
    engine, model = config.reward.engine, architecture(config)
    longest, said = max(_longest_call(config, judge.scorer) for judge in own)
    given = engine.max_model_len
    if given is not None and given < longest:
        raise ValueError(
            f"reward.engine.max_model_len={given} is below the judge's longest call, about "
            f"{longest} tokens: {said}; raise it, or leave it to the run (null)"
        )
    if model is not None and max(longest, given or 0) > model.context:
        raise ValueError(
            f"reward.engine.model={engine.model} has a context of {model.context} tokens, and is "
            f"asked for {max(longest, given or 0)}: {said}; choose another model, or lower "
            "reward.engine.max_model_len or the lengths"
        )


def _check_memory(config: TrainConfig) -> None:
    engine, cluster, model = config.reward.engine, config.cluster, architecture(config)
    if engine.kv_cache_gib is None and not cluster.judge.num_gpus:
        raise ValueError(
            "reward.engine.kv_cache_gib=None takes what is left of an engine's own GPU, and "
            f"cluster={cluster.name} has a judge on CPUs; name a size, such as 1"
        )
    if model is None:
        return
    needed = _kv_bytes_per_token(config, model) * context(config) / GIB
    if engine.kv_cache_gib is not None and engine.kv_cache_gib < needed:
        raise ValueError(
            f"reward.engine.kv_cache_gib={engine.kv_cache_gib:g} can't hold one call of "
            f"{context(config)} tokens, {needed:.2f} GiB; raise it, or lower "
            "reward.engine.max_model_len"
        )
    have, share = cluster.gpu_memory_gib, judge_share(config, model)
    if cluster.judge.num_gpus and have is not None and share.total > have * GIB:
        raise ValueError(
            f"cluster={cluster.name} can't hold the judge {engine.model}: {share}, on a GPU of "
            f"{have:g} GiB; raise reward.engine.tensor_parallel_size, or choose a smaller model"
        )


def _longest_call(config: TrainConfig, scorer: Mapping[str, Any]) -> tuple[int, str]:
    """Return the tokens of the longest call, in about, and their sum in words."""
    rollout, together = config.rollout, scorer.get("together") is not None
    shown = rollout.samples_per_prompt if together else 1
    response = max(
        shown * rollout.sampling.max_new_tokens,
        rollout.eval_sampling.max_new_tokens,
        *(own.sampling.max_new_tokens for own in config.evaluation.sets.values() if own.sampling),
    )
    words = len(scorer["prompt"]) + len(scorer.get("system") or "")
    template = math.ceil(words / CHARACTERS_PER_TOKEN)
    sampling = scorer.get("sampling") or {}
    verdict = sampling.get("max_tokens") or sampling.get("max_completion_tokens") or 0
    parts = {
        "template": template,
        "prompt": config.data.max_prompt_tokens,
        "responses" if together else "response": response,
        "verdict": verdict,
    }
    said = " + ".join(f"{name} {count}" for name, count in parts.items())
    return sum(parts.values()), said


def architecture(config: TrainConfig) -> ArchitectureConfig | None:
    """Return the sizes of the judge's model; None where its folder does not say them."""
    return architecture_of(ModelConfig(name="judge", path=config.reward.engine.model))


def context(config: TrainConfig) -> int:
    """Return the tokens of the longest call that an engine of the judge takes.

    Where the configuration leaves it to the run, twice the longest call in the policy's tokens and
    256 more, but no more than the model's own context.
    """
    if config.reward.engine.max_model_len is not None:
        return config.reward.engine.max_model_len
    own = [judge.scorer for judge in asked_judges(config) if judge.url is None]
    wanted = SLACK * max(_longest_call(config, scorer)[0] for scorer in own) + SLACK_TOKENS
    model = architecture(config)
    return wanted if model is None else min(wanted, model.context)


def _kv_bytes_per_token(config: TrainConfig, model: ArchitectureConfig) -> float:
    engine = config.reward.engine
    heads = max(1.0, model.num_kv_heads / engine.tensor_parallel_size)
    return 2 * model.num_layers * heads * model.head_dim * ELEMENT_BYTES[engine.dtype]


def judge_share(config: TrainConfig, model: ArchitectureConfig) -> Share:
    """Return the share of an engine of the judge on one of its devices.

    A cache that takes what is left of the GPU is counted as one call of the greatest length.
    """
    engine = config.reward.engine
    cache = _kv_bytes_per_token(config, model) * context(config)
    if engine.kv_cache_gib is not None:
        cache = engine.kv_cache_gib * GIB
    weights = ELEMENT_BYTES[engine.dtype] * num_parameters(model) / engine.tensor_parallel_size
    parts = {"weights": weights, "KV cache": cache, "reserve": float(RESERVE_BYTES)}
    return Share(role="judge", parts=parts)


def describe(config: TrainConfig) -> list[str]:
    """Describe the judge's engines in a line, for the plan; none where the run has none."""
    engine = config.reward.engine
    if engine.model is None or config.rollout.replay.replays:
        return []
    return [
        f"{counted(engine.num_engines, 'engine')} x "
        f"{counted(engine.tensor_parallel_size, 'device')}, {engine.dtype}, {engine.model}, "
        f"calls up to {context(config)} tokens; tried on the first rows once it runs"
    ]


def describe_memory(config: TrainConfig) -> list[str]:
    """Describe an engine's memory on its GPU in a line; none where that is not known."""
    if not (describe(config) and config.cluster.judge.num_gpus):
        return []
    model = architecture(config)
    return [] if model is None else [str(judge_share(config, model))]


def check_folder(config: TrainConfig) -> None:
    """Check the folder of the judge's model, if the run serves one.

    Raises:
        ValueError: no model that can chat is in the folder; names the path and the remedy.
    """
    model = config.reward.engine.model
    if model is None or config.rollout.replay.replays:
        return
    folder, where = Path(model), f"reward.engine.model={model}"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{where}: no Hugging Face folder (no config.json)")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{where} holds no *.safetensors weights")
    if not list(folder.glob("tokenizer*")):
        raise ValueError(f"{where} holds no tokenizer; save one beside the weights")
    said = any(text.startswith("--chat-template") for text in config.reward.engine.arguments)
    tokenizer = folder / "tokenizer_config.json"
    record = json.loads(tokenizer.read_text()) if tokenizer.exists() else {}
    has = record.get("chat_template") or list(folder.glob("chat_template*"))
    if not (said or has):
        raise ValueError(
            f"{where}: its tokenizer has no chat template, and a judge is asked in a chat; choose "
            "an instruct model, or add reward.engine.arguments=[--chat-template,/path/to.jinja]"
        )
