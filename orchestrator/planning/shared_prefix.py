"""Decide whether the learner, or the critic, computes the common prompt of siblings once.

Runs in the driver, before anything starts, on the configuration and the model's `config.json`.
Loads no model. The division of a batch is in `orchestrator/step/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig

#: Keys and kinds of models whose layers mix tokens along the sequence other than by attention: a
#: suffix would need the state behind its prefix, not only the prefix's keys.
MIXING_KEYS = re.compile(r"^(use_)?mamba|^ssm_|^state_size$|^lru_width$|^conv_(kernel|L_cache)$")
MIXING_MODELS = ("rwkv", "xlstm", "fnet")
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrefix:
    """Choice for one role.

    Attributes:
        shares: True if siblings share their prefix.
        reason: the setting against it; empty where they do.
    """

    shares: bool
    reason: str = ""


def of_roles(
    config: TrainConfig,
    algorithm: Algorithm,
    *,
    model_path: Path | None,
    critic_path: Path | None,
) -> dict[str, SharedPrefix]:
    """Decide for the learner (and the reference), and for the critic if there is one.

    Args:
        config: of the run.
        algorithm: says if there is a critic.
        model_path: folder of the policy; None where it is not built yet.
        critic_path: folder of the critic's backbone; None where it is not built yet.

    Returns:
        The choice under "learner" and, of an algorithm with a critic, under "critic".

    Raises:
        ValueError: `learner.shared_prefix=true` where prefixes cannot be shared.
    """
    learner = config.learner
    against = [
        f"learner.sequence_parallel_size={learner.sequence_parallel_size}"
        if learner.sequence_parallel_size > 1
        else "",
        _of_attention("learner", learner.attention),
        _mixing_layers(model_path),
    ]
    found = {"learner": _choose(config, against)}
    if algorithm.needs_critic:
        against = [_of_attention("critic", config.critic.attention), _mixing_layers(critic_path)]
        found["critic"] = _choose(config, against)
    return found


def planned(config: TrainConfig, algorithm: Algorithm) -> dict[str, SharedPrefix]:
    """Decide as far as the configuration names the folders of the models; see `of_roles`."""
    path = config.model.path
    critic = config.critic.model or path
    return of_roles(
        config,
        algorithm,
        model_path=None if path is None else Path(path),
        critic_path=None if critic is None else Path(critic),
    )


def describe(choices: Mapping[str, SharedPrefix]) -> str:
    """Describe the choices of all roles in one line."""
    learner = choices["learner"]
    if not learner.shares:
        return f"each sequence computes its own ({learner.reason})"
    text = "siblings compute their common one once in a micro-batch"
    critic = choices.get("critic")
    if critic is not None and not critic.shares:
        text += f"; the critic does not ({critic.reason})"
    return text


def _of_attention(role: str, name: str) -> str:
    return "" if name == "varlen_sdpa" else f"{role}.attention={name}"


def _choose(config: TrainConfig, against: Sequence[str]) -> SharedPrefix:
    """Choose by the settings that speak against sharing, "" where one does not."""
    asked = config.learner.shared_prefix
    if asked == "false":
        return SharedPrefix(shares=False, reason="learner.shared_prefix=false")
    reason = ", ".join(filter(None, against))
    if reason and asked == "true":
        raise ValueError(
            f"learner.shared_prefix=true with {reason}, which cannot share the prompt of siblings; "
            "set learner.shared_prefix=auto, or change the other"
        )
    if not reason and config.rollout.samples_per_prompt == 1:
        reason = "rollout.samples_per_prompt=1"
    return SharedPrefix(shares=not reason, reason=reason)


def _mixing_layers(model: Path | None) -> str:
    """Name what mixes tokens other than by attention in a model folder; "" if nothing does."""
    if model is None or not (model / "config.json").is_file():
        return ""
    record: dict[str, Any] = json.loads((model / "config.json").read_text())
    record = record.get("text_config") or record
    kind = str(record.get("model_type", ""))
    others = sorted(set(record.get("layer_types") or ()) - ATTENTION_LAYERS)
    keys = sorted(key for key in record if MIXING_KEYS.search(key))
    if kind in MIXING_MODELS or others or keys:
        found = ", ".join(others or keys[:1]) or "its recurrent layers"
        return f"model_type={kind} ({found})"
    return ""
