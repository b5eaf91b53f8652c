"""Run the judge role: a Ray actor that keeps the server of one engine of a judge's frozen model.

Scoring processes ask the server over HTTP, as they would ask any service; the actor carries no
call. An actor that Ray constructs again on the same node serves at the same address.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import ray.util

from workers.addresses import join_port
from workers.engines.judge.server import KeptServer, free_port
from workers.engines.judge.settings import JudgeSettings


class JudgeWorker:
    """Judge worker: one engine, whose server starts at once.

    Args:
        settings: of the engine.
        ports: of which the first free one is taken; no other engine of the run has them.
        silence_s: time without an answer after which the server is started again.
        log: name of the file that gets what the server prints.
        folder: of that file; None for one that goes with this worker.
    """

    def __init__(
        self,
        *,
        settings: JudgeSettings,
        ports: Sequence[int],
        silence_s: float,
        log: str,
        folder: str | None = None,
    ) -> None:
        host = ray.util.get_node_ip_address()
        port = free_port(host, ports)
        self._url = f"http://{join_port(host, port)}/v1"
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None
        if folder is None:
            self._own_folder = tempfile.TemporaryDirectory(prefix="ballast-judge-")
            folder = self._own_folder.name
        log_path = Path(folder) / log
        log_path.parent.mkdir(parents=True, exist_ok=True)  # another node may lack the run's
        self._server = KeptServer(
            settings.command(host=host, port=port),
            env=settings.environment(),
            host=host,
            port=port,
            log=log_path,
            silence_s=silence_s,
        )

    def wait(self, timeout_s: float) -> str:
        """Return the address of the service, up to `/chat/completions`, once it answers.

        Raises:
            RuntimeError: it ended while it started, or does not answer in time.
        """
        self._server.wait(timeout_s)
        return self._url

    def close(self) -> None:
        """End the server."""
        self._server.close()
        if self._own_folder is not None:
            self._own_folder.cleanup()
