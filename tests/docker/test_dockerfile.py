"""The Dockerfile: linted by hadolint, and the promises that no linter knows.

How far this is: the file is parsed and linted, and tests/house builds its wheel and reads its pins;
no image is built. deploy/README.md says what a build by hand has shown.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCKER = Path(__file__).parents[2] / "docker"
TEXT = (DOCKER / "Dockerfile").read_text()


def lint(text: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("hadolint"))
    command = [program, "--config", str(DOCKER / "hadolint.yaml"), "--no-color", "-"]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False
    )


def stages(text: str = TEXT) -> dict[str, list[str]]:
    """Stage -> its instructions, with continued lines joined; in the order of the file."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    found: dict[str, list[str]] = {}
    name = "arguments"
    for line in filter(None, (line.strip() for line in joined.splitlines())):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            name = match[2]
        found.setdefault(name, []).append(line)
    return found


def lineage(name: str) -> list[str]:
    """The instructions of a stage after those of the stages that it is built from."""
    own = stages()[name]
    parent = own[0].split()[1]
    return [*(lineage(parent) if parent in stages() else []), *own]


def test_hadolint_finds_nothing():
    done = lint(TEXT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("USER root", "DL3002"),
        ("RUN cd /runs && rm -rf *", "DL3003"),
        ("RUN pip install ray", "DL3013"),
        ("RUN echo $UNQUOTED", "SC2086"),
    ],
)
def test_hadolint_would_find_something(line, rule):
    done = lint(f"{TEXT}\n{line}\n")
    assert done.returncode == 1
    assert rule in done.stdout


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_image_runs_as_a_numbered_user_in_an_empty_folder(target):
    instructions = lineage(target)
    users = [line for line in instructions if line.startswith("USER")]
    assert re.fullmatch(r"USER [1-9]\d{3,}:[1-9]\d{3,}", users[-1])  # runAsNonRoot needs a number
    assert instructions.index(users[-1]) > max(
        k for k, line in enumerate(instructions) if line.startswith("RUN")
    )
    folders = [line for line in instructions if line.startswith("WORKDIR")]
    assert folders == ["WORKDIR /runs"]
    copied = [line for line in instructions if line.startswith("COPY")]
    assert all("/runs" not in line for line in copied)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_image_holds_the_wheel_and_no_source(target):
    copied = [line for line in lineage(target) if line.startswith("COPY")]
    assert "COPY --from=wheel /wheels /wheels" in copied
    sources = ("algorithms", "conf", "orchestrator", "workers")
    assert not [line for line in copied if line.split()[1] in sources]
    installs = [line for line in stages()[target] if "pip install" in line]
    assert len(installs) == 1
    assert "--no-deps /wheels/*.whl" in installs[0]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_environment_is_a_layer_of_its_own(target):
    """A change of the project rebuilds the wheel's layer, not the gigabytes below it."""
    below = stages()[f"{target}-environment"]
    copied = [line for line in below if line.startswith("COPY")]
    assert copied == [f"COPY docker/setup_venv.py docker/requirements-{target}.txt /setup/docker/"]
    assert all("rm -rf /var/lib/apt/lists/*" in line for line in below if "apt-get" in line)


def test_no_secret_enters_a_layer():
    """Pip's configuration is mounted while a command runs; nothing else has a secret's name."""
    for lines in stages().values():
        for line in lines:
            if line.startswith(("ARG", "ENV")):
                assert not re.search(r"token|secret|password|key|index", line, re.IGNORECASE), line
            if line.startswith("COPY"):
                assert "pip.conf" not in line
            if "pip install" in line and "-r " in line:
                assert "--mount=type=secret,id=pip" in line


def test_the_context_is_what_is_copied():
    """What .dockerignore lets through covers every COPY from the context."""
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    for lines in stages().values():
        for line in lines:
            if line.startswith("COPY") and "--from" not in line:
                for source in line.split()[1:-1]:
                    assert source.split("/")[0] in allowed, source


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_stopped_container_signals_the_run_and_not_rays_own_processes(target):
    """With `tini -g` the whole group is signalled: Ray is gone before the run has saved."""
    (entry,) = [line for line in lineage(target) if line.startswith("ENTRYPOINT")]
    assert entry == 'ENTRYPOINT ["tini", "--", "ballast"]'


def test_nothing_is_installed_beside_a_virtual_environment():
    """Debian's Python refuses that (PEP 668); a base with it can be given as CPU_BASE."""
    for lines in stages().values():
        for line in lines:
            for before in re.findall(r"(\S*)pip (?:install|wheel)", line):
                assert before in ("/tools/bin/", "/opt/ballast/bin/"), line
