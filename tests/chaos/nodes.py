"""A Ray cluster of two nodes on this machine, one of which may be lost and comes back.

Used by `chaos.py`. The head has no room for an engine, so that every loss of a node takes processes
along.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.chaos.processes import MARK, marked

CPUS = "4"


class TwoNodes:
    """A head and a second node, with the environment of a run."""

    def __init__(self, environ: dict[str, str], folder: Path) -> None:
        self._environ = environ | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self._port = str(20000 + os.getpid() % 10000)
        self.address = f"127.0.0.1:{self._port}"
        self._log = (folder / "nodes.log").open("ab")
        self._head = self._start("--head", f"--port={self._port}", "--include-dashboard=false")
        self._second = self._join()

    def _start(self, *how: str) -> subprocess.Popen[bytes]:
        command = ["ray", "start", "--block", f"--num-cpus={CPUS}", *how]
        more = ["--object-store-memory=200000000", "--disable-usage-stats"]
        process = subprocess.Popen(
            [*command, *(more if "--head" in how else more[:1])],
            env=self._environ,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        time.sleep(12.0)
        return process

    def _join(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", "--node-ip-address=127.0.0.1")

    def raylets(self) -> list[psutil.Process]:
        """Return the second node's raylet."""
        below = psutil.Process(self._second.pid).children(recursive=True)
        return [process for process in below if process.name() == "raylet"]

    def mend(self) -> None:
        """Let the second node join again if it is gone."""
        if not self.raylets() or any(r.status() == psutil.STATUS_STOPPED for r in self.raylets()):
            self._end(self._second)
            self._second = self._join()

    def processes(self) -> set[int]:
        """Return the processes of the cluster itself, which outlive a run."""
        pids = set()
        for node in (self._head, self._second):
            below = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
            pids |= {node.pid, *(process.pid for process in below)}
        mark = self._environ[MARK]
        return pids | {p.pid for p in marked(mark) if "ray/dashboard" in " ".join(p.cmdline())}

    def end(self) -> None:
        """End both nodes."""
        for node in (self._second, self._head):
            self._end(node)
        self._log.close()

    @staticmethod
    def _end(node: subprocess.Popen[bytes]) -> None:
        if node.poll() is None:
            for process in psutil.Process(node.pid).children(recursive=True):
                process.kill()
            node.kill()
        node.wait()
