"""The floor plan: rooms of few files, no circle of imports, tests in the rooms of their code.

import-linter holds the order of the rooms; these tests hold what no contract says. A room is a
folder, and the files that stand in a package's root are a room of their own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("algorithms", "conf", "orchestrator", "workers")
MOST_FILES = 14
# Rooms that hold more, and why they may.
LARGER = {
    "algorithms": 20,  # one kind of part per file; a reader of one kind opens one file
    "conf/schema": 16,  # one file per Hydra group
    "orchestrator/planning": 17,  # one plan, a file for each question that it answers
    "workers/engines/zero": 16,  # one engine, whose files share DeepSpeed's flat buffers
}
# Tests of code that is not ours: what the installed vLLM, Ray and DeepSpeed take from us.
FOREIGN = {"workers/contracts"}
# Modules that no test imports: programs, what Ray or vLLM starts by name, and what is tested
# through its callers. A new module has a test of its own, so the number only falls.
MOST_UNTESTED = 60


def name_of(path: Path) -> str:
    """Dotted name of a module or of a package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for room in PACKAGES for path in sorted((ROOT / room).rglob("*.py"))}
PLAIN = {name: path for name, path in MODULES.items() if path.name != "__init__.py"}


def imported_by(path: Path) -> set[str]:
    """Modules of the four packages that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    return found & MODULES.keys()


def room_of(name: str) -> str:
    """Folder of a module, relative to the root."""
    return str(MODULES[name].parent.relative_to(ROOT))


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Sets of nodes that reach each other, each sorted."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for node in graph.get(todo.pop(), ()):
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
        return seen

    reach = {node: reached(node) for node in graph}
    in_circles = {node for node in graph if node in reach[node]}
    whole = {
        tuple(sorted(other for other in reach[node] if node in reach.get(other, ())))
        for node in in_circles
    }
    return sorted(list(circle) for circle in whole)


IMPORTS = {name: imported_by(path) - {name} for name, path in MODULES.items()}


def test_a_circle_is_found_with_all_its_members():
    graph = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": [], "e": ["f"], "f": ["e"]}
    assert circles(graph) == [["a", "b", "c"], ["e", "f"]]
    assert circles({"a": ["b"], "b": ["c"], "c": []}) == []


def test_no_files_import_each_other():
    assert sum(len(imports) for imports in IMPORTS.values()) > 500
    assert circles(IMPORTS) == []


def test_no_rooms_import_each_other():
    rooms: dict[str, set[str]] = {room_of(name): set() for name in MODULES}
    for name, imports in IMPORTS.items():
        rooms[room_of(name)] |= {room_of(other) for other in imports} - {room_of(name)}
    assert circles(rooms) == []


def test_no_room_is_crowded():
    counts: dict[str, int] = {}
    for name in PLAIN:
        counts[room_of(name)] = counts.get(room_of(name), 0) + 1
    crowded = {
        room: count for room, count in counts.items() if count > LARGER.get(room, MOST_FILES)
    }
    assert crowded == {}
    assert {room for room in LARGER if counts[room] <= MOST_FILES} == set()  # exceptions go too


@pytest.mark.parametrize("package", PACKAGES)
def test_tests_stand_in_the_rooms_of_their_code(package: str):
    here = ROOT / "tests"
    folders = {path.parent.relative_to(here) for path in (here / package).rglob("*.py")}
    assert folders
    lone = {str(folder) for folder in folders if not (ROOT / folder).is_dir()}
    assert lone - FOREIGN == set()


def test_few_modules_are_imported_by_no_test():
    files = [path for path in (ROOT / "tests").rglob("*.py") if "bench" not in path.parts]
    tested = {name for path in files for name in imported_by(path)}
    untested = sorted(PLAIN.keys() - tested)
    assert len(untested) <= MOST_UNTESTED, untested
