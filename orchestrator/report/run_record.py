"""Read the folder of a run as it stands: running, half written, killed or finished.

Runs in the driver at the end of a run, and in `ballast report`. A missing or damaged file is named
in `problems` and never raised: a report of half a run says so. Trajectories are read in `rows.py`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from orchestrator.checkpoints.owner_file import NAME as OWNER
from orchestrator.checkpoints.owner_file import STALE_S
from orchestrator.checkpoints.starts import read_starts
from orchestrator.supply.recording import check_footer, step_number, steps_in
from orchestrator.telemetry.failure_log import FILE as FAILURE

EVALUATION = re.compile(r"step_(\d+)\.json")
FAILURE_CHARACTERS = 400
ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*: ")  # of a traceback: the error's class and its message
MARKS = ("config.yaml", "metrics.jsonl", "manifest.json")  # one of them makes a folder a run's


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything of a run's folder but its trajectories and its trace.

    Attributes:
        folder: of the run.
        config: the configuration, nested; empty where it can't be read.
        manifest: versions, seed, hashes; empty where it can't be read.
        steps: the metrics of every finished step, in order.
        evaluations: the metrics of every evaluation, with the step that it follows.
        answers: step -> the held-out answers of that evaluation.
        rollouts: step -> its readable Parquet file.
        resumed_after: the steps after which the run was resumed.
        state: "finished", "running", "stopped", "failed" or "ended early".
        problems: one sentence for every file that could not be read.
    """

    folder: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    answers: Mapping[int, Sequence[Mapping[str, Any]]]
    rollouts: Mapping[int, Path]
    resumed_after: Sequence[int]
    state: str
    problems: Sequence[str]

    @property
    def name(self) -> str:
        """Return the folder's own name, which is the run's."""
        return self.folder.name

    def setting(self, key: str) -> Any:
        """Return one value of the configuration by its dotted key; None without it."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_run(folder: Path, *, state: str | None = None) -> RunRecord:
    """Read a run's folder.

    Args:
        folder: of one run.
        state: of the run, where the caller knows it; else it is seen from the files.

    Raises:
        ValueError: the folder is missing, empty, or holds several runs; the message says which.
    """
    check_folder(folder)
    problems: list[str] = []
    config = _read_config(folder / "config.yaml", problems)
    manifest = _read_json(folder / "manifest.json", problems)
    lines = _read_lines(folder / "metrics.jsonl", problems)
    steps = [line for line in lines if "time/step_s" in line or "reward/mean" in line]
    evaluations = [line for line in lines if "eval/mean" in line]
    rollouts = _readable(folder, problems)
    answers = {}
    for path in sorted((folder / "eval").glob("*.json")):
        named = EVALUATION.fullmatch(path.name)
        found = _read_json(path, problems).get("answers") if named else None
        if named and isinstance(found, list):
            answers[int(named[1])] = found
    total = config.get("trainer", {}).get("total_steps") if config else None
    state = state or state_of(folder, len(steps) and int(steps[-1]["step"]), total)
    if state == "failed":
        problems.insert(0, f"what ended the run: {_failure(folder / FAILURE)}")
    return RunRecord(
        folder=folder,
        config=config,
        manifest=manifest,
        steps=steps,
        evaluations=evaluations,
        answers=answers,
        rollouts=rollouts,
        resumed_after=read_starts(folder),
        state=state,
        problems=problems,
    )


def check_folder(folder: Path) -> None:
    """Raise ValueError for a folder that is not a run's; the message names the runs in it."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name the folder of a run, such as runs/tiny")
    if is_run(folder):
        return
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_run(path))
    if runs:
        shown = " ".join(str(folder / name) for name in runs[:3])
        raise ValueError(
            f"{folder} holds {len(runs)} runs and is none itself; name one or several of them: "
            f"{shown}"
        )
    raise ValueError(
        f"{folder} is not a run's folder: it has none of {', '.join(MARKS)}; name the folder that "
        "`ballast train` printed as its run folder"
    )


def is_run(folder: Path) -> bool:
    """Return True for a folder with a file that only a run writes."""
    return any((folder / mark).is_file() for mark in MARKS)


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        problems.append("config.yaml is missing: the run ended before it was written")
        return {}
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        problems.append(f"config.yaml can't be read: {_first_line(error)}")
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} is half written or damaged: {_first_line(error)}")
        return {}
    return found if isinstance(found, dict) else {}


def _read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Read the whole lines of `metrics.jsonl`; a line that is still being written is left out."""
    lines: list[dict[str, Any]] = []
    damaged = 0
    if path.exists():
        for text in path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
                lines.append({**line, "step": int(line["step"])})
            except (ValueError, KeyError, TypeError):
                damaged += 1
    if damaged:
        problems.append(f"metrics.jsonl has {damaged} half-written or damaged lines, left out")
    return lines


def _readable(folder: Path, problems: list[str]) -> dict[int, Path]:
    found = {}
    refused: list[str] = []
    for file in steps_in(folder):
        try:
            check_footer(file)
        except ValueError as error:
            refused.append(str(error))
        else:
            found[step_number(file)] = file
    if refused:
        more = f" (and {len(refused) - 1} more files like it)" if len(refused) > 1 else ""
        problems.append(f"rollouts left out: {refused[0]}{more}")
    return found


def state_of(folder: Path, last: int, total: int | None) -> str:
    """Return the state of a run whose last finished step is `last` of `total`.

    A run is "running" as long as its owner's heartbeat is fresh.
    """
    owner = folder / OWNER
    if owner.exists() and time.time() - owner.stat().st_mtime < STALE_S:
        return "running"
    if total is not None and last >= total:
        return "finished"
    return "failed" if (folder / FAILURE).exists() else "ended early"


def _failure(path: Path) -> str:
    """Return the last error line of a failure log, shortened."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return f"{path.name} can't be read"
    errors = [line for line in lines if ERROR_LINE.match(line)]
    last = (errors or lines or ["unknown"])[-1]
    return last if len(last) <= FAILURE_CHARACTERS else f"{last[:FAILURE_CHARACTERS]} …"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
