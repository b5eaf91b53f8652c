"""A Ray cluster of two nodes on this machine with authentication on, as deploy/local starts it."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[4]


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """`address` of the dashboard, `head` of the GCS, `env` of a client that knows the token."""
    folder = tmp_path_factory.mktemp("cluster")
    port, dashboard = free_port(), free_port()
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "BALLAST_LOCAL": str(folder / "local"),
        "BALLAST_RAY_PORT": str(port),
        "BALLAST_DASHBOARD_PORT": str(dashboard),
        "OMP_NUM_THREADS": "1",
    }
    start = [str(ROOT / "deploy" / "local" / "start.sh"), "2", "4"]
    done = subprocess.run(start, env=env, capture_output=True, text=True, timeout=240, check=False)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        client = env | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "local" / "token"),
        }
        yield SimpleNamespace(
            address=f"http://127.0.0.1:{dashboard}",
            head=f"127.0.0.1:{port}",
            env=client,
            folder=folder,
            started=done,
        )
    finally:
        stop = [str(ROOT / "deploy" / "local" / "stop.sh")]
        subprocess.run(stop, env=env, timeout=120, check=True)
