"""List every metric that a run can write: name, unit, meaning, and when.

Data only. It emits nothing: a metric is made where it is measured, and a test compares the names in
the code with this list, in both directions. `ballast metrics` prints it. A metric that is a mean
over the step's optimizer updates says "per update".
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One name of `metrics.jsonl`, or a family of names.

    Example: Metric(name="time/step_s", unit="s", meaning="the whole step", when="every step")

    Attributes:
        name: `area/name`; `<word>` stands for whatever the run puts there.
        unit: "share" is a fraction from 0 to 1; "1" a plain number.
        meaning: in a few words.
        when: in which lines of the file it is.
    """

    name: str
    unit: str
    meaning: str
    when: str

    def covers(self, name: str) -> bool:
        """Return True for the metric's own name, and for one of its family.

        Example: bubble/<role>/<activity>_frac covers bubble/learner/idle_frac.
        """
        parts = re.split(r"(<\w+>)", self.name)
        pattern = "".join(".+" if part[:1] == "<" else re.escape(part) for part in parts)
        return re.fullmatch(pattern, name) is not None


def _metrics(when: str, *rows: tuple[str, str, str]) -> tuple[Metric, ...]:
    """Make metrics of (name, unit, meaning) that are written at the same time."""
    return tuple(
        Metric(name=name, unit=unit, meaning=meaning, when=when) for name, unit, meaning in rows
    )


STEP = "every step"
LEARNS = "steps of a run with a learner"
TRAINED = "steps in which the policy trains"
SAMPLES = "steps of a run with engines"
PUBLISHES = "steps after which engines get new weights"
EVALUATION = "a line of its own after every evaluation"

REWARD = (
    *_metrics(
        STEP,
        ("reward/mean", "reward", "mean of the trained samples, as scored"),
        ("reward/std", "reward", "standard deviation of the same"),
        ("reward/latency_s", "s", "from a sample's last token to its score, mean"),
        (
            "reward/sampled_mean",
            "reward",
            "mean of all scored samples, with those of groups that were filtered or dropped: the "
            "one to watch under dynamic sampling",
        ),
    ),
    *_metrics(
        "steps of a run with several sources, for each of which a group ended",
        ("source/<name>/reward", "reward", "mean of the scored samples of one source"),
        ("source/<name>/pass_rate", "share", "its samples that are right"),
        ("source/<name>/groups", "groups", "of one source that train"),
    ),
    *_metrics(
        "steps of a run whose curriculum passes over prompts",
        ("curriculum/skipped", "prompts", "passed over so far, in all epochs"),
    ),
    *_metrics(LEARNS, ("reward/shaped_mean", "reward", "mean after the algorithm's shaping")),
    *_metrics(
        "steps whose scorer returns parts",
        ("reward/part/<name>", "reward", "mean of one part of the score"),
    ),
)

ROLLOUT = (
    *_metrics(
        STEP,
        ("rollout/sequences", "samples", "trained in the step; in rollout_only, recorded"),
        ("rollout/tokens", "tokens", "sampled for these sequences"),
        ("rollout/turns_mean", "turns", "of a sample"),
        ("rollout/turns_max", "turns", "of the sample with most"),
        (
            "rollout/tokens_per_s",
            "tokens/s",
            "rollout/tokens over time/generate_s, or over time/step_s where no group was waited "
            "for",
        ),
        ("rollout/response_tokens_mean", "tokens", "sampled in one sequence, mean"),
        ("rollout/response_tokens_max", "tokens", "sampled in the longest sequence"),
        ("rollout/truncated_frac", "share", "sequences that the length limit cut off"),
    ),
    *_metrics(
        SAMPLES,
        ("rollout/kv_usage", "share", "key/value blocks in use, of the fullest engine"),
        ("rollout/waiting", "requests", "queued in the engines at their last heartbeats"),
        (
            "rollout/preemptions",
            "samples",
            "that lost their keys and values to others and were computed again, since the job "
            "began",
        ),
        ("rollout/engines", "engines", "of the job, with those that load or wait for a place"),
        ("rollout/engines_healthy", "engines", "that may be given prompts"),
        ("rollout/engines_lost", "engines", "that died, since the job began"),
        (
            "rollout/groups_resampled",
            "groups",
            "that were lost with an engine and sampled again, since the job began",
        ),
    ),
    *_metrics(
        "steps of a run with a limit (rollout.concurrency)",
        ("rollout/concurrency", "samples", "that all engines together may hold"),
    ),
    *_metrics(
        "steps in which rollout.early_stop_samples stopped a sample",
        ("rollout/early_stop_frac", "share", "samples of the groups that were stopped"),
        (
            "rollout/early_stop_length_bias",
            "tokens",
            "sampled of the scored, mean, minus those of the stopped: how far it favours short "
            "responses",
        ),
    ),
)

GROUPS = (
    *_metrics(
        STEP,
        ("groups/trained", "groups", "that the step took; in rollout_only, recorded"),
        ("groups/dropped", "groups", "that the step did not take, for any reason"),
        ("groups/filtered", "groups", "of these, dropped by the algorithm's filters"),
        (
            "groups/aborted",
            "groups",
            "begun by over-sampling (schedule.oversample) and given up; schedule.leftover says "
            "what becomes of their prompts",
        ),
        (
            "samples/failed",
            "samples",
            "without a score: time limit, exception, prompt too long, unusable answer of an "
            "engine; never a reward of 0",
        ),
        ("samples/abstained", "samples", "for which the scorer gave no score (None)"),
        ("staleness/groups_late", "groups", "staler than the bound that trained all the same"),
    ),
    *_metrics(
        "steps of rollout=replay",
        ("groups/recorded_steps_left", "steps", "of the recording that have not trained"),
    ),
    *_metrics(
        LEARNS,
        ("staleness/max", "versions", "between sampling and training, of the oldest token"),
        ("staleness/mean", "versions", "the same, mean over sequences (first and last token)"),
    ),
)

MISMATCH = (
    *_metrics(
        TRAINED,
        ("mismatch/abs_mean", "nats", "|log pi_old - log mu|, learner against sampler, mean"),
        ("mismatch/abs_max", "nats", "the same, of the worst trained token"),
    ),
    *_metrics(
        "steps of an algorithm with a correction; per update",
        ("mismatch/factor", "1", "that the correction puts on the policy loss, mean"),
        ("mismatch/dropped_frac", "share", "trained tokens whose factor is 0"),
        ("mismatch/ratio_max", "1", "largest pi_old / mu"),
        ("mismatch/kl_k1", "nats", "k1 estimate of KL(mu || pi_old)"),
        ("mismatch/kl_k3", "nats", "k3 estimate of the same"),
    ),
)

CREDIT = (
    *_metrics(
        LEARNS,
        ("credit/advantage_mean", "reward", "over trained tokens"),
        ("credit/advantage_std", "reward", "over trained tokens"),
        ("credit/advantage_min", "reward", "over trained tokens"),
        ("credit/advantage_max", "reward", "over trained tokens"),
        ("credit/zero_frac", "share", "trained tokens whose advantage is 0"),
        ("credit/informative_groups_frac", "share", "groups whose rewards differ"),
        (
            "credit/part/<name>/informative_groups_frac",
            "share",
            "groups in which one part of the reward differs, where the advantage reads parts",
        ),
        ("credit/reward_group_std_mean", "reward", "standard deviation in a group, mean"),
    ),
    *_metrics(
        "steps of algorithm/advantage=reinforce_pp, reinforce_pp_baseline or gae",
        ("credit/kl", "nats", "KL estimate to the reference in the reward; 0 without one"),
    ),
    *_metrics(
        "steps of algorithm/advantage=gigpo",
        (
            "credit/anchors_informative_frac",
            "share",
            "states of a group in which turns were taken whose returns differ",
        ),
    ),
)

POLICY = (
    *_metrics(
        TRAINED + ", where a part reads old_logprobs; per update",
        ("policy/ratio", "1", "pi_theta / pi_old, mean over trained tokens"),
        ("policy/ratio_max", "1", "largest of a token"),
        ("policy/ratio_min", "1", "smallest of a token"),
        ("policy/kl_old_k3", "nats", "k3 estimate of the KL against pi_old"),
    ),
    *_metrics(
        "steps of an algorithm with a part that does it; per update",
        ("policy/entropy", "nats", "of the full vocabulary, mean over trained tokens"),
        ("policy/kl_ref_<estimator>", "nats", "estimate of the KL against the reference"),
        ("policy/kl_ref_limit_frac", "share", "tokens whose estimate of that KL is at its bound"),
        ("policy/clip_frac", "share", "trained tokens whose gradient the clip cuts"),
        ("policy/clip_low_frac", "share", "of these, ratio below the lower bound"),
        ("policy/clip_high_frac", "share", "of these, ratio above the upper bound"),
        ("policy/clip_dual_frac", "share", "negative advantage and ratio above dual_clip"),
        ("policy/truncated_frac", "share", "tokens whose ratio is truncated (CISPO)"),
        ("policy/sequence_ratio", "1", "ratio of a response, mean over its tokens (GSPO)"),
        ("erc/mask_frac", "share", "tokens whose gradient the entropy-ratio gate stops"),
        ("erc/mask_low_frac", "share", "of these, entropy fell too far"),
        ("erc/mask_high_frac", "share", "of these, entropy rose too far"),
        ("erc/entropy_ratio", "1", "entropy now over entropy of pi_old, mean"),
        ("dppo/mask_frac", "share", "tokens whose gradient the gate of probabilities stops"),
        ("dppo/mask_low_frac", "share", "of these, probability fell too far"),
        ("dppo/mask_high_frac", "share", "of these, probability rose too far"),
        ("drift/squared_log_ratio", "nats^2", "(ln pi / pi_old)^2, mean"),
        ("drift/kl_k3", "nats", "k3 estimate of the policy drift (CPGD)"),
        ("drift/cap_frac", "share", "tokens whose drift gradient is at its cap"),
        ("rpg/<divergence>", "nats", "RPG's own KL term, mean"),
    ),
)

LEARNER = (
    *_metrics(
        LEARNS,
        ("learner/updates", "updates", "of the optimizer that were planned, over all passes"),
        ("learner/micro_batches", "micro-batches", "of each rank in the step"),
        ("learner/micro_batch_fill_frac", "share", "tokens over what learner.token_budget holds"),
        ("learner/shared_prefix_frac", "share", "tokens that siblings' shared prompts save"),
        ("learner/rank_imbalance", "1", "cost of the slowest rank over the mean"),
    ),
    *_metrics(
        TRAINED,
        ("learner/steps", "updates", "applied; one with a non-finite gradient is skipped"),
        ("learner/skipped_updates", "updates", "skipped; other metrics leave these out"),
        ("learner/loss", "1", "weighted sum over ranks and micro-batches, per update"),
        ("learner/grad_norm", "1", "before clipping, per update"),
        ("learner/lr", "1", "learning rate, per update"),
        ("learner/num_tokens", "tokens", "trained, per update"),
    ),
)

SCALED = _metrics(
    "updates of model.dtype=float16",
    ("learner/loss_scale", "1", "the loss is multiplied by it; an overflow halves it"),
    ("critic/loss_scale", "1", "the same of the critic"),
)

ROUTERS = (
    *_metrics(
        "updates of a mixture of experts",
        (
            "router/load_ratio",
            "1",
            "tokens of the busiest expert over the mean, mean of layers and micro-batches",
        ),
    ),
    *_metrics(
        "updates with learner.router_balance",
        ("router/balance", "1", "balancing loss before its coefficient: 1 where even"),
    ),
)

CRITIC = _metrics(
    "steps of an algorithm with a critic",
    ("critic/value_mean", "reward", "of trained tokens, before the step's updates"),
    ("critic/return_mean", "reward", "of the same: advantages + values, before whitening"),
    (
        "critic/explained_variance",
        "1",
        "1 - var(returns - values) / var(returns): 1 foretold, 0 no better than a constant",
    ),
    ("critic/steps", "updates", "applied"),
    ("critic/skipped_updates", "updates", "skipped; other metrics leave these out"),
    ("critic/num_tokens", "tokens", "trained, per update"),
    ("critic/loss", "1", "weighted sum over ranks and micro-batches, per update"),
    ("critic/grad_norm", "1", "before clipping, per update"),
    ("critic/lr", "1", "learning rate, per update"),
    ("value/mean", "reward", "values while they are fitted, per update"),
    ("value/error", "reward", "|value - return|, mean, per update"),
    ("value/clip_frac", "share", "tokens whose value moved beyond the clip, per update"),
)

ADAPTATION = (
    *_metrics(
        "steps of an algorithm whose loss reads a reference; per update",
        ("reference/kl", "nats", "k3 estimate of KL(pi_old || reference) over trained tokens"),
    ),
    *_metrics(
        "steps in which the policy trains, beside a reference",
        ("reference/kl_average", "nats", "moving average of reference/kl"),
        ("reference/age_steps", "steps", "since the reference was the policy"),
        ("reference/refreshed", "share", "of the policy that it took after the step; 1 a copy"),
    ),
    *_metrics(
        "steps in which the policy trains, of an algorithm with controllers",
        ("coefficient/<name>", "1", "that the controller had set for this step"),
    ),
)

PUBLICATION = (
    *_metrics(
        PUBLISHES,
        ("publication/total_s", "s", "a whole publication"),
        ("publication/update_s", "s", "engines receive and load"),
        ("publication/bytes", "bytes", "sent to each engine"),
        ("publication/bytes_per_s", "bytes/s", "publication/bytes over publication/total_s"),
        (
            "publication/probe_gap_max",
            "1",
            "learner against engines on fixed prompts, |a - b| / max(1, |a|) of log-probs, worst",
        ),
        ("publication/probe_gap_mean", "1", "the same, mean of the worst engine"),
        ("publication/probe_allowed_mean", "1", "largest probe_gap_mean that counts as rounding"),
        ("publication/unchanged_tensors", "tensors", "equal to the last ones, bit for bit"),
        (
            "publication/shown_in_use_frac",
            "share",
            "of the tensors sent, those whose bytes were found where engines compute",
        ),
    ),
    *_metrics(
        "publications by shm or gloo",
        ("publication/start_s", "s", "engines get ready to receive"),
        ("publication/finish_s", "s", "engines take the version's label and go on"),
        (
            "publication/copy_frac",
            "share",
            "publication/bytes_per_s over that of a memory copy on the learner's node",
        ),
    ),
    *_metrics(
        "publications by shm",
        ("publication/stage_s", "s", "rank 0 writes its slices into shared memory"),
        ("publication/barrier_s", "s", "rank 0 waits until all ranks have written"),
    ),
)

LEDGER = (
    *_metrics(
        STEP,
        ("ledger/trained", "prompts", "that trained, over all epochs"),
        ("ledger/dropped", "prompts", "that were dropped, over all epochs"),
        ("ledger/in_flight", "prompts", "that are being sampled, or wait to be trained"),
        ("ledger/epoch_frac", "epochs", "that were handed out"),
    ),
    *_metrics(
        "steps in which a checkpoint was completed",
        ("checkpoint/snapshot_s", "s", "that the loop waited for the copies in memory"),
        ("checkpoint/total_s", "s", "from there until the folder got its name"),
        ("checkpoint/bytes", "bytes", "of all roles' files"),
    ),
)

TIME = (
    *_metrics(
        STEP,
        ("time/step_s", "s", "the whole step; the other times add up to it"),
        ("time/generate_s", "s", "waiting for groups"),
        ("time/account_s", "s", "asking all workers what they did"),
        ("time/other_s", "s", "the driver's own work"),
        (
            "bubble/<role>/<activity>_frac",
            "share",
            "of the step that the role's workers spent so, mean; a role's shares, idle among "
            "them, add up to 1",
        ),
    ),
    *_metrics(
        LEARNS,
        ("time/switch_s", "s", "colocated: engines go to sleep, the learner's state comes back"),
        ("time/score_s", "s", "old and reference log-probs, values, advantages"),
        ("time/train_s", "s", "optimizer updates of policy and critic"),
        ("time/publish_s", "s", "weights into the engines, and their attestation"),
        ("time/follow_s", "s", "reference and coefficients follow"),
    ),
    *_metrics(
        "steps of colocated engines and learner on GPUs",
        (
            "colocation/engines_asleep_bytes",
            "bytes",
            "in use on the fullest learner GPU, engines asleep, before the learner's state is back",
        ),
        (
            "colocation/generating_bytes",
            "bytes",
            "the same, engines awake, the learner's state in host memory",
        ),
    ),
)

EVAL = (
    *_metrics(
        EVALUATION,
        ("eval/mean", "reward", "of all held-out samples; a failed one counts as 0"),
        ("eval/pass@<k>", "share", "chance that one of k samples is right, unbiased (2107.03374)"),
        ("eval/mean_low", "reward", "lower end of its 95 % interval: bootstrap over prompts"),
        ("eval/mean_high", "reward", "upper end of the same"),
        ("eval/pass@1_low", "share", "lower end of its 95 % interval: Wilson's, over prompts"),
        ("eval/pass@1_high", "share", "upper end of the same"),
        ("eval/failed_frac", "share", "samples whose scoring failed"),
        ("eval/response_tokens_mean", "tokens", "sampled in one response, mean"),
    ),
    *_metrics(
        EVALUATION + ", with several samples of a prompt",
        ("eval/maj@<k>", "reward", "score of the most frequent of k answers"),
    ),
    *_metrics(
        EVALUATION + ", of every set of evaluation.sets",
        ("eval/<set>/<metric>", "as the metric's", "the same of one named set"),
    ),
    *_metrics(
        EVALUATION + " beside training, if weights arrived meanwhile",
        ("eval/newer_weights_frac", "share", "samples that newer weights went on with"),
    ),
    *_metrics(
        EVALUATION + ", of a scorer that abstained",
        ("eval/abstained_frac", "share", "samples for which the scorer gave no score (None)"),
    ),
)

ALERTS = _metrics(
    STEP,
    ("alerts/showing", "alerts", "signs that the run stopped learning, that show after the step"),
)

GLOSSARY: tuple[Metric, ...] = (
    *REWARD,
    *ROLLOUT,
    *GROUPS,
    *MISMATCH,
    *CREDIT,
    *POLICY,
    *LEARNER,
    *SCALED,
    *ROUTERS,
    *CRITIC,
    *ADAPTATION,
    *PUBLICATION,
    *LEDGER,
    *TIME,
    *EVAL,
    *ALERTS,
)
