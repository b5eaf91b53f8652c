"""Let at most one driver write into a run's folder.

`owner.json` names the driver that writes: host, process and when the process started. It is created
by an exclusive `open`, which is atomic on local disks and on NFS, and touched by a thread while the
driver lives. A driver that died leaves the file behind; the next one takes the folder over at once
where it can see that the process is gone (same host), else when the file was not touched for
`STALE_S`. Ages are differences of two times of the same file system, so that the clocks of hosts
do not matter.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

import psutil

NAME = "owner.json"
TOUCH_EVERY_S = 10.0
STALE_S = 60.0


class FolderInUseError(ValueError):
    """A folder into which another driver writes; the message names that driver."""


class OwnerFile:
    """The claim of this process on a folder, held while it is entered.

    Args:
        folder: exists.

    Raises:
        FolderInUseError: on entering, when another driver holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / NAME
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="owner-file", daemon=True)

    def __enter__(self) -> OwnerFile:
        self._remove_if_stale()
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "token": self._token,
        }
        try:
            with self._path.open("x") as file:
                file.write(json.dumps(record) + "\n")
        except FileExistsError:
            raise FolderInUseError(self._in_use()) from None
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        if _read(self._path).get("token") == self._token:
            self._path.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._ended.wait(TOUCH_EVERY_S):
            if self._path.exists():
                os.utime(self._path)

    def _remove_if_stale(self) -> None:
        """Remove the file of a driver that is gone.

        A second file guards it: without, a driver could judge the old file and remove the new one
        of another driver.
        """
        guard = self._path.with_name(f"{NAME}.takeover")
        try:
            guard.open("x").close()
        except FileExistsError:
            if self._age_s(guard) > STALE_S:  # its driver died in between; the next one can try
                guard.unlink(missing_ok=True)
            return
        if self._path.exists() and self._is_stale():
            self._path.unlink(missing_ok=True)
        guard.unlink(missing_ok=True)

    def _is_stale(self) -> bool:
        owner = _read(self._path)
        if owner.get("host") == socket.gethostname():
            return not _runs(owner)
        return self._age_s(self._path) > STALE_S

    def _age_s(self, path: Path) -> float:
        """Return the seconds since a file was touched, by the clock of its file system."""
        probe = self._folder / f".{NAME}.{self._token}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        try:
            return now - path.stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def _in_use(self) -> str:
        owner, age_s = _read(self._path), max(0.0, self._age_s(self._path))
        return (
            f"{self._folder} is in use by process {owner.get('pid', '?')} on "
            f"{owner.get('host', '?')}, which was seen {age_s:.0f} s ago; stop that run or choose "
            f"another run_name=. If its host is gone, try again in {STALE_S:.0f} s"
        )


def _read(path: Path) -> dict[str, Any]:
    """Return the record of an owner; empty where it is gone or half written."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _runs(owner: dict[str, Any]) -> bool:
    """Return True while the very process runs that wrote the record on this host."""
    try:
        started = float(psutil.Process(int(owner["pid"])).create_time())
    except (psutil.NoSuchProcess, KeyError, ValueError, TypeError):
        return False
    return abs(started - float(owner["started"])) < 1.0
