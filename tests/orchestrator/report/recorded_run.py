"""A run's folder as a run leaves it, written by the project's own writers, without a run."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models

from algorithms.flags import CLIPPED
from conf.compose import compose
from conf.schema import TrackingConfig
from orchestrator.checkpoints.manifest import write_manifest
from orchestrator.checkpoints.starts import write_start
from orchestrator.telemetry.heldout import HeldoutAnswer, HeldoutResult
from orchestrator.telemetry.trace_file import TraceFile
from orchestrator.telemetry.trackers.tracking import Tracker
from workers.data.plans import Slice, computed_columns
from workers.data.record_files import write_step
from workers.data.trajectory import Trajectory, to_record_batch
from workers.spans import Span, Timeline

HOSTILE = (
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 2'>",
    "\u202eright to left\u202c שלום",
    "😀👩‍👩‍👧",
    "\x00\x1b[31m\x07",
    "long" * 250_000,
    "<!--",
    "\u2028line\u2029",
)
WORDS = ("zero ", "one ", "two ", "three ", "four ", "end\n", "sum", "=", *HOSTILE)
PROMPT = (6, 7)  # "sum="


def model_folder(folder: Path) -> Path:
    """A folder with a tokenizer of `WORDS`, each one token."""
    folder.mkdir(parents=True)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="zero "))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sample(
    group: str, number: int, response: tuple[int, ...], reward: float | None, **changes: Any
) -> Trajectory:
    tokens = [*PROMPT, *response]
    drawn = [False] * len(PROMPT) + [True] * len(response)
    values = {
        "run_id": "run",
        "begun_version": 0,
        "prompt_uid": f"train:{group}",
        "group_id": group,
        "rollout_id": f"{group}/{number}",
        "dataset": "add",
        "tokens": tokens,
        "loss_mask": drawn,
        "rollout_logprobs": [-0.5 if one else 0.0 for one in drawn],
        "weight_versions": [0 if one else -1 for one in drawn],
        "finish_reason": "stop",
        "outcome": "failed:timeout" if reward is None else "scored",
        "reward": reward,
        "reward_parts": {} if reward is None else {"exact": reward},
        "response_text": "".join(WORDS[one] for one in response),
        "timings": {"generate": 0.5, "reward": 0.01},
    }
    return Trajectory(**{**values, **changes})


def write_rollouts(
    run_dir: Path,
    step: int,
    rows: list[Trajectory],
    *,
    ratio: float = 1.0,
    gap: float = 0.0,
    flags: list[int] | None = None,
) -> None:
    """Write a step with advantages (reward - 1/2), and log-probs that differ by ratio and gap.

    `flags` are those of all tokens; None: a clip at 1.2 cuts the tokens of a good response.
    """
    (run_dir / "rollouts").mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(row.tokens) for row in rows])
    drawn = np.concatenate([row.loss_mask for row in rows])
    sampler = np.concatenate([row.rollout_logprobs for row in rows])
    rewards = np.repeat([0.0 if row.reward is None else row.reward for row in rows], lengths)
    old = np.where(drawn, sampler + gap, 0).astype(np.float32)
    clipped = np.where(drawn & (rewards > 0.5), CLIPPED if ratio > 1.2 else 0, 0)
    computed = computed_columns(
        np.arange(len(rows)),
        lengths,
        advantages=np.where(drawn, rewards - 0.5, 0).astype(np.float32),
        old_logprobs=old,
        logprobs=np.where(drawn, old + np.log(ratio), 0).astype(np.float32),
        loss_flags=clipped if flags is None else np.array(flags),
    )
    whole = Slice(batch=0, start=0, length=len(rows))
    file = run_dir / "rollouts" / f"step_{step:06d}.parquet"
    write_step(str(file), [whole], 1, computed, to_record_batch(rows))


def metrics(step: int) -> dict[str, float]:
    return {
        "reward/mean": step / 10,
        "time/step_s": 2.0,
        "rollout/tokens": 100.0,
        "rollout/sequences": 8.0,
        "policy/entropy": 1.0 / step,
        "policy/clip_frac": 0.01 * step,
        "mismatch/abs_mean": 1e-7 * step,
        "rollout/engines_lost": float(step >= 3),
        "learner/updates": 2.0,
        "learner/steps": 1.0 if step == 4 else 2.0,
        "bubble/learner/idle_frac": 0.75,
        "bubble/learner/learn_frac": 0.25,
        "bubble/rollout/idle_frac": 0.25,
        "bubble/rollout/generate_frac": 0.75,
        "bubble/driver/generate_frac": 0.75,
        "bubble/driver/learn_frac": 0.25,
    }


def heldout(right: bool) -> HeldoutResult:
    answers = tuple(
        HeldoutAnswer(
            prompt_uid=f"eval:{number}",
            prompt=f"{number}+1=",
            response=str(number + 1) if right else HOSTILE[number],
            ground_truth=str(number + 1),
            reward=float(right),
            outcome="scored",
        )
        for number in range(3)
    )
    return HeldoutResult(metrics={"mean": float(right), "pass@1": float(right)}, answers=answers)


def write_run(
    run_dir: Path, *overrides: str, steps: int = 4, resumed_after: tuple[int, ...] = (2,)
) -> Path:
    """A finished run of `steps` steps: four groups of two samples each, one of them hostile."""
    run_dir.mkdir(parents=True)
    chosen = ["experiment=tiny", f"trainer.total_steps={steps}", f"run_name={run_dir.name}"]
    raw, _ = compose([*chosen, *overrides])
    model = run_dir.parent / "model"
    model = model if model.exists() else model_folder(model)
    data = {"/data/add/train.parquet": "ab12"}
    write_manifest(run_dir, raw, source_dir=run_dir, model=str(model), data=data)
    for after in (0, *resumed_after):
        write_start(run_dir, after)
    tracker = Tracker(run_dir, TrackingConfig(trackers=[]), run_name=run_dir.name)
    trace = TraceFile(run_dir)
    for step in range(1, steps + 1):
        tracker.log(step, metrics(step))
        write_rollouts(run_dir, step, step_rows(step), ratio=1.0 + 0.1 * step, gap=0.01 * step)
        begin = 100.0 * step
        busy = Span(activity="generate", begin_s=begin, end_s=begin + 1.5)
        timeline = Timeline(role="rollout", index=0, spans=(busy,))
        trace.write_step(step, (begin, begin + 2.0), [timeline], {})
    for step, right in ((0, False), (steps, True)):
        tracker.log(step, {f"eval/{k}": v for k, v in heldout(right).metrics.items()})
        heldout(right).write(run_dir / "eval" / f"step_{step:06d}.json")
    tracker.close()
    trace.finish([])
    return run_dir


def step_rows(step: int) -> list[Trajectory]:
    hostile = tuple(range(8, 8 + len(HOSTILE)))
    return [
        sample("same", 0, (0, 1, 5), 1.0),
        sample("same", 1, (1, 1, 5), 0.0),
        sample(f"{step}-solved", 0, (1, 5), 1.0),
        sample(f"{step}-solved", 1, (1, 5), 1.0),
        sample(f"{step}-hostile", 0, hostile, 0.0, finish_reason="length"),
        sample(f"{step}-hostile", 1, hostile, 0.0),
        sample(f"{step}-failed", 0, (2, 5), 0.0),
        sample(f"{step}-failed", 1, (2,), None, finish_reason="abort"),
    ]
