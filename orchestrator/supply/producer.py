"""Produce complete groups: keep the rollout engines busy, and take the groups that they finish.

The driver's producer draws prompts from the ledger, keeps as many groups in flight as the allowed
staleness admits, and returns groups in the order in which they were begun, so that a run is
reproducible, or in that in which they finished, so that no slow group holds up the others. A group
that may not train (too few scored siblings, filtered by the algorithm, too stale) is dropped with a
reason and replaced by a fresh one. Over-sampling (`schedule.oversample`) begins more groups than a
step needs, takes those that finish first and aborts the slowest. Nothing here learns, scores or
publishes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from conf.schema import SamplingConfig, TrainConfig
from orchestrator.fleet.pool import RolloutPool
from orchestrator.step.samples import whole_samples
from orchestrator.supply.ledger import Ledger
from orchestrator.supply.source import NothingLeftError, Taken, group_name, prompt_of
from orchestrator.supply.source_metrics import SourceMetrics, pass_rate
from workers.data.prompts import PromptSet
from workers.data.requests import GroupRequest, Sampling
from workers.data.trajectory import SCORED, STOPPED_EARLY, RolloutGroup
from workers.reward.base import ABSTAINED

MAX_ABORTS = 2  # of one prompt; after so many a step waits for the prompt's group


def draw_settings(config: SamplingConfig) -> Sampling:
    """Convert the configuration of sampling to the engine's settings."""
    return Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=config.max_new_tokens,
        stop=tuple(config.stop),
        stop_token_ids=tuple(config.stop_token_ids),
    )


class Producer:
    """Producer of groups from prompts, without end: a `GroupSource`."""

    def __init__(
        self, pool: RolloutPool, prompts: PromptSet, ledger: Ledger, config: TrainConfig
    ) -> None:
        self._pool, self._prompts, self._ledger, self._config = pool, prompts, ledger, config
        self._sampling = draw_settings(config.rollout.sampling)
        self._entries: dict[str, tuple[int, int]] = {}  # group id -> (epoch, row)
        self._aborted: Counter[tuple[int, int]] = Counter()  # how often, by (epoch, row)
        self._overdue: dict[str, None] = {}  # groups in flight whose prompt was aborted too often
        self._finished: dict[str, RolloutGroup] = {}
        self._chosen: list[RolloutGroup] = []  # of a `take` that has not ended
        self._by_source = SourceMetrics([source.name for source in prompts.sources])

    def run_ahead(self, version: int) -> None:
        """Keep the engines sampling while the learner trains, as far as staleness allows.

        Where batches are taken in the order in which they were begun, one per version of the
        weights, the youngest of `max_staleness` batches in flight trains that many versions later.
        """
        self._begin_up_to(self._config.schedule.max_staleness, version)

    def _begin_up_to(self, batches: float, version: int) -> None:
        wanted = math.ceil(batches * self._config.trainer.prompts_per_step)
        self._begin(wanted - len(self._entries), version)

    def _begin(self, count: int, version: int) -> None:
        requests = []
        for _, (epoch, row) in zip(range(count), self._ledger, strict=False):
            prompt = self._prompts[row]
            attempt = self._aborted[epoch, row]
            group_id = group_name(epoch, row, attempt)
            self._entries[group_id] = (epoch, row)
            if attempt >= MAX_ABORTS:
                self._overdue[group_id] = None
            requests.append(
                GroupRequest(
                    group_id=group_id,
                    prompt_uid=prompt.uid,
                    begun_version=version,
                    dataset=prompt.dataset,
                    prompt=prompt.prompt,
                    ground_truth=prompt.ground_truth,
                    num_samples=self._config.rollout.samples_per_prompt,
                    seed=self._seed(epoch, row, attempt),
                    sampling=self._sampling,
                    columns=prompt.columns,
                    images=prompt.images,
                    environment=prompt.environment,
                    may_stop_early=True,
                )
            )
        self._pool.submit(requests)

    def _seed(self, epoch: int, row: int, attempt: int) -> int:
        """Return a group's seed: distinct for every sample of a run, equal in runs of equal seed.

        Another attempt gets another seed: the same responses would be the slowest again.
        """
        serial = epoch * len(self._prompts) + row
        samples = self._config.rollout.samples_per_prompt
        distinct = self._config.seed * 1_000_003 + serial * samples + attempt * 998_244_353
        return distinct % (2**31 - samples)

    def take(
        self, step: int, version: int, may_train: Callable[[RolloutGroup], str | None]
    ) -> Taken:
        """Return the next `prompts_per_step` groups that may train.

        Args:
            step: recorded in the ledger as the step that trained the groups.
            version: of the learner's weights.
            may_train: returns the reason against training a group with usable rows, or None.

        Raises:
            NothingLeftError: the curriculum passes over every prompt.
        """
        self._ledger.begin_step(step)
        wanted = self._config.trainer.prompts_per_step
        budget = wanted * self._config.schedule.max_refill_rounds
        chosen = self._chosen = []
        self._by_source.begin_step()
        num_late = num_abstained = 0
        rewards: list[float] = []
        dropped: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        failed_rows: list[tuple[Any, int]] = []
        schedule = self._config.schedule
        self._begin_up_to(schedule.max_staleness + schedule.oversample, version)
        while len(chosen) < wanted and len(chosen) + dropped.total() < budget:
            if not self._entries:
                left = budget - len(chosen) - dropped.total()
                self._begin(min(wanted - len(chosen), left), version)
            if not self._entries:  # the curriculum passes over every prompt
                break
            group = self._next_group()
            samples = whole_samples(group.metas)
            num_abstained += sum(meta.outcome == ABSTAINED for meta in samples)
            fine = (SCORED, STOPPED_EARLY, ABSTAINED)
            failed.update(meta.outcome for meta in samples if meta.outcome not in fine)
            failed_rows += [(group.batch, group.start + row) for row in group.failed_rows()]
            rewards += [meta.reward for meta in samples if meta.reward is not None]
            epoch, row = self._entries.pop(group.group_id)
            if (rate := pass_rate(samples)) is not None:
                self._ledger.observe(row, rate)
            late = self._staleness(group, version) > self._config.schedule.max_staleness
            why = self._unusable(group, version) or may_train(group)
            self._by_source.count(samples, trains=why is None)
            if why is None:
                chosen.append(group)
                num_late += late
                self._ledger.trained(epoch, row, step)
            else:
                dropped[why] += 1
                self._ledger.dropped(epoch, row, why)
        if not chosen and not dropped:
            raise NothingLeftError("data.curriculum passes over every prompt; widen its windows")
        num_aborted = self._abort_excess()
        self._chosen = []
        return Taken(
            groups=tuple(chosen),
            dropped=dropped,
            failed=failed,
            num_late=num_late,
            num_abstained=num_abstained,
            num_aborted=num_aborted,
            rewards=tuple(rewards),
            failed_rows=tuple(failed_rows),
        )

    def give_back(self) -> None:
        """Undo the last `take` in the ledger; its prompts are sampled again after a resume.

        The groups of a `take` that was cut short are kept for the checkpoint, unless the schedule
        samples a whole batch at once, whose bits then repeat.
        """
        self._ledger.reopen_step()
        if self._config.schedule.max_staleness == 0:
            self._finished.clear()
        else:
            kept = {group.group_id: group for group in self._chosen}
            self._entries = {name: prompt_of(name) for name in kept} | self._entries
            self._finished |= kept
        self._chosen = []

    def _abort_excess(self) -> int:
        """Abort the slowest groups that over-sampling began; return their number.

        The groups of the batches that may run ahead remain.
        """
        schedule = self._config.schedule
        if schedule.oversample == 1 or schedule.leftover == "keep":
            return 0
        excess = len(self._entries) - schedule.max_staleness * self._config.trainer.prompts_per_step
        done = {group.group_id for group in self.finished_groups()}
        slowest = sorted(self._entries, key=done.__contains__)[: max(0, excess)]  # oldest first
        self._pool.abort([group_id for group_id in slowest if group_id not in done])
        for group_id in slowest:
            epoch, row = self._entries.pop(group_id)
            self._finished.pop(group_id, None)
            self._overdue.pop(group_id, None)
            if schedule.leftover == "again":
                self._aborted[epoch, row] += 1
                self._ledger.give_back(epoch, row)
            else:
                self._ledger.dropped(epoch, row, "aborted")
        return len(slowest)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the engines, and of every source where there are several."""
        return {**self._pool.metrics(), **self._by_source.metrics()}

    def finished_groups(self) -> list[RolloutGroup]:
        """Return the groups that are sampled and scored and not yet taken, oldest first."""
        for group in self._pool.poll(wait=False):
            self._finished[group.group_id] = group
        return [self._finished[name] for name in self._entries if name in self._finished]

    def restore_groups(self, groups: Sequence[RolloutGroup]) -> None:
        """Restore the groups that `finished_groups` of an earlier process returned."""
        for group in groups:
            epoch, row = prompt_of(group.group_id)
            self._ledger.claim(epoch, row)
            self._entries[group.group_id] = (epoch, row)
            self._finished[group.group_id] = group

    def _next_group(self) -> RolloutGroup:
        """Wait for the group that must come next, or for the first that is finished; return it."""
        in_order = self._config.schedule.order == "begun"
        wanted = next(iter(self._entries if in_order else self._overdue), None)
        while not self._finished or (wanted and wanted not in self._finished):
            for group in self._pool.poll():
                self._finished[group.group_id] = group
        group = self._finished.pop(wanted or next(iter(self._finished)))
        self._overdue.pop(group.group_id, None)
        return group

    def _unusable(self, group: RolloutGroup, version: int) -> str | None:
        few = group.too_few(samples_per_prompt=self._config.rollout.samples_per_prompt)
        if few is not None:
            return few
        staleness = self._staleness(group, version)
        bounded = self._config.schedule.stale == "drop"
        if bounded and staleness > self._config.schedule.max_staleness:
            return f"stale by {staleness}"
        return None

    @staticmethod
    def _staleness(group: RolloutGroup, version: int) -> int:
        """Count the weight versions since the first token of the group's usable samples."""
        drawn = [group.metas[row].min_version for row in group.usable_rows()]
        return version - min(drawn, default=version)
