"""What may import what: each room, imported alone in a fresh interpreter, leaves the rest outside.

import-linter reads the source; these tests watch the interpreter, so that an import inside a
function that runs at import time is seen too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
ROOMS = ("algorithms", "conf", "orchestrator", "workers")
ENGINES = ("ray", "vllm", "deepspeed", "transformers")


def modules(room: str) -> list[str]:
    """Every module of a room by its dotted name."""
    names = []
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in sys.modules after a fresh interpreter has run the statement."""
    program = f"{statement}\nimport sys; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    # Away from the repository root, so that what is imported is what is installed.
    done = subprocess.run(
        [sys.executable, "-c", program], cwd="/", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_every_module_of_algorithms_imports_without_an_engine_or_a_configuration():
    loaded = loaded_by("import " + ", ".join(modules("algorithms")))
    assert "torch" in loaded
    assert not loaded & {
        *ENGINES,
        "hydra",
        "omegaconf",
        "pyarrow",
        "workers",
        "orchestrator",
        "conf",
    }


def test_every_module_of_conf_imports_without_torch_or_what_it_configures():
    loaded = loaded_by("import " + ", ".join(modules("conf")))
    assert not loaded & {*ENGINES, "torch", "workers", "orchestrator", "algorithms"}


@pytest.mark.parametrize("room", ["workers", "orchestrator", "orchestrator.cli.parser"])
def test_opening_a_room_loads_nothing_heavy(room: str):
    assert not loaded_by(f"import {room}") & {*ENGINES, "torch", "pyarrow"}


def test_the_command_line_explains_itself_quickly():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [SCRIPTS / "ballast", "--help"], cwd="/", capture_output=True, text=True, timeout=60
        )
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "train" in done.stdout
    # 0.2 s alone; on a busy machine more, but never what loading an engine takes.
    assert min(seconds) < 2.5


def test_the_import_contracts_hold():
    done = subprocess.run(
        [SCRIPTS / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_every_folder_with_code_is_a_package(room: str):
    folders = {path.parent for path in (ROOT / room).rglob("*.py")}
    assert folders
    assert [str(f) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_no_folder_of_tests_is_a_package():
    """An __init__.py under tests/ would let tests/conf shadow conf."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_a_learners_models_import_without_deepspeed_vllm_and_ray():
    """So that a bare GPU with torch and transformers can show what they compute."""
    model = ("policy_model", "critic_model")
    zero = ("weighted_loss", "optimizers", "hf_export")
    names = [f"model.{part}" for part in model] + [f"zero.{part}" for part in zero]
    loaded = loaded_by("import " + ", ".join(f"workers.engines.{name}" for name in names))
    assert not loaded & {"deepspeed", "vllm", "ray"}
