"""vLLM's own OpenAI-compatible server with a small model, for tests of judges."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.models import smollm2


@contextmanager
def serving_smollm2(folder: Path) -> Iterator[str]:
    """Serve SmolLM2-135M under the name "smollm2" until the context ends; yield the URL.

    Args:
        folder: for the server's log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log.txt"
    arguments = ["--model", str(smollm2.build_smollm2()), "--served-model-name", "smollm2"]
    arguments += ["--max-model-len", "512", "--dtype", "float32", "--enforce-eager"]
    arguments += ["--host", "127.0.0.1", "--port", str(port)]
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
            stdout=file,
            stderr=file,
            env=env,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 600
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False
