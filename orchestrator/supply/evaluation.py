"""Evaluate held-out prompts through the same engines and the same reward as training.

The driver runs an evaluation. `mean` is the mean reward of all samples (mean@k); with k samples of
a prompt `pass@j` is the unbiased estimate of the chance that one of j is right (Chen et al.,
2107.03374, Eq. 1), and `maj@k` the reward of the most frequent answer, as the scorer finds it in
the response. Right is what the scorer calls "correct", or a reward of 1 where it says nothing.
`_low` and `_high` are 95 % intervals over prompts (`intervals.py`). A failed sample counts as not
right and is counted in `failed_frac` too, because a held-out result must not improve when samples
fail. No held-out sample is trained.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from conf.schema import TrainConfig
from orchestrator.fleet.pool import RolloutPool
from orchestrator.planning.sources import Sources
from orchestrator.step.samples import first_rows, whole_samples
from orchestrator.supply.intervals import bootstrap, wilson
from orchestrator.supply.producer import draw_settings
from orchestrator.telemetry.heldout import HeldoutAnswer, HeldoutResult
from workers.data.prompts import PromptSet
from workers.data.requests import GroupRequest, Sampling
from workers.data.trajectory import SCORED, RolloutGroup, TrajectoryMeta
from workers.reward.base import ABSTAINED, ANSWER, CORRECT


@dataclass(frozen=True, kw_only=True)
class HeldoutSet:
    """Prompts that are scored in every evaluation.

    Attributes:
        name: before the names of its metrics; empty for the set of `data.eval_path`.
        prompts: of which the first `num_prompts` are used.
        num_samples: of each prompt, k.
        sampling: of these samples.
    """

    name: str
    prompts: PromptSet
    num_prompts: int
    num_samples: int
    sampling: Sampling


def heldout_sets(config: TrainConfig, sources: Sources) -> list[HeldoutSet]:
    """Return the set of `data.eval_path`, if there is one, and those of `evaluation.sets`."""
    rollout, found = config.rollout, []
    if sources.heldout is not None:
        count = min(config.data.eval_limit or len(sources.heldout), len(sources.heldout))
        found.append(
            HeldoutSet(
                name="",
                prompts=sources.heldout,
                num_prompts=count,
                num_samples=rollout.eval_samples_per_prompt,
                sampling=draw_settings(rollout.eval_sampling),
            )
        )
    for name, prompts in sources.sets.items():
        own = config.evaluation.sets[name]
        found.append(
            HeldoutSet(
                name=name,
                prompts=prompts,
                num_prompts=min(own.limit or len(prompts), len(prompts)),
                num_samples=own.samples_per_prompt or rollout.eval_samples_per_prompt,
                sampling=draw_settings(own.sampling or rollout.eval_sampling),
            )
        )
    return found


class Evaluator:
    """Evaluator of the held-out sets, alone or beside groups in flight.

    Args:
        pool: of the engines.
        sets: at least one.
    """

    def __init__(self, pool: RolloutPool, sets: Sequence[HeldoutSet]) -> None:
        self._pool, self._sets = pool, sets
        self._requests: dict[str, list[GroupRequest]] = {}  # of the evaluation that was begun
        self._finished: dict[str, RolloutGroup] = {}

    def run(self, version: int) -> HeldoutResult:
        """Score every held-out prompt under the weights of `version`."""
        self.begin(version)
        return self.finish()

    def begin(self, version: int) -> None:
        """Begin to sample every held-out prompt, beside what the engines sample for training."""
        self._requests = {each.name: _requests(each, version) for each in self._sets}
        self._finished = {}
        everything = [request for wanted in self._requests.values() for request in wanted]
        self._pool.set_aside([request.group_id for request in everything])
        self._pool.submit(everything)

    def poll(self) -> HeldoutResult | None:
        """Return the result of the evaluation that was begun, or None while it is going on."""
        self._finished |= {group.group_id: group for group in self._pool.take_aside()}
        return None if self._missing() else self._result()

    def finish(self) -> HeldoutResult:
        """Wait for the evaluation that was begun, and return its result."""
        self._finished |= {group.group_id: group for group in self._pool.take_aside()}
        missing = self._missing()
        if missing:
            self._finished |= {group.group_id: group for group in self._pool.wait(missing)}
        return self._result()

    def _missing(self) -> list[str]:
        wanted = (request for own in self._requests.values() for request in own)
        return [each.group_id for each in wanted if each.group_id not in self._finished]

    def _result(self) -> HeldoutResult:
        metrics: dict[str, float] = {}
        answers: list[HeldoutAnswer] = []
        for name, wanted in self._requests.items():
            own, metas = _answers(name, wanted, self._finished)
            scores = {**summarise(own), **_of_samples(metas, wanted[0].begun_version)}
            prefix = f"{name}/" if name else ""
            metrics |= {f"{prefix}{metric}": value for metric, value in scores.items()}
            answers += own
        return HeldoutResult(metrics=metrics, answers=tuple(answers))


def _requests(heldout: HeldoutSet, version: int) -> list[GroupRequest]:
    requests = []
    for row in range(heldout.num_prompts):
        prompt = heldout.prompts[row]
        requests.append(
            GroupRequest(
                group_id=f"eval-{version}-{heldout.name}-{row}",
                prompt_uid=prompt.uid,
                begun_version=version,
                dataset=prompt.dataset,
                prompt=prompt.prompt,
                ground_truth=prompt.ground_truth,
                num_samples=heldout.num_samples,
                seed=row * heldout.num_samples,
                sampling=heldout.sampling,
                columns=prompt.columns,
                images=prompt.images,
                environment=prompt.environment,
            )
        )
    return requests


def _answers(
    name: str, requests: Sequence[GroupRequest], finished: Mapping[str, RolloutGroup]
) -> tuple[list[HeldoutAnswer], list[TrajectoryMeta]]:
    """Return every sample of a set in the order of its prompts, with its metadata."""
    answers: list[HeldoutAnswer] = []
    metas: list[TrajectoryMeta] = []
    for request in requests:
        group = finished[request.group_id]
        batch = ray.get(group.batch)
        texts, notes = batch.column("response_text"), batch.column("reward_notes")
        firsts, samples = first_rows(group.metas), whole_samples(group.metas)
        for number, meta in zip(firsts, samples, strict=True):
            row = group.start + number
            metas.append(meta)
            answers.append(
                HeldoutAnswer(
                    heldout_set=name,
                    prompt_uid=request.prompt_uid,
                    prompt=str(request.prompt),
                    response=str(texts[row]),
                    ground_truth=request.ground_truth,
                    reward=meta.reward,
                    outcome=meta.outcome,
                    correct=_declared(meta.reward_parts),
                    answer=_extracted(notes[row].as_py()),
                )
            )
    return answers, metas


def _of_samples(metas: Sequence[TrajectoryMeta], version: int) -> dict[str, float]:
    """Return the mean length, and the share of samples that newer weights went on with, if any."""
    newer = sum(meta.max_version > version for meta in metas)
    return {
        "response_tokens_mean": sum(meta.num_sampled for meta in metas) / len(metas),
        **({"newer_weights_frac": newer / len(metas)} if newer else {}),
    }


def _extracted(notes: Sequence[tuple[str, str]]) -> str | None:
    """Return the answer that a scorer found, also one inside a weighted sum."""
    found = (text for key, text in notes if key == ANSWER or key.endswith(f"/{ANSWER}"))
    return next(found, None)


def summarise(answers: Sequence[HeldoutAnswer]) -> dict[str, float]:
    """Compute mean, pass@j and maj@k over prompts.

    A failed sample counts as 0, and in `failed_frac`. A sample that the scorer abstained from
    counts in `abstained_frac` and not in the mean; it is not right.
    """
    by_prompt: dict[str, list[HeldoutAnswer]] = defaultdict(list)
    for answer in answers:
        by_prompt[answer.prompt_uid].append(answer)
    groups = list(by_prompt.values())
    samples = min(len(group) for group in groups)
    judged = [answer for answer in answers if answer.outcome != ABSTAINED]
    num_abstained = len(answers) - len(judged)
    metrics = {
        "mean": sum(a.reward or 0.0 for a in judged) / max(1, len(judged)),
        "failed_frac": sum(a.outcome != SCORED for a in judged) / len(answers),
    }
    judged_of = ([a.reward or 0.0 for a in g if a.outcome != ABSTAINED] for g in groups)
    means = [sum(rewards) / len(rewards) for rewards in judged_of if rewards]
    metrics["mean_low"], metrics["mean_high"] = bootstrap(means or [0.0])
    if num_abstained:
        metrics["abstained_frac"] = num_abstained / len(answers)
    for j in (2**power for power in range(samples.bit_length())):
        rates = [
            pass_at(len(group), sum(is_right(answer) for answer in group), j) for group in groups
        ]
        metrics[f"pass@{j}"] = sum(rates) / len(rates)
    metrics["pass@1_low"], metrics["pass@1_high"] = wilson(metrics["pass@1"], len(groups))
    if samples > 1:
        metrics[f"maj@{samples}"] = sum(_majority(group) for group in groups) / len(groups)
    return metrics


def is_right(answer: HeldoutAnswer) -> bool:
    """Return the scorer's own word (its part "correct"), or True where the reward is 1 or more."""
    if answer.correct is not None:
        return answer.correct
    return (answer.reward or 0.0) >= 1.0


def _declared(parts: Mapping[str, float]) -> bool | None:
    return None if CORRECT not in parts else parts[CORRECT] > 0.5


def pass_at(num_samples: int, num_right: int, j: int) -> float:
    """Compute 1 - C(n - c, j) / C(n, j), the chance that j of n samples hold one of c right ones.

    Args:
        num_samples: n.
        num_right: c.
        j: samples drawn of the n.
    """
    if num_samples - num_right < j:
        return 1.0
    return 1.0 - math.comb(num_samples - num_right, j) / math.comb(num_samples, j)


def _majority(group: Sequence[HeldoutAnswer]) -> float:
    """Return the reward of the most frequent answer, of equally frequent ones that of the first.

    Where the scorer finds answers inside responses these vote, and a response in which none was
    found has no vote; else whole responses vote.
    """
    answers = [answer for answer in group if answer.answer is not None]
    if answers:
        votes = [(str(answer.answer), answer.reward or 0.0) for answer in answers]
    else:
        votes = [(answer.response.strip(), answer.reward or 0.0) for answer in group]
    text, _ = Counter(text for text, _ in votes).most_common(1)[0]
    return next(reward for other, reward in votes if other == text)
