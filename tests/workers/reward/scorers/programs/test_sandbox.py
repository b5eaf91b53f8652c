"""Hostile programs are contained; a machine that can't contain them is refused."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import psutil
import pytest

from workers.reward.scorers.programs import sandbox
from workers.reward.scorers.programs.sandbox import Limits, NoIsolationError, check_isolation, run

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed"
)
pytestmark = pytest.mark.timeout(60)
LIMITS = Limits(wall_s=3.0, memory_mib=256, output_kib=64)
# program -> how it must end; "left" is printed by a program that reached its aim
HOSTILE = {
    "endless loop": ("while True: pass", "time"),
    "sleep": ("import time\ntime.sleep(600)", "time"),
    "fork bomb": ("import os\nwhile True: os.fork()", "exit 1 or time"),
    "threads": (
        "import threading, time\n"
        "for _ in range(100): threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('left')",
        "time",
    ),
    "huge allocation": ("x = bytearray(10**10)\nprint('left')", "exit 1"),
    "endless allocation": ("x = []\nwhile True: x.append(bytearray(10**6))", "exit 1"),
    "output flood": ("while True: print('x' * 1000)", "output"),
    "full scratch folder": (
        "for k in range(100): open(f'/tmp/{k}', 'wb').write(b'0' * 10**7)\nprint('left')",
        "exit 1",
    ),
    "shared memory": ("open('/dev/shm/x', 'wb').write(b'0' * 10**6)\nprint('left')", "exit 1"),
    "network": (
        "import socket\nsocket.create_connection(('1.1.1.1', 53), 1)\nprint('left')",
        "exit 1",
    ),
    "own machine": (
        "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)\nprint('left')",
        "exit 1",
    ),
    "a file of the user": ("print(open('SECRET').read())\nprint('left')", "exit 1"),
    "passwords": ("print(open('/etc/passwd').read())\nprint('left')", "exit 1"),
    "write to the system": ("open('/usr/lib/x', 'w')\nprint('left')", "exit 1"),
    "write beside itself": ("open('/x', 'w')\nprint('left')", "exit 1"),
    "raise a limit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nprint('left')",
        "exit 1",
    ),
    "another user": ("import os\nos.setuid(0)\nprint('left')", "exit 1"),
    "the environment": ("import os\nprint(os.environ['SECRET'], 'left')", "exit 1"),
}


@needs_bubblewrap
@pytest.mark.parametrize(("code", "ended"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_program_is_contained(
    code: str, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("SECRET", "password")
    (tmp_path / "secret").write_text("password")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        code = code.replace("PORT", port).replace("'SECRET'", repr(str(tmp_path / "secret")))
        if "environ" in code:
            code = code.replace(repr(str(tmp_path / "secret")), "'SECRET'")
        began = time.monotonic()
        ran = run(code, limits=LIMITS)
    assert ran.ended in ended.split(" or ")
    assert "left" not in ran.output
    assert "password" not in ran.output
    assert len(ran.output) <= 64 << 10
    assert time.monotonic() - began < 20.0


@needs_bubblewrap
def test_a_program_that_kills_all_it_sees_leaves_its_parent_alive() -> None:
    code = (
        "import os, signal\n"
        "for pid in (1, os.getppid(), *range(2, 3000), -1):\n"
        "    try:\n"
        "        os.kill(pid, signal.SIGKILL) if pid != os.getpid() else None\n"
        "    except OSError:\n"
        "        pass\n"
    )
    run(code, limits=LIMITS)
    assert run("print('alive')", limits=LIMITS).output == "alive\n"


@needs_bubblewrap
def test_a_daemon_ends_with_its_sandbox() -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.execv('/usr/bin/env', ['a-daemon-of-a-program', 'sleep', '12345'])\n"
        "    os._exit(0)\n"
        "time.sleep(0.3)\n"
        "print('started')\n"
    )
    assert run(code, limits=LIMITS).output == "started\n"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _sleepers():
        time.sleep(0.1)
    assert _sleepers() == []


def _sleepers() -> list[int]:
    running = psutil.process_iter(["cmdline"])
    return [process.pid for process in running if (process.info["cmdline"] or [])[-1:] == ["12345"]]


@needs_bubblewrap
def test_input_files_and_output_of_a_friendly_program() -> None:
    code = "print(sys.stdin.read().upper() + open('/run/data').read())"
    ran = run(code, stdin="five" * 50_000, files={"/run/data": "é"}, limits=Limits(output_kib=512))
    assert ran.output == "FIVE" * 50_000 + "é\n"
    assert ran.ended == "exit 0"


@needs_bubblewrap
def test_a_program_that_reads_no_input_is_not_waited_for() -> None:
    ran = run("print('done')", stdin="x" * 1_000_000, limits=LIMITS)
    assert (ran.output, ran.ended) == ("done\n", "exit 0")


@needs_bubblewrap
def test_this_machine_isolates_and_leaves_no_descriptor() -> None:
    check_isolation()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run("", files={"/run/data": "x"}, limits=LIMITS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_machine_without_bubblewrap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox._bubblewrap.cache_clear()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoIsolationError, match="apt-get install bubblewrap"):
        check_isolation()
    sandbox._bubblewrap.cache_clear()


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="memory_mib must be positive, got 0"):
        Limits(memory_mib=0)
