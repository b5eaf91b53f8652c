"""The README tells the truth about the house: its files and its metrics."""

import ast
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


def test_the_glossary_lists_what_the_orchestrator_emits():
    glossary = README.split("## Metric glossary")[1]
    emitted = set()
    for room in ("orchestrator", "workers"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    areas = "reward|rollout|groups|samples|staleness|mismatch|credit|learner|critic"
                    pattern = rf"^({areas}|publication|ledger|time)/\w+$"
                    if re.match(pattern, node.value):
                        emitted.add(node.value)
    assert len(emitted) > 20
    short = re.sub(r"_(max|min|std|mean|s)$", "", glossary)  # `_max` stands for name_max
    missing = [
        name
        for name in emitted
        if name not in short and re.sub(r"_(max|min|std|mean)$", "", name) not in short
    ]
    assert missing == []
