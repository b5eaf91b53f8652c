"""The texts of the README and of the guides beside the code, read in pieces, for their tests."""

import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def tracked() -> list[Path]:
    """Files of the repository, new ones too, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [Path(name) for name in listed if (ROOT / name).exists()]


GUIDES = sorted(ROOT / path for path in tracked() if path.name == "README.md")


def fences(guide: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return FENCE.findall(guide.read_text())


def prose(guide: Path) -> str:
    """The text outside fenced blocks."""
    return FENCE.sub("", guide.read_text())


def inline(guide: Path) -> list[str]:
    """What stands between backticks within a line of prose."""
    return re.findall(r"`([^`\n]+)`", prose(guide))
