"""Two files for one choice: refused, because Hydra takes the first it finds and reports nothing.

Folders in, one ConfigError-ready message out. The folders are those that Hydra searched: this
package, and whatever `--config-dir` or `hydra.searchpath` added. Runs in the driver, while the
configuration is composed. Reads no more of a file than its name and its `name:` line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

NAME = re.compile(r"^name:\s*['\"]?([^'\"\s#]+)", re.MULTILINE)


def searched_folders(sources: Sequence[tuple[str, str]]) -> list[Path]:
    """List the folders of (path, schema) pairs, as Hydra lists its configuration sources."""
    here = Path(__file__).resolve().parent
    found = []
    for path, schema in sources:
        if schema == "pkg" and path == here.name:
            found.append(here)
        elif schema == "file":
            found.append(Path(path).resolve())
    return list(dict.fromkeys(found))


def check_duplicates(folders: Sequence[Path], algorithm: str | None) -> None:
    """Refuse a file that another one hides, and a second algorithm of the chosen one's name.

    Args:
        folders: in the order in which they are searched.
        algorithm: the `name` of the chosen algorithm, where it has one.

    Raises:
        ValueError: names both files and the remedy.
    """
    # Folders of these names only: a user's folder may hold anything else, and much of it.
    shipped = Path(__file__).resolve().parent
    groups = sorted({path.parent.relative_to(shipped) for path in shipped.rglob("*.yaml")})
    seen: dict[Path, Path] = {}
    named: list[Path] = []
    for folder in folders:
        members = [path for group in groups for path in sorted((folder / group).glob("*.yaml"))]
        for path in members:
            member = path.relative_to(folder)
            if member in seen:
                raise ValueError(
                    f"{member.with_suffix('')} is defined twice: {seen[member]} hides {path}; give "
                    f"the second a name of its own, such as {path.with_stem('my_' + path.stem)}"
                )
            seen[member] = path
            if member.parent == Path("algorithm"):
                name = NAME.search(path.read_text())
                named += [path] if name is not None and name.group(1) == algorithm else []
    if len(named) > 1:
        raise ValueError(
            f"two algorithms are named {algorithm!r}: {named[0]} and {named[1]}; change `name:` in "
            "yours, so that runs, metrics and checkpoints say which one it was"
        )
