"""Composition of a checked configuration from overrides: Hydra composes, the schema types.

`compose` returns the resolved Hydra config (for printing, saving and `instantiate`) and the typed
`TrainConfig` built from it. Every fault is a `ConfigError` with one message: an unknown key or
group member comes with the nearest valid name. Runs in the driver and in every command. Starts
nothing and builds none of the objects that the configuration names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.duplicates import check_duplicates, searched_folders
from conf.precision import resolve_dtypes
from conf.schema import TrainConfig
from conf.suggestions import dotted_keys, explain_key, explain_member

ConfigStore.instance().store(name="train_schema", node=TrainConfig)
# `${share:8,${rollout.tensor_parallel_size}}`: how many engines so many GPUs hold, at least one.
OmegaConf.register_new_resolver(
    "share", lambda total, each: max(1, int(total) // max(1, int(each))), replace=True
)
# `${rest:64,4,4}`: the context without the longest response, which is left to prompts.
OmegaConf.register_new_resolver(
    "rest", lambda context, *new: max(1, int(context) - max(map(int, new))), replace=True
)

# Groups of a saved run that `ballast eval` may replace, with their place in the configuration.
REPLACEABLE = {
    "data": "data",
    "reward": "reward",
    "environment": "environment",
    "rollout": "rollout",
    "cluster": "cluster",
    "evaluation/set": "evaluation.sets",
}

# Keys that the schema has no use for, whose nearest name would mislead.
NEEDLESS = {
    "cluster.actor": "the learner is the actor at the start of a step, with the learner's "
    "placement; leave the key out",
}


class ConfigError(ValueError):
    """Fault of a configuration that can't run; the message names key, value and remedy."""


def compose(
    overrides: Sequence[str], *, config_dir: str | None = None
) -> tuple[DictConfig, TrainConfig]:
    """Compose `conf/train.yaml` with Hydra overrides.

    Args:
        overrides: Hydra's override grammar, such as `algorithm=cpgd` or `rollout.num_engines=2`.
        config_dir: absolute folder of your own groups, searched beside this package.

    Raises:
        ConfigError: when the overrides or the values can't be right.
    """
    arguments = list(overrides)
    if config_dir is not None:
        arguments.append(f"hydra.searchpath=[file://{config_dir}]")
    with initialize_config_module("conf", version_base="1.3"):
        try:
            config = hydra_compose("train", overrides=arguments, return_hydra_config=True)
            sources = config.hydra.runtime.config_sources
            OmegaConf.set_struct(config, False)
            del config["hydra"]
            # Plain, so that the schema sees what `+key=` added to a typed section.
            plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(_explain(error, arguments)) from error
    _check_whole(plain)
    try:
        folders = searched_folders([(source.path, source.schema) for source in sources])
        check_duplicates(folders, plain.algorithm.get("name"))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return complete(plain)


def override(
    saved: DictConfig, overrides: Sequence[str], *, config_dir: str | None = None
) -> DictConfig:
    """Apply overrides to a configuration that a run saved: values, and members of some groups.

    Args:
        saved: as `complete` returned it.
        overrides: in the grammar of `compose`; a group replaces what the run had of it.
        config_dir: absolute folder of your own groups, searched beside this package.

    Raises:
        ConfigError: an override that can't be read, or a group that would make it another run.
    """
    merged = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(saved, resolve=True)))
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        groups = {each.key_or_group: each for each in parsed if each.key_or_group in _groups()}
        if refused := sorted(set(groups) - set(REPLACEABLE)):
            raise ConfigError(
                f"{refused[0]}=: a saved run keeps its own; of its groups only "
                f"{', '.join(REPLACEABLE)} can be replaced"
            )
        if groups:
            chosen = [str(each.input_line) for each in groups.values()]
            chosen.append("~experiment")  # whose values are those of another run
            chosen += [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir}]"]
            with initialize_config_module("conf", version_base="1.3"):
                composed = hydra_compose("train", overrides=chosen)
            for name in groups:
                OmegaConf.update(merged, REPLACEABLE[name], None)
                node = OmegaConf.select(composed, REPLACEABLE[name])
                plain = OmegaConf.to_container(node, resolve=False)
                OmegaConf.update(merged, REPLACEABLE[name], plain)
        for each in parsed:
            if each.key_or_group not in groups:
                OmegaConf.update(merged, each.key_or_group, each.value(), merge=True)
        OmegaConf.resolve(merged)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides)) from error
    return merged


def complete(config: DictConfig | ListConfig) -> tuple[DictConfig, TrainConfig]:
    """Type and check a configuration, such as one read from a run's `config.yaml`.

    Raises:
        ConfigError: when a key is unknown or a value can't be right.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), config)
        _check_whole(merged)
        resolve_dtypes(cast(DictConfig, merged))
        typed = cast(TrainConfig, OmegaConf.to_object(merged))
        typed.check()
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return cast(DictConfig, merged), typed


def _check_whole(config: DictConfig | ListConfig) -> None:
    """Raise ConfigError for a value that is still to be given, such as a group that was removed."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(
            f"{missing[0]} has no value: give {missing[0]}=..., or leave out the override that "
            "removes it"
        )


def _explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """Return the innermost reason, with the nearest valid name where one is missing."""
    reason: BaseException = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    key = _missing_key(reason) or _missing_key(error)
    if key is not None:
        if (needless := _needless(key)) is not None:
            return f"unknown key {key!r}: {needless}"
        return explain_key(key, _groups() if "/" in key else _known_keys(overrides, key))
    if (group := re.search(r"Could not find '([^']+)'", str(error))) is not None:
        members = re.findall(r"^\t(\S+)$", str(error), flags=re.MULTILINE)
        folder, _, member = group.group(1).rpartition("/")
        return explain_member(folder, member, members)
    if "Config group override must be a string" in str(error):
        chosen = (text.lstrip("+").partition("=") for text in overrides)
        nulls = [f"{key}=null" for key, _, member in chosen if member == "null" and "." not in key]
        return (
            f"{', '.join(nulls)}: a group is chosen by the name of a member; name one, or leave "
            "the override out"
        )
    return _first_line(error if _names_group(str(error)) else reason)


def _needless(key: str) -> str | None:
    """Return the reason for a key that the schema has no use for, or None."""
    found = (why for name, why in NEEDLESS.items() if key == name or key.startswith(f"{name}."))
    return next(found, None)


def _names_group(text: str) -> bool:
    return "Could not find" in text


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _missing_key(error: BaseException) -> str | None:
    full = re.search(r"full_key: (\S+)", str(error))
    if "not in" in str(error) and full is not None:
        return full.group(1)
    found = re.search(r"Could not override '([^']+)'", str(error))
    return found.group(1) if found else None


def _known_keys(overrides: Sequence[str], wrong: str) -> list[str]:
    """Return the dotted keys of what the overrides compose without those of the wrong key.

    Called while Hydra is initialised. Where the other overrides don't compose either, the keys are
    those of the schema, which has none below `algorithm` and other nodes with a `_target_`.
    """
    right = [text for text in overrides if not text.lstrip("+~").startswith(wrong)]
    try:
        config = hydra_compose("train", overrides=right) if overrides else None
    except (HydraException, OmegaConfBaseException):
        config = None
    tree = OmegaConf.to_container(config or OmegaConf.structured(TrainConfig), resolve=False)
    return list(dotted_keys(cast(dict[str, object], tree)))


def _groups() -> list[str]:
    """Return the names of this package's groups, such as `algorithm/gate`."""
    here = Path(__file__).resolve().parent
    folders = {path.parent.relative_to(here) for path in here.rglob("*.yaml")}
    return sorted(str(folder.as_posix()) for folder in folders if folder != Path())
