"""The README tells the truth about the house: its files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_tree_names_every_module():
    tree = README.split("## The house")[1].split("## Commands")[0]
    missing = [
        str(path.relative_to(ROOT))
        for room in ("orchestrator", "workers", "algorithms", "conf")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py" and not re.search(rf"^    {path.name}\s", tree, re.MULTILINE)
    ]
    assert missing == []


def test_the_tree_names_nothing_else():
    tree = README.split("## The house")[1].split("## Commands")[0]
    listed = re.findall(r"^    (\w+\.py)\s", tree, re.MULTILINE)
    have = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert [name for name in listed if name not in have] == []
