"""What engines leave behind belongs to one folder each, which goes with them or after them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.engines.vllm.leftovers import EngineFolder, clear_dead

OWNER = """
import mmap, os, sys, time
from pathlib import Path
from workers.engines.vllm.leftovers import EngineFolder
folder = EngineFolder(Path(sys.argv[1]))
folder.use_for_sockets()
Path(os.environ["VLLM_RPC_BASE_PATH"], "socket").touch()
with open(sys.argv[2], "w+b") as file:
    file.truncate(4096)
    mapped = mmap.mmap(file.fileno(), 4096)
folder.list_shared_memory()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def shared():
    """A file in /dev/shm, named as vLLM's buffers are."""
    path = Path(f"/dev/shm/psm_test_{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


def test_what_a_killed_engine_leaves_goes_with_the_next_start(tmp_path, shared):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), str(shared)], stdout=subprocess.PIPE
    )
    assert owner.stdout.readline() == b"ready\n"
    (folder,) = tmp_path.iterdir()
    assert (folder / "socket").exists()
    clear_dead(tmp_path)
    assert folder.exists()  # its owner lives
    assert shared.exists()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert folder.exists()
    assert shared.exists()
    own = EngineFolder(tmp_path)
    assert list(tmp_path.iterdir()) == [own.path]
    assert not shared.exists()
    own.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_lock_is_nobodys_of_ours(tmp_path):
    (tmp_path / "ballast-engine-other").mkdir()
    clear_dead(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ballast-engine-other"]


def test_many_engines_start_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from workers.engines.vllm.leftovers import EngineFolder\n"
        "for _ in range(100):\n"
        "    folder = EngineFolder(Path(sys.argv[1]))\n"
        "    assert folder.path.exists()\n"
        "    folder.remove()\n"
    )
    began = time.monotonic()
    racing = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in racing] == [0] * 4, time.monotonic() - began
    assert list(tmp_path.iterdir()) == []
