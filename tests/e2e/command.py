"""The command `ballast` in a process of its own, as a user starts it; and what its run wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMEOUT_S = 300
COMMAND = (sys.executable, "-m", "orchestrator.cli")


def run_ballast(
    *arguments: str,
    cwd: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, whatever its exit status."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, **(variables or {})},
    )


def finish_ballast(
    *arguments: str,
    cwd: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run the command to its end without an error; return what it printed."""
    done = run_ballast(*arguments, cwd=cwd, timeout_s=timeout_s, variables=variables)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def start_ballast(
    *arguments: str,
    cwd: Path,
    variables: Mapping[str, str] | None = None,
    own_group: bool = False,
) -> subprocess.Popen[str]:
    """Start the command; its output, errors included, is read line by line.

    Args:
        arguments: of the command.
        cwd: folder that it starts in.
        variables: of its environment, beside those of this process.
        own_group: start a group of processes, which can be killed together.
    """
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=own_group,
        env={**os.environ, **(variables or {})},
    )


def step_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run's steps, in order."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "time/step_s" in line]
