"""The works that `peers.py` gives to every program, and their numbers as a job for the others.

A work is a list of overrides, so Ballast's own configuration is the one source of its sizes; the
other programs get these sizes as a mapping of plain values (`job`). Writes the prompts of work b.
Starts nothing.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

REWARDS = Path(__file__).resolve().with_name("rewards.py")
NUMBERS = 16  # in a row of work b: 48 to 64 tokens
STEPS = range(2, 10)  # between neighbours in a row
EXPLANATION = (
    "Each row counts on from its first number by its step, sixteen numbers in a row, and then the "
    "row ends.\n"
)
# Nothing that another program does not do: no reference model, no checkpoint, no evaluation.
ALIKE = (
    "algorithm=grpo",
    "~algorithm.regularizers.kl",
    "trainer.checkpoint_every=0",
    "trainer.eval_every=0",
    "trainer.export=false",
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every program does the same of.

    Attributes:
        name: of the command line.
        title: in tables.
        overrides: of Ballast's command, without those of all works.
        steps: of a run, unless the command line says otherwise.
        warm_up: steps that are not counted.
        micro_batch: sequences in one forward pass of programs that pad: what memory allows.
        reward: function of `rewards.py`.
    """

    name: str
    title: str
    overrides: tuple[str, ...]
    steps: int
    warm_up: int
    micro_batch: int
    reward: str


def works(folder: Path) -> dict[str, Work]:
    """Return every work by name; the prompts of work b are written below `folder`."""
    prompts = folder / "rows.parquet"
    if not prompts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(prompts, count=512)
    found = (
        Work(
            name="a",
            title="quickstart: 16 prompts x 8 samples, 16 + at most 4 tokens, 135M",
            overrides=("experiment=quickstart",),
            steps=10,
            warm_up=1,
            micro_batch=128,
            reward="exact",
        ),
        Work(
            name="b",
            title="rows of numbers: 8 prompts x 8 samples, about 100 + at most 64 tokens, 135M",
            overrides=(
                "experiment=quickstart",
                "data=parquet",
                f"data.train_path={prompts}",
                "data.max_prompt_tokens=128",
                "reward=function",
                f"reward.scorer.path={REWARDS}:numbers",
                "trainer.prompts_per_step=8",
                "rollout.max_model_len=192",
                "rollout.max_num_seqs=64",
                "rollout.sampling.max_new_tokens=64",
                "rollout.eval_sampling.max_new_tokens=64",
            ),
            steps=6,
            warm_up=1,
            micro_batch=16,
            reward="numbers",
        ),
        Work(
            name="c",
            title="tiny: 32 prompts x 8 samples, 6 + at most 5 tokens, 0.4M",
            overrides=("experiment=tiny",),
            steps=200,
            warm_up=10,
            micro_batch=256,
            reward="positions",
        ),
    )
    return {work.name: work for work in found}


def job(work: Work, config: Any, sources: Any, *, steps: int) -> dict[str, Any]:
    """Return a work's numbers for programs that do not read Ballast's configuration.

    Args:
        work: the work.
        config: composed from its overrides.
        sources: model and prompts, as `prepare` returns them.
        steps: optimizer updates, one a step.

    Raises:
        ValueError: a setting that the other programs are not given.
    """
    sampling, optimizer = config.rollout.sampling, config.learner.optimizer
    plain = {
        "rollout.sampling.top_p": (sampling.top_p, 1.0),
        "rollout.sampling.top_k": (sampling.top_k, 0),
        "learner.optimizer.schedule": (optimizer.schedule, "constant"),
        "model.dtype": (config.model.dtype, "float32"),
        "rollout.dtype": (config.rollout.dtype, "float32"),
    }
    for key, (value, allowed) in plain.items():
        if value != allowed:
            raise ValueError(
                f"work {work.name}: {key}={value} must be {allowed}: the programs beside Ballast "
                "have no such setting here"
            )
    entropy = config.algorithm["regularizers"].get("entropy")
    return {
        "model": str(sources.model_path),
        "prompts": str(sources.train.sources[0].path),
        "reward": work.reward,
        "steps": steps,
        "prompts_per_step": config.trainer.prompts_per_step,
        "samples": config.rollout.samples_per_prompt,
        "micro_batch": work.micro_batch,
        "new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "stop": list(sampling.stop),
        "clip": config.algorithm["policy_loss"]["clip_low"],
        "entropy": entropy["coefficient"] if entropy else 0.0,
        "lr": optimizer.lr,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "seed": config.seed,
    }


def row(first: int, step: int) -> tuple[str, str]:
    """Return the beginning of a row and its numbers.

    Example: row(10, 3) is ("Count on from 10 by 3:", "13 16 19 ... 58").
    """
    follow = (str(first + step * k) for k in range(1, NUMBERS + 1))
    return f"Count on from {first} by {step}:", " ".join(follow)


def write_rows(path: Path, *, count: int, seed: int = 0) -> None:
    """Write `count` prompts of work b: the explanation, a whole row, and the beginning of one."""
    generator = random.Random(seed)
    prompts, truths = [], []
    for _ in range(count):
        (begun, solved), (asked, truth) = (
            row(generator.randrange(10, 100), generator.choice(STEPS)) for _ in range(2)
        )
        prompts.append(f"{EXPLANATION}{begun} {solved}\n{asked}")
        truths.append(truth)
    pq.write_table(pa.table({"prompt": prompts, "ground_truth": truths}), path)
