"""Cache of built folders, each of which comes into being all at once or not at all.

Data flows from a builder function into a folder beside the target, which is renamed when it is
complete. Runs in the driver and in the commands that build. Not a download cache: every folder is
the result of a recipe (a small JSON mapping) that is stored inside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RECIPE_FILE = "ballast_recipe.json"


def cache_dir(kind: str = "models") -> Path:
    """Return the folder of built models (or data), without creating it.

    `$BALLAST_CACHE/<kind>` if that variable is set, else `$XDG_CACHE_HOME/ballast/<kind>`, else
    `~/.cache/ballast/<kind>`.
    """
    if explicit := os.environ.get("BALLAST_CACHE"):
        return Path(explicit).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "ballast" / kind


def default_path(recipe: Mapping[str, Any], name: str, kind: str = "models") -> Path:
    """Return `<cache>/<kind>/<name>-<hash of the recipe>`: other arguments, another folder."""
    return cache_dir(kind) / f"{name}-{recipe_hash(recipe)}"


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that stand for a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def build_once(path: str | Path, recipe: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """Build a folder unless it is already there, so that readers only ever find a complete one.

    Args:
        path: the folder to build. Its parent is created.
        recipe: what the folder is made from, JSON values only; equal recipes mean equal folders.
        write: called with an empty folder beside `path`, which it fills.

    Returns:
        `path`, absolute.

    Raises:
        ValueError: `path` exists and was not made from this recipe.
    """
    target = Path(path).expanduser().absolute()
    wanted = json.loads(json.dumps(recipe))
    if target.exists():
        _require_recipe(target, wanted)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private; other users may share the cache
        write(temporary)
        (temporary / RECIPE_FILE).write_text(json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        temporary.rename(target)
    except OSError:
        # A second process may have finished the same folder first; anything else is an error.
        if not target.exists():
            raise
        _require_recipe(target, wanted)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silence transformers' loading and saving bars, which would tear up a live display."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _require_recipe(target: Path, wanted: Mapping[str, Any]) -> None:
    recipe_path = target / RECIPE_FILE
    found = json.loads(recipe_path.read_text()) if recipe_path.is_file() else None
    if found != wanted:
        raise ValueError(
            f"{target} exists and was built from {found}, not from {dict(wanted)}: "
            "give another path, or delete that folder"
        )
