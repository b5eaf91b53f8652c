"""Check that a run's folder names no code but this project's before `ballast eval` builds from it.

A run's `config.yaml` names classes and files, which the command imports and calls. A folder that
somebody else gave may name anything. Code of this project is trusted; other code only where the
user's overrides name the same. Runs in the process of the command. Builds nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

OWN = ("algorithms.", "workers.")
PATHS = {  # classes whose `path` names code too
    "workers.reward.scorers.function.Function",
    "workers.rollout.environments.function.Function",
    "workers.rollout.environments.text_game.TextGame",
}


def check_code(config: DictConfig | ListConfig, overrides: Sequence[str], *, folder: str) -> None:
    """Check every name of code in a configuration.

    Args:
        config: as read from the folder.
        overrides: of the user, `key=value`.
        folder: where it was read, for the message.

    Raises:
        ValueError: code that is neither this project's nor named by an override.
    """
    given = set(overrides)
    foreign = [
        f"{key}={value}"
        for key, value in _code(OmegaConf.to_container(config, resolve=False), "")
        if f"{key}={value}" not in given
    ]
    if foreign:
        raise ValueError(
            f"{folder} names code that is not this project's, and the command would run it; where "
            f"you trust it, say so by adding: {' '.join(foreign)}"
        )


def _code(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield key and value of everything below a node that makes the command run foreign code."""
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from _code(item, f"{key}.{number}")
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        inner = f"{key}.{name}" if key else str(name)
        yield from _code(value, inner)
        if name == "_target_" and not _is_own(str(value)):
            yield inner, value
        if name == "trust_remote_code" and value:
            yield inner, str(value).lower()
    if node.get("_target_") in PATHS:
        yield f"{key}.path", node.get("path")


def _is_own(target: str) -> bool:
    """Return True if a dotted path names a class or function that this project defines.

    A module of this project that imports another, such as `os`, makes nothing of it its own.
    """
    module, _, name = target.rpartition(".")
    if not target.startswith(OWN):
        return False
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return str(getattr(found, "__module__", "")).startswith(OWN)
