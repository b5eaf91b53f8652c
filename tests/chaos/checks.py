"""Check what a run left behind, after any number of faults: ledger, record, attestation.

Everything is read from the run's folder, and the rewards of the record are computed again. Used by
`chaos.py`. Starts nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hydra.utils import instantiate
from omegaconf import OmegaConf

from workers.reward.base import RewardSample, score_sample

GAP = 1e-5  # of the probe, in float32


def violations(run: Path) -> list[str]:
    """Return everything that is wrong with a run; empty for a sound one."""
    config = OmegaConf.load(run / "config.yaml")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "time/step_s" in line]
    checkpoints = sorted((run / "checkpoints").glob("step_*"))
    if not checkpoints:
        return ["no checkpoint"]
    state = json.loads((checkpoints[-1] / "state.json").read_text())["parts"]
    return [
        *_numbers(steps, int(checkpoints[-1].name.removeprefix("step_"))),
        *_attested(steps),
        *_ledger(state["ledger"]["fate"], len(steps), int(config.trainer.prompts_per_step)),
        *_record(run, config, len(steps)),
    ]


def _numbers(steps: list[dict[str, Any]], saved: int) -> Iterator[str]:
    numbers = [line["step"] for line in steps]
    if numbers != list(range(1, len(steps) + 1)):
        yield f"metrics of the steps {numbers}"
    if saved != len(steps):
        yield f"the last checkpoint is of step {saved}, the metrics end with {len(steps)}"
    for line in steps:
        if line["learner/steps"] != 1:
            yield f"step {line['step']} made {line['learner/steps']:g} optimizer steps"


def _attested(steps: list[dict[str, Any]]) -> Iterator[str]:
    for line in steps:
        gap, engines = line.get("publication/probe_gap_max"), line["rollout/engines_healthy"]
        if gap is None and engines:  # without an engine there is nothing to publish to
            yield f"step {line['step']}: {engines:g} engines, whose weights were not attested"
        elif gap is not None and not gap <= GAP:
            yield f"step {line['step']}: probe gap {gap}"


def _ledger(fate: dict[str, dict[str, str]], num_steps: int, per_step: int) -> Iterator[str]:
    settled = Counter(word for epoch in fate.values() for word in epoch.values())
    for step in range(1, num_steps + 1):
        if settled.pop(f"trained:{step}", 0) != per_step:
            yield f"the ledger has not {per_step} prompts trained in step {step}"
    strange = {word for word in settled if not word.startswith("dropped:stale")}
    if strange:
        yield f"fates in the ledger: {sorted(strange)}"


def _record(run: Path, config: Any, num_steps: int) -> Iterator[str]:
    scorer = instantiate(config.reward.scorer, _convert_="all")
    sources = json.loads((run / "manifest.json").read_text())["data_sha256"]
    truths = {
        Path(name).stem: pq.read_table(name)[config.data.ground_truth_column].to_pylist()
        for name in sources
    }
    seen: Counter[str] = Counter()
    bound = int(config.schedule.max_staleness)
    for step in range(1, num_steps + 1):
        path = run / "rollouts" / f"step_{step:06d}.parquet"
        if not path.exists():
            yield f"step {step} has no record"
            continue
        rows = pq.read_table(path).to_pylist()
        seen.update({row["group_id"].rsplit("/")[0] for row in rows})
        for row in rows:
            drawn = [version for version in row["weight_versions"] if version >= 0]
            if drawn and not step - 1 - bound <= min(drawn) <= max(drawn) <= step - 1:
                yield f"{row['rollout_id']} of step {step} has the weight versions {set(drawn)}"
            if drawn != sorted(drawn):
                yield f"{row['rollout_id']} of step {step}: the weights went back"
            if row["outcome"] != "scored":
                continue
            source, _, number = row["prompt_uid"].rpartition(":")
            sample = RewardSample(
                prompt="", response=row["response_text"], ground_truth=truths[source][int(number)]
            )
            if abs(score_sample(scorer, sample).reward - row["reward"]) > 1e-6:
                yield f"{row['rollout_id']} of step {step} has the reward {row['reward']}"
    # Another attempt at a prompt has another group: the prompt is epoch and row.
    prompts = Counter("-".join(group.split("-")[:2]) for group in seen.elements())
    twice = [prompt for prompt, count in prompts.items() if count > 1]
    if twice:
        yield f"prompts trained twice: {sorted(twice)}"
