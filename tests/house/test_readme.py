"""The README and the guides tell the truth: sizes, paths, tests, links, folders, members."""

import ast
import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from guides import GUIDES, README, ROOT, fences, inline, prose, tracked  # noqa: E402

PACKAGES = ("algorithms", "conf", "orchestrator", "workers")
MAX_README_BYTES, MAX_GUIDE_BYTES = 12 * 1024, 25 * 1024
PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*/?")
SUFFIXES = (".py", ".yaml", ".sh", ".sbatch", ".md", ".png", ".txt", "/")
# Files of a reader, and parts of a run's folder.
NOT_OURS = {"my_rewards.py", "my_losses.py", "config.yaml", "scale/", "final/", "final/adapter/"}
NOT_OURS |= {"profiles/", "checkpoints/step_000010/", "tensorboard/"}


def test_sizes() -> None:
    assert len(README.read_bytes()) <= MAX_README_BYTES
    assert [guide for guide in GUIDES if len(guide.read_bytes()) > MAX_GUIDE_BYTES] == []


def test_every_fence_names_its_language() -> None:
    known = {"bash", "console", "python", "yaml", "text"}
    assert {lang for guide in GUIDES for lang, _ in fences(guide)} <= known
    hidden = [
        line
        for guide in GUIDES
        for language, block in fences(guide)
        for line in block.splitlines()
        if language == "text" and re.match(r"(\$ |ballast |make |python )", line)
    ]
    assert hidden == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_exists(guide: Path) -> None:
    top = {path.parts[0] for path in tracked()}
    trees = [block for language, block in fences(guide) if language == "text"]
    firsts = [line.split()[0] for block in trees for line in block.splitlines() if line.strip()]
    listed = [] if guide == README else [word for word in firsts if word.endswith((".py", "/"))]
    named = [word.split("::")[0].split(":")[0] for word in inline(guide)]
    missing = []
    for word in {*named, *listed} - NOT_OURS:
        of_ours = word.endswith(SUFFIXES) or (word.split("/")[0] in top and "/" in word)
        if not PATH.fullmatch(word) or not of_ours or "NAME" in word:
            continue
        places = [ROOT, guide.parent, *guide.parent.glob("*/")]
        if not any(list(place.glob(word.rstrip("/"))) for place in places):
            missing.append(word)
    assert missing == []


def test_every_test_that_is_named_exists() -> None:
    text = "\n".join(guide.read_text() for guide in GUIDES)
    found = set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", text))
    assert len(found) > 10
    for path, name in found:
        tree = ast.parse((ROOT / path).read_text())
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {n.name for n in ast.walk(tree) if isinstance(n, kinds)}, f"{path}::{name}"


def anchors(guide: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(guide), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in headings}


def test_every_link_resolves_and_every_guide_is_linked() -> None:
    linked = set()
    for guide in GUIDES:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(guide)):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = (guide.parent / path).resolve() if path else guide
            assert file.exists(), f"{guide}: {target}"
            assert not anchor or anchor in anchors(file), f"{guide}: {target}"
            linked |= {file} if guide == README else set()
    assert {guide for guide in GUIDES if guide not in {README, *linked}} == set()


def test_the_layout_lists_every_folder_with_code_in_one_line() -> None:
    block = README.read_text().split("## Layout")[1].split("```")[1]
    listed: list[str] = []
    levels: list[str] = []
    for indent, name in re.findall(r"^( *)([\w-]+)/", block, re.MULTILINE):
        levels = [*levels[: len(indent) // 2], name]
        listed.append("/".join(levels))
    code = {p.parent for p in tracked() if p.suffix == ".py" and p.name != "__init__.py"}
    rooms = {path for path in code if path.parts and path.parts[0] in PACKAGES}
    rooms |= {parent for room in rooms for parent in room.parents if parent.parts}
    tops = {Path(p.parts[0]) for p in tracked() if len(p.parts) > 1 and p.parts[0][0] != "."}
    assert sorted(listed) == sorted(str(path) for path in rooms | tops)


def test_every_member_of_every_group_is_in_the_guide_of_conf() -> None:
    words = set(re.findall(r"[\w]+", (ROOT / "conf" / "README.md").read_text()))
    yamls = [p for p in tracked() if p.parts[0] == "conf" and p.suffix == ".yaml"]
    ours = [p for p in yamls if p.parts[1] != "algorithm" or len(p.parts) == 3]
    assert {str(p) for p in ours if "base" not in p.parts and p.stem not in words} == set()
    count = len([p for p in yamls if p.parent == Path("conf/algorithm")])
    assert f"{count} algorithms" in README.read_text()
