"""One driver at a time writes into a run's folder, and a dead one holds up nobody."""

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from orchestrator.checkpoints import owner_file
from orchestrator.checkpoints.owner_file import FolderInUseError, OwnerFile


def write(folder, *, host, pid, started, age_s=0.0):
    path = folder / "owner.json"
    path.write_text(json.dumps({"host": host, "pid": pid, "started": started, "token": "other"}))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_a_second_driver_is_refused_and_the_first_one_keeps_the_folder(tmp_path):
    with OwnerFile(tmp_path):
        with pytest.raises(FolderInUseError, match=rf"process {os.getpid()} on .* seen 0 s ago"):
            OwnerFile(tmp_path).__enter__()
        assert (tmp_path / "owner.json").exists()
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_the_folder_of_a_dead_process_of_this_host_is_taken_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write(tmp_path, host=socket.gethostname(), pid=gone.pid, started=time.time())
    with OwnerFile(tmp_path):
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()


def test_another_process_under_the_same_number_is_not_the_owner(tmp_path):
    started = psutil.Process().create_time()
    path = write(tmp_path, host=socket.gethostname(), pid=os.getpid(), started=started - 3600)
    with OwnerFile(tmp_path):
        assert json.loads(path.read_text())["started"] == started


def test_the_driver_of_another_host_is_waited_for_a_minute(tmp_path):
    write(tmp_path, host="elsewhere", pid=1, started=0.0, age_s=50)
    with pytest.raises(FolderInUseError, match=r"process 1 on elsewhere.*try again in 60 s"):
        OwnerFile(tmp_path).__enter__()
    path = write(tmp_path, host="elsewhere", pid=1, started=0.0, age_s=70)
    with OwnerFile(tmp_path):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_a_living_driver_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(owner_file, "TOUCH_EVERY_S", 0.01)
    with OwnerFile(tmp_path):
        os.utime(tmp_path / "owner.json", (0, 0))
        deadline = time.monotonic() + 20
        while (tmp_path / "owner.json").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "owner.json").stat().st_mtime > 0


def test_of_many_drivers_exactly_one_takes_over_a_stale_folder(tmp_path):
    write(tmp_path, host="elsewhere", pid=1, started=0.0, age_s=700)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from orchestrator.checkpoints.owner_file import FolderInUseError, OwnerFile\n"
        "start, folder = Path(sys.argv[2]), Path(sys.argv[1])\n"
        "while not start.exists(): time.sleep(0.001)\n"
        "try:\n"
        "    with OwnerFile(folder): time.sleep(3); print('mine')\n"
        "except FolderInUseError: print('refused')\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "start")]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    time.sleep(1.0)
    (tmp_path / "start").touch()
    said = sorted(driver.communicate(timeout=60)[0].strip() for driver in drivers)
    assert said == ["mine", "refused", "refused", "refused"]
