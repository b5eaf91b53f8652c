"""Compare the configurations and the manifests of runs, key by key.

Pure functions on what `run_record.py` read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from orchestrator.report.run_record import RunRecord

NAMES = ("run_name", "output_dir")  # differ between any two runs and say nothing


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys -> values; an empty group is a value.

    Example: {"a": {"b": 1, "c": {}}} -> {"a.b": 1, "a.c": {}}
    """
    found: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def facts(record: RunRecord) -> dict[str, str]:
    """Return all that identifies a run as dotted key -> text.

    Data files are named by their last two folders, so that equal data in two caches are equal keys.
    """
    manifest = dict(record.manifest)
    data = manifest.pop("data_sha256", None) or {}
    found = {f"manifest.{key}": value for key, value in flat(manifest).items()}
    found |= {f"data.sha256.{PurePath(path).name}": digest for path, digest in data.items()}
    found |= flat(record.config)
    return {key: value if isinstance(value, str) else _text(value) for key, value in found.items()}


def _text(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)


def differences(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the keys in which runs differ, with the value of each run; None where it has none.

    Example: [{"key": "algorithm.name", "values": ["cpgd", "grpo"]}]
    """
    sides = [facts(record) for record in records]
    keys = list(dict.fromkeys(key for side in sides for key in side))
    found = []
    for key in keys:
        values = [side.get(key) for side in sides]
        if len(set(values)) > 1 and key not in NAMES:
            found.append({"key": key, "values": values})
    return found
