"""Bring all of one or several runs into the one record that the page reads.

Runs in the driver at the end of a run, and in `ballast report`. The page draws; it has no other
source. Every number is short, and a number that JSON does not have is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.schema import TrainConfig
from orchestrator.report.curves import curves, events, meaning, panels_of, verdict
from orchestrator.report.differences import differences, facts
from orchestrator.report.prompts import group_counts, heldout_answers, outcomes, prompts
from orchestrator.report.rows import CUTS, MAX_TOKENS, RecordedStep, read_rows
from orchestrator.report.run_record import RunRecord
from orchestrator.report.samples import MAX_BYTES, load_groups, rounded
from orchestrator.report.selection import choose
from orchestrator.report.timeline import read_timeline
from orchestrator.report.token_texts import TokenTexts
from orchestrator.telemetry import bubbles
from orchestrator.telemetry.counting import counted


def build(
    records: Sequence[RunRecord],
    *,
    max_bytes: int = MAX_BYTES,
    max_tokens: int = MAX_TOKENS,
    goal: float | None = None,
) -> dict[str, Any]:
    """Return the page's record of one or several runs.

    Args:
        records: in the order of the page.
        max_bytes: about the size of all samples together, as JSON.
        max_tokens: tokens to read, of all runs together.
        goal: a score to draw; None for that of the first run's configuration.
    """
    share = len(records)
    runs = [
        {"name": name, **_run(record, max_bytes // share, max_tokens // share)}
        for name, record in zip(labels(records), records, strict=True)
    ]
    names = sorted({name for run in runs for part in _PARTS for name in run[part]["values"]})
    return {
        "runs": runs,
        "panels": panels_of(names),
        "metrics": {name: meaning(name) for name in names},
        "goal": records[0].setting("tracking.goal") if goal is None else goal,
        "differences": differences(records) if len(records) > 1 else [],
    }


def labels(records: Sequence[RunRecord]) -> list[str]:
    """Return a name per run that tells it from the others: its own, else as much of its path."""
    paths = [record.folder.parts for record in records]
    found = []
    for path in paths:
        count = next(
            (n for n in range(1, len(path)) if sum(p[-n:] == path[-n:] for p in paths) == 1), 1
        )
        found.append("/".join(path[-count:]))
    return found


_PARTS = ("curves", "heldout")


def _run(record: RunRecord, max_bytes: int, max_tokens: int) -> dict[str, Any]:
    rows = read_rows(record.rollouts, max_tokens=max_tokens)
    shares, bubble = _time(record)
    return {
        "folder": str(record.folder),
        "state": record.state,
        "total_steps": record.setting("trainer.total_steps"),
        "algorithm": record.setting("algorithm.name"),
        "model": record.setting("model.name"),
        "problems": list(record.problems),
        "verdict": verdict(record.steps, record.evaluations),
        "curves": curves(record.steps),
        "heldout": curves(record.evaluations),
        "events": events(record.steps, record.resumed_after),
        "shares": shares,
        "bubble": bubble,
        "timeline": read_timeline(record.folder),
        "groups": group_counts(rows),
        "outcomes": outcomes(rows),
        "prompts": prompts(rows),
        "answers": heldout_answers(record.answers),
        "rollouts": _rollouts(record, rows, max_bytes),
        "facts": facts(record),
    }


def _cuts(record: RunRecord) -> dict[str, dict[str, Any]]:
    """Return the marks that a run's tokens may have: the number of each, its flag and words.

    Example: {"clipped": {"flag": 1, "words": "clipped"}, "gated": {"flag": 2, "words": "gated by
    ERC"}}
    """
    gates = record.setting("algorithm.gates")
    by = {
        "clipped": "clipped",
        "gated": gates and f"gated by {', '.join(gates).upper()}",
        "dropped": record.setting("algorithm.correction") and "dropped by the correction",
    }
    return {name: {"flag": CUTS[name], "words": words} for name, words in by.items() if words}


def _time(record: RunRecord) -> tuple[dict[str, dict[str, float]], str]:
    """Return the shares of every role, and the sentence about the largest bubble."""
    steps = [line for line in record.steps if "time/step_s" in line]
    shares = bubbles.mean_shares(steps) if steps else {}
    short = {
        role: {name: rounded(value) for name, value in activities.items()}
        for role, activities in shares.items()
    }
    if not shares:
        return short, ""
    try:
        config = OmegaConf.merge(OmegaConf.structured(TrainConfig), dict(record.config))
        typed = OmegaConf.to_object(config)
        assert isinstance(typed, TrainConfig)
        return short, bubbles.diagnose(shares, typed)
    except (OmegaConfBaseException, ValueError):
        return short, "no remedy is named: the configuration is of another version"


def _rollouts(record: RunRecord, rows: Sequence[RecordedStep], max_bytes: int) -> dict[str, Any]:
    texts = TokenTexts.of_model(record.manifest.get("model"))
    chosen = choose(rows, seed=int(record.setting("seed") or 0))
    groups, pieces = load_groups(rows, chosen, texts, max_bytes=max_bytes)
    held = sum(len(group["samples"]) for group in groups)
    total = sum(len(step) for step in rows)
    return {
        "groups": groups,
        "pieces": pieces,
        "cuts": _cuts(record),
        "note": _note(record, rows, held, total),
        "numbers_only": not texts.known,
    }


def _note(record: RunRecord, rows: Sequence[RecordedStep], held: int, total: int) -> str:
    """Say what the report holds of the recorded samples, and what it left out."""
    if not record.rollouts:
        return "no sample was recorded (tracking.rollouts=false, or no step has finished)"
    note = f"{held:,} of {total:,} recorded samples are shown"
    if held < total:
        note += (
            ": every kind of failure, the extremes, prompts of several steps, the rest drawn at "
            "random with the run's seed, whole groups each"
        )
    if len(rows) < len(record.rollouts):
        note += f"; {counted(len(record.rollouts) - len(rows), 'step')} not read"
    unread = sum(not step.facts for step in rows)
    if unread:
        note += f"; of {counted(unread, 'step')} the tokens not read"
    return note
