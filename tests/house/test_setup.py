"""Setting up: how the pins are shared out, what is skipped, and what a failure says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def setup_venv() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_venv", ROOT / "docker" / "setup_venv.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_two_shares_are_the_file(setup_venv: ModuleType, kind: str):
    pins = setup_venv.read_pins(ROOT / "docker" / f"requirements-{kind}.txt")
    first, second = setup_venv.divide(pins)
    assert sorted(first + second) == sorted(pins)
    assert abs(len(first) - len(second)) <= 2
    assert first[0].startswith("torch==")
    assert {"torch", "deepspeed"} <= {setup_venv.package_name(pin) for pin in first}


def test_a_missing_cpu_torch_is_named_with_its_remedy(setup_venv: ModuleType, tmp_path: Path):
    log = tmp_path / "pip.log"
    log.write_text("ERROR: No matching distribution found for torch==2.13.0+cpu\n")
    message = setup_venv.explain(log)
    assert "torch==2.13.0+cpu" in message
    assert "extra index" in message
    assert len(message.splitlines()) == 1


def test_any_other_failure_shows_the_end_of_the_log(setup_venv: ModuleType, tmp_path: Path):
    log = tmp_path / "pip.log"
    log.write_text("\n".join(f"line {i}" for i in range(100)))
    message = setup_venv.explain(log)
    assert str(log) in message
    assert message.endswith("line 98\nline 99")
    assert "line 74" not in message


@pytest.mark.parametrize("version", [(3, 10, 12), (3, 14, 0)])
def test_an_unsupported_python_is_refused(
    setup_venv: ModuleType, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
):
    monkeypatch.setattr(setup_venv.sys, "version_info", version)
    with pytest.raises(setup_venv.SetupError, match=r"needs Python 3\.11, 3\.12 or 3\.13"):
        setup_venv.check_interpreter()


@pytest.mark.parametrize("folder", ["a b", "a:b"])
def test_a_clone_at_a_path_where_tools_fail_is_refused_in_one_line(tmp_path: Path, folder: str):
    clone = tmp_path / folder
    (clone / "docker").mkdir(parents=True)
    for name in ("Makefile", "docker/setup_venv.py"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", f"PYTHON={sys.executable}", "setup"],
        cwd=clone,
        env=own,  # not that of a `make test` around this test
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"setup: {str(clone)!r} has a space or a ':' in it")
    assert not (clone / ".venv").exists()


def test_a_finished_environment_is_left_alone(setup_venv: ModuleType, tmp_path: Path):
    environment = setup_venv.Environment(tmp_path, "cpu")
    assert environment.read_stamp() == {}
    (tmp_path / "bin").mkdir()
    # An interpreter that fails when it is used: any pip call would raise.
    (tmp_path / "bin" / "python").symlink_to("/bin/false")
    environment.write_stamp(**environment.wanted)
    environment.update()
    environment.write_stamp(**dict(environment.wanted, project="another"))
    with pytest.raises(setup_venv.SetupError):
        environment.update()
    assert json.loads(Path(environment.stamp_path).read_text())["project"] == "another"


def test_continuous_integration_runs_what_the_readme_names():
    calls = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert calls == ["check", "test"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = set(re.findall(r"\bmake ([a-z-]+)`", (ROOT / "README.md").read_text()))
    assert set(calls) <= targets
    assert readme <= targets
    assert {"quickstart", "test", "check"} <= targets


def test_the_wheel_ships_every_module_and_every_yaml(tmp_path: Path):
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    rooms = ("algorithms/", "conf/", "orchestrator/", "workers/")
    source = tmp_path / "source"
    for name in [f for f in files if f.startswith(rooms) or f in ("pyproject.toml", "README.md")]:
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "--wheel-dir", tmp_path, source], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("ballast_rl-*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(source))
        for room in rooms
        for path in (source / room).rglob("*")
        if path.suffix in (".py", ".yaml", ".js", ".css", ".j2", ".txt")
    }
    assert expected <= shipped
    assert {name.split("/")[0] + "/" for name in shipped} == set(rooms)
