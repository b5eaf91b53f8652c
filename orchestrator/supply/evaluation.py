"""Evaluate held-out prompts through the same engines and the same reward as training.

The driver runs an evaluation. `mean` is the mean reward of all samples; with k samples of a prompt
`pass@j` is the unbiased estimate of the chance that one of j is right (Chen et al., 2107.03374,
Eq. 1), and `maj@k` the reward of the most frequent response. Right is what the scorer calls
"correct", or a reward of 1 where it says nothing. A failed sample
counts as not right and is counted in `failed_frac` too, because a held-out result must not improve
when samples fail. No held-out sample is trained.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import ray

from conf.schema import TrainConfig
from orchestrator.fleet.pool import RolloutPool
from orchestrator.supply.producer import draw_settings
from orchestrator.telemetry.heldout import HeldoutAnswer, HeldoutResult
from workers.data.prompts import PromptSet
from workers.data.requests import GroupRequest
from workers.data.trajectory import SCORED
from workers.reward.base import ABSTAINED, CORRECT


class Evaluator:
    """Evaluator of the held-out prompts, alone or beside groups in flight.

    Args:
        pool: of the engines.
        prompts: held-out prompts, of which `data.eval_limit` are used.
        config: of the run.
    """

    def __init__(self, pool: RolloutPool, prompts: PromptSet, config: TrainConfig) -> None:
        self._pool, self._prompts, self._config = pool, prompts, config
        limit = config.data.eval_limit or len(prompts)
        self._rows = range(min(limit, len(prompts)))

    def run(self, version: int) -> HeldoutResult:
        """Score every held-out prompt under the weights of `version`."""
        rollout = self._config.rollout
        requests = []
        for row in self._rows:
            prompt = self._prompts[row]
            requests.append(
                GroupRequest(
                    group_id=f"eval-{version}-{row}",
                    prompt_uid=prompt.uid,
                    begun_version=version,
                    dataset=prompt.dataset,
                    prompt=prompt.prompt,
                    ground_truth=prompt.ground_truth,
                    num_samples=rollout.eval_samples_per_prompt,
                    seed=row * rollout.eval_samples_per_prompt,
                    sampling=draw_settings(rollout.eval_sampling),
                    columns=prompt.columns,
                    images=prompt.images,
                )
            )
        self._pool.submit(requests)
        finished = {
            group.group_id: group for group in self._pool.wait([r.group_id for r in requests])
        }
        answers: list[HeldoutAnswer] = []
        lengths: list[int] = []
        for request in requests:
            group = finished[request.group_id]
            texts = ray.get(group.batch).column("response_text")
            for number, meta in enumerate(group.metas):
                lengths.append(meta.num_sampled)
                answers.append(
                    HeldoutAnswer(
                        prompt_uid=request.prompt_uid,
                        prompt=str(request.prompt),
                        response=str(texts[group.start + number]),
                        ground_truth=request.ground_truth,
                        reward=meta.reward,
                        outcome=meta.outcome,
                        correct=_declared(meta.reward_parts),
                    )
                )
        metrics = summarise(answers)
        metrics["response_tokens_mean"] = sum(lengths) / len(lengths)
        return HeldoutResult(metrics=metrics, answers=tuple(answers))


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
    if num_abstained:
        metrics["abstained_frac"] = num_abstained / len(answers)
    for j in (2**power for power in range(samples.bit_length())):
        rates = [
            pass_at(len(group), sum(is_right(answer) for answer in group), j) for group in groups
        ]
        metrics[f"pass@{j}"] = sum(rates) / len(rates)
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
    text, _ = Counter(answer.response.strip() for answer in group).most_common(1)[0]
    return next(a.reward or 0.0 for a in group if a.response.strip() == text)
