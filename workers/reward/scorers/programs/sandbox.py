"""Run a Python program that nobody has read, shut in by bubblewrap, and return its output.

A scoring process calls `run`. Inside, the program sees its interpreter and a small scratch folder,
no network, no other process and none of the user's files; it has limits on CPU time, wall time,
memory, file size, processes and output. A machine that can't isolate is refused: nothing here runs
a program with less.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

FIRST_USER = 1 << 20  # a root process gives its programs a user of their own, counted from here
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
BLOCK = 1 << 16
# Runs inside, before the program: the limits are hard, and no capability is left to raise them.
START = """
import json, os, resource, sys
limits, user = json.loads(sys.argv.pop())
for name, value in limits.items():
    resource.setrlimit(getattr(resource, name), (value, value))
if user is not None:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
"""


class NoIsolationError(RuntimeError):
    """Machine on which programs can't be shut in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one run.

    Example: Limits(wall_s=4.0, memory_mib=512)

    Attributes:
        wall_s: from the start of the sandbox to its end; CPU seconds are as many, rounded up.
        memory_mib: address space of each process; the scratch folder, which is memory, has a
            quarter of it.
        output_kib: of standard output; a program that writes more is ended.
        num_processes: processes and threads, the interpreter included.
    """

    wall_s: float = 4.0
    memory_mib: int = 512
    output_kib: int = 1024
    num_processes: int = 16

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def as_rlimits(self) -> dict[str, int]:
        """Return the kernel's limits by name."""
        mib = 1 << 20
        return {
            "RLIMIT_CPU": int(self.wall_s) + 1,
            "RLIMIT_AS": self.memory_mib * mib,
            "RLIMIT_FSIZE": max(1, self.memory_mib // 4) * mib,
            "RLIMIT_NPROC": self.num_processes,
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": 64,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    r"""End of one run.

    Example, a program that printed 5:
        Ran(output="5\\n", ended="exit 0")

    Attributes:
        output: standard output, cut at its limit.
        ended: "exit <code>", "time" or "output".
    """

    output: str
    ended: str = field(default="exit 0")


def run(
    code: str, *, stdin: str = "", files: Mapping[str, str] | None = None, limits: Limits
) -> Ran:
    """Run Python code in a sandbox of its own, and end all that it started.

    Args:
        code: runs after the limits are set.
        stdin: the program's standard input.
        files: contents of readable files, by absolute path inside.
        limits: of this run.

    Raises:
        NoIsolationError: there is no bubblewrap.
    """
    rlimits = limits.as_rlimits()
    descriptors = {path: _memory_file(text) for path, text in (files or {}).items()}
    try:
        process = subprocess.Popen(
            [*_command(descriptors, limits), START + code, json.dumps([rlimits, _user()])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=tuple(descriptors.values()),
            start_new_session=True,
        )
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
    try:
        return _follow(process, stdin.encode(), limits)
    finally:
        process.kill()  # with it ends the namespace, and every process inside
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def check_isolation() -> None:
    """Run a program that tries to look outside.

    Raises:
        NoIsolationError: it can't be run, or it sees more than it should.
    """
    code = (
        "import os, socket\n"
        "print(len([name for name in os.listdir('/proc') if name.isdigit()]) < 5,\n"
        "      os.path.exists('/home'), [name for _, name in socket.if_nameindex()])\n"
    )
    ran = run(code, limits=Limits(wall_s=20.0))
    if ran.output.strip() != "True False ['lo']":
        raise NoIsolationError(
            "bubblewrap can't shut a program in on this machine "
            f"({ran.ended}, {ran.output.strip()!r}): allow unprivileged user namespaces "
            "(sysctl user.max_user_namespaces; in Docker --security-opt seccomp=unconfined), and "
            f"let every user read {sys.base_prefix} if this process is root"
        )


@cache
def _bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise NoIsolationError(
            "reward=python needs bubblewrap to shut programs in: run `apt-get install bubblewrap` "
            "on every node that scores"
        )
    return found


def _command(descriptors: Mapping[str, int], limits: Limits) -> list[str]:
    """Return the command that starts the interpreter inside, up to its code."""
    visible = [path for path in SYSTEM if os.path.exists(path)]
    if not sys.base_prefix.startswith("/usr"):
        visible.append(sys.base_prefix)
    above = [str(path) for path in reversed(Path(visible[-1]).parents) if str(path) != "/"]
    # A folder that bubblewrap makes on the way to another is closed to other users.
    folders = [word for path in above for word in ("--perms", "0755", "--dir", path)]
    binds = [word for path in visible for word in ("--ro-bind", path, path)]
    data = [
        word
        for path, descriptor in descriptors.items()
        for word in ("--perms", "0444", "--ro-bind-data", str(descriptor), path)
    ]
    scratch = str(max(1, limits.memory_mib // 4) << 20)
    return [
        *(_bubblewrap(), "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *("--unshare-cgroup-try", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *_own_user(),
        *("--clearenv", "--setenv", "PATH", "/usr/bin:/bin"),
        *("--setenv", "OMP_NUM_THREADS", "1", "--hostname", "sandbox"),
        *(*folders, *binds),
        *("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", scratch, "--tmpfs", "/tmp", "--chdir", "/tmp"),
        *data,
        *("--remount-ro", "/", "--", os.path.realpath(sys.executable), "-I", "-c"),
    ]


def _own_user() -> list[str]:
    """Return the options by which the program is nobody: a namespace, or a user id of its own.

    The kernel does not count the processes of root, so root can't only be renamed.
    """
    if os.geteuid() != 0:
        return ["--unshare-user"]
    return ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]


def _user() -> int | None:
    """Return the user id that the program takes; each scoring process has another."""
    return FIRST_USER + os.getpid() if os.geteuid() == 0 else None


def _memory_file(text: str) -> int:
    descriptor = os.memfd_create("program")
    data = memoryview(text.encode())
    while data:
        data = data[os.write(descriptor, data) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _follow(process: subprocess.Popen[bytes], data: bytes, limits: Limits) -> Ran:
    """Feed and read a running sandbox until it ends or a limit does."""
    assert process.stdin is not None and process.stdout is not None, "both are pipes"
    deadline = time.monotonic() + limits.wall_s
    output, left = bytearray(), memoryview(data)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        ready.register(process.stdin, selectors.EVENT_WRITE)
        while True:
            events = ready.select(max(0.0, deadline - time.monotonic()))
            if not events:
                return Ran(output=_text(output), ended="time")
            for key, _ in events:
                if key.fileobj is process.stdin:
                    left = _feed(process, left)
                    if not left:
                        ready.unregister(process.stdin)
                        process.stdin.close()
                    continue
                block = os.read(process.stdout.fileno(), BLOCK)
                output += block
                if len(output) > limits.output_kib << 10:
                    return Ran(output=_text(output[: limits.output_kib << 10]), ended="output")
                if not block:
                    return Ran(output=_text(output), ended=_end(process, deadline))


def _feed(process: subprocess.Popen[bytes], left: memoryview) -> memoryview:
    """Write what the pipe takes; return the rest, which is nothing where the program reads none."""
    assert process.stdin is not None, "a pipe"
    try:
        return left[os.write(process.stdin.fileno(), left) :] if left else left
    except BrokenPipeError:
        return left[:0]
    except BlockingIOError:
        return left


def _end(process: subprocess.Popen[bytes], deadline: float) -> str:
    """Wait for a program that has closed its output."""
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "time"
    return "time" if code == 128 + signal.SIGXCPU else f"exit {code}"


def _text(output: bytes | bytearray) -> str:
    return bytes(output).decode(errors="replace")
