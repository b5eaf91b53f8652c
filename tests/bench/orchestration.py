"""The orchestration's own time per step against the number of learner ranks.

    python tests/bench/orchestration.py [--ranks 1 2 4 8 16 32 64] [--prompts 128] [--samples 16]

What it is: the real code of a step between the engines and the learner, on real Arrow batches, with
nothing sampled and nothing trained. The driver's share: metadata unpickled as it comes from the
engines, the producer and the ledger, filters, batch assembly, the plan of updates, its pickling for
every rank, and metrics. A rank's share: the step's table, the join with computed columns, and every
micro-batch packed. What it is not: Ray's transport, the engines' or the learner's time.

The step that both are compared with is simulated: `tokens / (ranks x --tokens-per-s)`, the time of
training alone, which is a fraction of a synchronous step. 10,000 tokens/s on each rank is 0.4
PFLOP/s for a model of 7 billion parameters, about what an H100 does.

At the end: packing and balancing 16,384 sequences in one process. All times but the simulated step
are CPU seconds, which other work on the machine does not change.
"""

import argparse
import pickle
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hydra.utils import instantiate

from algorithms.algorithm import Algorithm
from conf.compose import compose
from conf.schema import TrainConfig
from orchestrator.step.batch import (
    BatchPlan,
    StepBatch,
    assemble,
    batch_metrics,
    plan_updates,
)
from orchestrator.step.partition import SequenceCost, partition
from orchestrator.supply.ledger import Ledger
from orchestrator.supply.producer import Producer
from workers.data.micro_batches import packed_rows
from workers.data.plans import CreditPlan, MicroBatchPlan, RankPlan, join_computed, step_table
from workers.data.prompts import PromptSet
from workers.data.requests import GroupRequest
from workers.data.trajectory import SCHEMA, RolloutGroup, TrajectoryMeta
from workers.data.turns import TurnSpan, as_structs
from workers.learner.credit import assign_credit

STEPS = 5
EPOCH = 100_000  # prompts, so that the ledger is as large as a run's
BUDGET, LONGEST, PROMPT_TOKENS = 32768, 16384, 256
COST = SequenceCost.of_model(num_parameters=7_000_000_000, num_layers=32, attention_size=4096)


def response_lengths(count: int, random: np.random.Generator) -> np.ndarray:
    """Log-normal with a long tail: mean about 1,900 tokens, at most 16k with the prompt."""
    drawn = random.lognormal(np.log(1200), 1.0, count).astype(np.int64)
    return np.clip(drawn, 1, LONGEST - PROMPT_TOKENS)


def trajectories(
    group_id: str, responses: np.ndarray, random: np.random.Generator
) -> pa.RecordBatch:
    """A record batch of the siblings of one prompt, in the schema of the engines."""
    count, lengths = len(responses), responses + PROMPT_TOKENS
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    total = int(lengths.sum())
    place = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    trained = place >= PROMPT_TOKENS
    per_token = {
        "tokens": random.integers(0, 150_000, total),
        "loss_mask": trained,
        "rollout_logprobs": np.where(trained, -0.5, 0.0),
        "weight_versions": np.where(trained, 0, -1),
    }
    per_row = {
        "reward": random.integers(0, 2, count).astype(np.float64),
        "outcome": ["scored"] * count,
        "reward_parts": [[("exact", 1.0)]] * count,
        "reward_notes": [[]] * count,
        "timings": [[("generate", 1.0)]] * count,
        "begun_version": [0] * count,
        "num_turns": [1] * count,
        "branch": [0] * count,
        "turns": [
            as_structs(
                [
                    TurnSpan(
                        number=1,
                        start=PROMPT_TOKENS,
                        end=int(end),
                        finish_reason="stop",
                        state=7,
                    )
                ]
            )
            for end in lengths
        ],
        "images": [[]] * count,
        "image_files": [[]] * count,
    }
    columns = []
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        if name in per_token:
            values = pa.array(per_token[name]).cast(kind.value_type)
            columns.append(pa.LargeListArray.from_arrays(offsets, values))
        else:
            columns.append(pa.array(per_row.get(name, [group_id] * count), type=kind))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


@dataclass
class SimulatedPool:
    """Groups finish in the order of submission; making them up is not counted.

    Attributes:
        samples: siblings of a group.
        random: of the lengths.
        keep_tokens: also make the trajectories, which stay outside the driver.
        simulated_s: time that a real engine would have spent, not the driver.
    """

    samples: int
    random: np.random.Generator
    keep_tokens: bool = False
    simulated_s: float = 0.0
    tables: dict[object, pa.RecordBatch] = field(default_factory=dict)
    waiting: list[GroupRequest] = field(default_factory=list)

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Begin to sample."""
        self.waiting.extend(requests)

    def poll(self) -> list[RolloutGroup]:
        """All that was submitted, metadata as bytes until it reaches the driver."""
        began = time.process_time()
        finished = [self._finish(request) for request in self.waiting]
        self.waiting.clear()
        self.simulated_s += time.process_time() - began
        return [
            RolloutGroup(group_id=group_id, metas=pickle.loads(metas), batch=batch, start=0)
            for group_id, metas, batch in finished
        ]

    def _finish(self, request: GroupRequest) -> tuple[str, bytes, object]:
        responses = response_lengths(self.samples, self.random)
        batch = f"reference to {request.group_id}"
        if self.keep_tokens:
            self.tables[batch] = trajectories(request.group_id, responses, self.random)
        rewards = self.random.integers(0, 2, self.samples)
        rewards[:2] = 0, 1  # no group is filtered
        metas = tuple(
            TrajectoryMeta(
                prompt_uid=request.prompt_uid,
                group_id=request.group_id,
                rollout_id=f"{request.group_id}/{k}",
                num_tokens=int(length) + PROMPT_TOKENS,
                num_trained=int(length),
                num_sampled=int(length),
                finish_reason="length" if length == LONGEST - PROMPT_TOKENS else "stop",
                outcome="scored",
                reward=float(rewards[k]),
                reward_parts={"exact": float(rewards[k]), "format": 1.0},
                min_version=request.step,
                max_version=request.step,
                generate_s=1.0,
                reward_s=0.1,
            )
            for k, length in enumerate(responses)
        )
        return request.group_id, pickle.dumps(metas, protocol=5), batch


class Driver:
    """The trainer's own work of a step, phase by phase."""

    def __init__(self, config: TrainConfig, algorithm: Algorithm, folder: Path) -> None:
        path = folder / "prompts.parquet"
        if not path.exists():
            text = [f"question {row}: " + "word " * 100 for row in range(EPOCH)]
            pq.write_table(pa.table({"prompt": text, "ground_truth": text}), path)
        prompts = PromptSet(path, prompt_column="prompt", ground_truth_column="ground_truth")
        self.config, self.algorithm = config, algorithm
        self.ledger = Ledger(prompts, seed=0, shuffle=True)
        for _, (epoch, row) in zip(range(EPOCH * 9 // 10), self.ledger, strict=False):
            self.ledger.trained(epoch, row, 1)
        self.pool = SimulatedPool(config.rollout.samples_per_prompt, np.random.default_rng(0))
        self.producer = Producer(self.pool, prompts, self.ledger, config)  # type: ignore[arg-type]
        self.seconds: dict[str, float] = {}

    def step(self, step: int, num_ranks: int) -> tuple[StepBatch, BatchPlan]:
        """What `Trainer.step` does besides waiting for others."""
        watch = Watch()
        self.pool.simulated_s = 0.0
        taken = self.producer.take(step, step - 1, self._why_not)
        watch.lap("take", without=self.pool.simulated_s)
        batch = assemble(taken.groups, self.algorithm)
        watch.lap("assemble")
        plan = plan_updates(
            batch,
            self.algorithm,
            groups_per_update=self.config.trainer.prompts_per_step,
            num_passes=1,
            seed=(0, step),
            num_ranks=num_ranks,
            token_budget=BUDGET,
            cost=COST,
        )
        watch.lap("plan")
        for rank in plan.ranks:
            pickle.dumps((rank, batch.slices), protocol=5)
        watch.lap("send")
        batch_metrics(batch, step - 1)
        self.ledger.counts()
        watch.lap("metrics")
        self.seconds = watch.seconds
        return batch, plan

    def _why_not(self, group: RolloutGroup) -> str | None:
        rewards = [group.metas[row].reward for row in group.usable_rows()]
        ids = torch.zeros(len(rewards), dtype=torch.int64)
        keep = self.algorithm.keep_groups(torch.tensor(rewards, dtype=torch.float32), ids)
        return None if bool(keep[0]) else "filtered"


class Watch:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, name: str, *, without: float = 0.0) -> None:
        """Everything since the last lap, but for `without` seconds of it."""
        moment = time.process_time()
        self.seconds[name] = moment - self._last - without
        self._last = moment


def rank_seconds(
    driver: Driver, batch: StepBatch, plan: RankPlan, tables: Sequence[pa.RecordBatch]
) -> dict[str, float]:
    """What a learner rank does of a step besides forward and backward."""
    watch = Watch()
    credit = CreditPlan(
        shaped_rewards=batch.shaped_rewards, group_ids=batch.group_ids, trained=batch.trained
    )
    advantages, _ = assign_credit(driver.algorithm, credit, step_table(batch.slices, tables))
    watch.lap("credit")
    table = join_computed(step_table(batch.slices, tables), [advantages])
    for micro in plan.micro_batches:
        packed_rows(table, micro, ("advantages", "rollout_logprobs"))
    watch.lap("pack")
    return watch.seconds


def large_batch(count: int) -> None:
    """Balance and pack `count` sequences with one rank and with several, in this process."""
    random = np.random.default_rng(0)
    responses = response_lengths(count, random)
    lengths = responses + PROMPT_TOKENS
    table = pa.Table.from_batches([trajectories("0", responses, random)])
    for num_ranks in (1, 8, 64):
        began = time.process_time()
        spread = partition(lengths, num_ranks=num_ranks, token_budget=BUDGET, cost=COST)
        balanced = time.process_time()
        for rows in (rows for rank in spread.rows for rows in rank):
            weights = {"policy": np.ones(len(rows), np.float32)}
            plan = MicroBatchPlan(rows=rows, weights=weights)
            packed_rows(table, plan, ("rollout_logprobs",))
        packed = time.process_time()
        print(
            f"{count} sequences, {lengths.sum() / 1e6:.1f} M tokens, {num_ranks} ranks x "
            f"{spread.num_micro_batches} micro-batches: balance {balanced - began:.2f} s, pack all "
            f"ranks' rows {packed - balanced:.2f} s; imbalance {spread.imbalance:.4f}, fill "
            f"{spread.fill_frac:.3f}",
            flush=True,
        )


def main() -> None:
    """Prints the table and the large batch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--prompts", type=int, default=128, help="per step")
    parser.add_argument("--samples", type=int, default=16, help="per prompt")
    parser.add_argument("--tokens-per-s", type=float, default=10_000, help="simulated, each rank")
    parser.add_argument("--large", type=int, default=16384, help="sequences of the last table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    raw, config = compose(
        [
            "algorithm=dapo",
            f"trainer.prompts_per_step={options.prompts}",
            f"rollout.samples_per_prompt={options.samples}",
        ]
    )
    algorithm: Algorithm = instantiate(raw.algorithm, _convert_="all")
    phases = ("take", "assemble", "plan", "send", "metrics")
    print(
        f"| ranks | step s | {' | '.join(f'{name} ms' for name in phases)} | driver ms | of step "
        "| credit ms | pack ms | of step |"
    )
    print("|---" * (len(phases) + 7) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for num_ranks in options.ranks:
            driver = Driver(config, algorithm, Path(folder))
            runs = []
            for step in range(1, STEPS + 1):
                driver.pool.keep_tokens = step == STEPS
                batch, plan = driver.step(step, num_ranks)
                runs.append(driver.seconds)
            tables = [driver.pool.tables[ref] for ref in batch.batches]
            tokens = sum(meta.num_tokens for meta in batch.metas)
            step_s = tokens / (num_ranks * options.tokens_per_s)
            own = {name: statistics.median(run[name] for run in runs) for name in phases}
            rank = rank_seconds(driver, batch, plan.ranks[0], tables)
            total = sum(own.values())
            print(
                f"| {num_ranks} | {step_s:.1f} "
                f"| {' | '.join(f'{own[name] * 1e3:.1f}' for name in phases)} "
                f"| {total * 1e3:.1f} | {total / step_s:.3%} | {rank['credit'] * 1e3:.0f} "
                f"| {rank['pack'] * 1e3:.0f} | {rank['pack'] / step_s:.3%} |",
                flush=True,
            )
    print(f"\n{len(batch.metas)} sequences, {tokens / 1e6:.1f} M tokens a step\n")
    large_batch(options.large)


if __name__ == "__main__":
    main()
