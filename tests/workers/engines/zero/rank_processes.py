"""Starts the ranks of one job as processes, as several tests of this folder need them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def run_ranks(script: str | Path, tmp_path: Path, world_size: int, **job: object) -> Path:
    """Run `script JOB.json` once per rank; returns the job's `out`, where rank 0 saves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / "results"
    ranks = []
    for rank in range(world_size):
        path = tmp_path / f"job{rank}.json"
        path.write_text(
            json.dumps(
                {"rank": rank, "world_size": world_size, "port": port, "out": str(out), **job}
            )
        )
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(script), str(path)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, output in zip(ranks, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    return out
