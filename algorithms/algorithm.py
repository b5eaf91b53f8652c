"""An algorithm as a composition of parts, whose methods are pure functions of tensors.

One frozen record. The driver builds the record and ships a copy to the learner and to the critic;
each calls the methods of its own stage. Not a trainer: no state, no device, no optimizer, and no
division by anything local. Data flows

    RewardInputs -> shape_rewards, trains, keep_groups      before credit, per sequence and group
    CreditInputs -> credit                                  whole step's batch
    LossInputs   -> token_loss, critic_loss                 one packed micro-batch, unreduced
    BatchMetadata -> sequence_weights                       the only division, global

Shapes: N tokens, S sequences, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from algorithms.aggregations import by_rollout
from algorithms.coefficients import read, replaced
from algorithms.composition import (
    check_auxiliaries,
    check_bypass,
    check_columns,
    check_controllers,
    check_finite_tensor,
    check_kind,
    check_known,
    check_metric_names,
    check_parts,
    check_reference,
    check_reward_parts,
    check_shape,
    part_values,
    plain_mapping,
    shaped,
    union,
)
from algorithms.controllers import Controller
from algorithms.flags import token_flags
from algorithms.inputs import (
    BatchMetadata,
    Credit,
    CreditInputs,
    LossInputs,
    RewardInputs,
    TokenLoss,
)
from algorithms.parts import (
    Advantage,
    Aggregation,
    Auxiliary,
    Correction,
    Filter,
    Gate,
    PolicyLoss,
    Regularizer,
    RewardShaping,
    TokenPart,
    ValueLoss,
)
from algorithms.preparation import prepared, ratio_metrics
from algorithms.references import Frozen, ReferenceRule
from algorithms.segments import num_segments


@dataclass(frozen=True, kw_only=True, repr=False)
class Algorithm:
    """The objective of training, as parts. Built from YAML, shipped by pickle, logged by its repr.

    The token loss is `gate(correction * policy_loss) + sum(regularizers)`, where a gate keeps the
    value and cuts the gradient.

    Attributes:
        name: the name it was chosen by.
        advantage: rewards to advantages.
        policy_loss: advantages to a loss per token.
        aggregation: weights of the tokens.
        gates: tokens that pass a gradient; all must agree.
        regularizers: terms under the same aggregation, not gated, not corrected.
        auxiliaries: terms with their own denominator; the key names the term.
        correction: detached factor for sampler/trainer mismatch.
        filters: groups and sequences that train.
        reward_shaping: applied in order.
        value_loss: loss of the critic; None when there is no critic.
        reference: how the policy behind `ref_logprobs` follows training.
        controllers: coefficients that follow a metric; the key names the metric of each.
        bypass: use the sampler's log-probs as `old_logprobs`, so that pi / mu is the ratio and no
            scoring pass runs. A correction would then count the same ratio twice.
    """

    name: str
    advantage: Advantage
    policy_loss: PolicyLoss
    aggregation: Aggregation
    gates: Mapping[str, Gate] = field(default_factory=dict)
    regularizers: Mapping[str, Regularizer] = field(default_factory=dict)
    auxiliaries: Mapping[str, Auxiliary] = field(default_factory=dict)
    correction: Correction | None = None
    filters: Mapping[str, Filter] = field(default_factory=dict)
    reward_shaping: Mapping[str, RewardShaping] = field(default_factory=dict)
    value_loss: ValueLoss | None = None
    reference: ReferenceRule = field(default_factory=Frozen)
    controllers: Mapping[str, Controller] = field(default_factory=dict)
    bypass: bool = False

    def __post_init__(self) -> None:
        check_kind("advantage", self.advantage, Advantage)
        check_kind("policy_loss", self.policy_loss, PolicyLoss)
        check_kind("aggregation", self.aggregation, Aggregation)
        check_kind("reference", self.reference, ReferenceRule)
        if self.correction is not None:
            check_kind("correction", self.correction, Correction)
        if self.value_loss is not None:
            check_kind("value_loss", self.value_loss, ValueLoss)
        for key, kind in (
            ("gates", Gate),
            ("regularizers", Regularizer),
            ("auxiliaries", Auxiliary),
            ("filters", Filter),
            ("reward_shaping", RewardShaping),
            ("controllers", Controller),
        ):
            # A plain dict pickles everywhere, whatever container the configuration handed over.
            object.__setattr__(self, key, plain_mapping(key, getattr(self, key), kind))
        if not self.name:
            raise ValueError("name='' is empty; name the algorithm")
        check_auxiliaries(self.auxiliaries)
        check_bypass(self.bypass, self.correction)
        check_parts(self.advantage, self.reward_shaping)
        parts = self.trained_parts()
        for part in parts:
            check_known(part)
        check_reference(self.reference, parts)
        check_controllers(self.controllers, lambda path: read(self, path))

    @property
    def coefficients(self) -> dict[str, float]:
        """Dotted path -> value of every number that a controller steers."""
        return {
            part.coefficient: read(self, part.coefficient) for part in self.controllers.values()
        }

    def with_coefficients(self, values: Mapping[str, float]) -> "Algorithm":
        """Return the same algorithm with other numbers at the given dotted paths."""
        return replaced(self, values)

    def _loss_parts(self) -> dict[str, TokenPart]:
        """Return the parts of the token loss by their keys."""
        parts: dict[str, TokenPart] = {"policy_loss": self.policy_loss}
        for kind in ("gates", "regularizers", "auxiliaries"):
            parts |= {f"{kind}.{key}": part for key, part in getattr(self, kind).items()}
        return parts if self.correction is None else {**parts, "correction": self.correction}

    def _token_parts(self) -> list[TokenPart]:
        return list(self._loss_parts().values())

    def trained_parts(self) -> list[TokenPart | Advantage]:
        """List the parts that read columns of a batch."""
        parts: list[TokenPart | Advantage] = [self.advantage, *self._token_parts()]
        return parts if self.value_loss is None else [*parts, self.value_loss]

    @property
    def part_readers(self) -> dict[str, tuple[str, ...]]:
        """Key of each part -> names of the reward's parts that it reads, where it reads some."""
        parts: dict[str, TokenPart | Advantage] = {"advantage": self.advantage}
        parts |= self._loss_parts()
        if self.value_loss is not None:
            parts["value_loss"] = self.value_loss
        readers = {key: tuple(part.reward_parts) for key, part in parts.items()}
        readers |= {f"filters.{key}": (own.part,) for key, own in self.filters.items() if own.part}
        return {key: names for key, names in readers.items() if names}

    @property
    def reward_parts(self) -> tuple[str, ...]:
        """Names of the reward's parts that any part reads, in order."""
        return tuple(sorted({name for names in self.part_readers.values() for name in names}))

    @property
    def loss_reward_parts(self) -> tuple[str, ...]:
        """Names of the reward's parts that `token_loss` or `critic_loss` reads, in order."""
        parts = self._token_parts()
        parts += [] if self.value_loss is None else [self.value_loss]
        return tuple(sorted({name for part in parts for name in part.reward_parts}))

    @property
    def required_columns(self) -> frozenset[str]:
        """Columns that roles must produce: of credit and loss, and `values` for a critic."""
        values = frozenset({"values"}) if self.needs_critic else frozenset()
        return self.credit_columns | self.loss_columns | values

    @property
    def credit_columns(self) -> frozenset[str]:
        """Columns that must exist before `credit`."""
        return self._produced(self.advantage.columns)

    @property
    def loss_columns(self) -> frozenset[str]:
        """Columns that `token_loss` reads."""
        return self._produced(union(self._token_parts()))

    @property
    def value_columns(self) -> frozenset[str]:
        """Columns that `critic_loss` reads: `values`, `old_values` (at credit) and `returns`."""
        return frozenset() if self.value_loss is None else self.value_loss.columns

    def _produced(self, columns: frozenset[str]) -> frozenset[str]:
        """Replace columns that another column stands for.

        The old policy may be the reference; in bypass mode the sampler is the old policy.
        """
        if self.reference.old_policy and "ref_logprobs" in columns:
            columns = columns - {"ref_logprobs"} | {"old_logprobs"}
        if self.bypass and "old_logprobs" in columns:
            return columns - {"old_logprobs"} | {"rollout_logprobs"}
        return columns

    @property
    def needs_groups(self) -> bool:
        """True when one response per prompt would train on nothing."""
        return self.advantage.needs_groups

    @property
    def needs_critic(self) -> bool:
        """True when the critic role runs."""
        return self.value_loss is not None

    @property
    def entropy_gradient(self) -> bool:
        """True when `LossInputs.entropy` must carry a gradient; else compute it under no_grad."""
        return any(part.entropy_gradient for part in self.regularizers.values())

    def shape_rewards(self, inputs: RewardInputs) -> Tensor:
        """Return the rewards that credit reads [S]."""
        for shaping in self.reward_shaping.values():
            inputs = replace(inputs, rewards=shaping(inputs))
        return inputs.rewards

    def trains(self, inputs: RewardInputs) -> Tensor:
        """Mark the sequences that train [S] bool; the others get an all-False loss mask."""
        keep = torch.ones_like(inputs.truncated, dtype=torch.bool)
        for part in self.filters.values():
            keep = keep & part.trains(inputs)
        return keep

    def keep_groups(
        self,
        rewards: Tensor,
        group_ids: Tensor,
        parts: Sequence[Mapping[str, float]] = (),
    ) -> Tensor:
        """Mark the groups that train [G] bool.

        Args:
            rewards: [S] before shaping.
            group_ids: [S] in 0..G-1.
            parts: S mappings, the parts of each reward; read where a filter names one, and checked
                for what any other part names.

        Raises:
            ValueError: a part that is named is missing in a reward.
        """
        keep = torch.ones(num_segments(group_ids), dtype=torch.bool, device=group_ids.device)
        for key, part in self.filters.items():
            own = part_values(f"filters.{key}", part.part, parts) if part.part else rewards
            keep = keep & part.keep_groups(own.to(rewards), group_ids)
        for reader, names in self.part_readers.items():
            for name in names:
                part_values(reader, name, parts)
        return keep

    @property
    def settles_early(self) -> bool:
        """True where some filter can decide on a group before all its siblings are scored.

        A filter of a reward part cannot: the engines count whole rewards.
        """
        return any(
            type(part).settled is not Filter.settled and not part.part
            for part in self.filters.values()
        )

    def settled(self, rewards: Sequence[float], num_left: int) -> bool:
        """Return True where no reward to come can change any filter's verdict on one group.

        Args:
            rewards: unshaped, of the siblings that are scored, at least one.
            num_left: siblings that are not.
        """
        scored = torch.tensor(rewards, dtype=torch.float32)
        return all(
            num_left == 0 if part.part else part.settled(scored, num_left)
            for part in self.filters.values()
        )

    def credit(self, inputs: CreditInputs) -> Credit:
        """Compute the advantages of the whole step's batch.

        Raises:
            ValueError: on a missing column, a wrong shape, a non-finite reward or advantage.
        """
        if self.bypass:
            inputs = replace(inputs, old_logprobs=inputs.rollout_logprobs)
        if self.reference.old_policy:
            inputs = replace(inputs, ref_logprobs=inputs.old_logprobs)
        check_columns(self.name, self.credit_columns, inputs)
        check_reward_parts(self.name, self.advantage.reward_parts, inputs)
        check_finite_tensor(
            "shaped_rewards", inputs.shaped_rewards, "drop samples whose scoring failed"
        )
        with torch.no_grad():
            credit = self.advantage(inputs)
        source = type(self.advantage).__name__
        check_shape(source, credit.advantages, inputs.loss_mask)
        check_finite_tensor(
            f"advantages of {source}", credit.advantages, "look for non-finite values or log-probs"
        )
        return credit

    def token_loss(self, inputs: LossInputs) -> TokenLoss:
        """Compute the unreduced losses, metrics and flags, all [N], of one micro-batch.

        Only `logprobs` (and `entropy`, when a regularizer reads it) receive gradients. Values at
        masked positions never matter, not even NaN.

        Raises:
            ValueError: on a missing column or a part that returns the wrong shape.
        """
        inputs = prepared(
            inputs,
            bypass=self.bypass,
            reference_is_old=self.reference.old_policy,
            entropy_gradient=self.entropy_gradient,
        )
        check_columns(self.name, self.loss_columns, inputs)
        check_reward_parts(self.name, self.loss_reward_parts, inputs)
        loss = shaped(self.policy_loss, self.policy_loss(inputs), inputs)
        factor = torch.ones_like(inputs.advantages)
        if self.correction is not None:
            factor = shaped(self.correction, self.correction(inputs), inputs).detach()
            loss = factor * loss
        kept = torch.ones_like(inputs.loss_mask)
        for gate in self.gates.values():
            own = shaped(gate, gate(inputs), inputs)
            loss, kept = torch.where(own, loss, loss.detach()), kept & own
        for regularizer in self.regularizers.values():
            loss = loss + shaped(regularizer, regularizer(inputs), inputs)
        terms = {"policy": loss}
        for name, auxiliary in self.auxiliaries.items():
            terms[name] = shaped(auxiliary, auxiliary(inputs), inputs)
        terms = {name: torch.where(inputs.loss_mask, term, 0.0) for name, term in terms.items()}
        metrics = self._metrics(inputs)
        flags = token_flags(metrics, loss_mask=inputs.loss_mask, kept=kept, factor=factor)
        return TokenLoss(terms=terms, metrics=metrics, flags=flags)

    def critic_loss(self, inputs: LossInputs) -> TokenLoss:
        """Compute the unreduced loss [N] of the critic under the term "value".

        Raises:
            ValueError: when the algorithm has no critic or a column is missing.
        """
        if self.value_loss is None:
            raise ValueError(f"algorithm {self.name!r} has no value_loss; choose one, e.g. ppo")
        check_columns(self.name, self.value_columns, inputs)
        check_reward_parts(self.name, self.loss_reward_parts, inputs)
        loss = shaped(self.value_loss, self.value_loss(inputs), inputs)
        term = torch.where(inputs.loss_mask, loss, 0.0)
        return TokenLoss(
            terms={"value": term},
            metrics=dict(self.value_loss.metrics(inputs)),
            flags=torch.zeros_like(inputs.loss_mask, dtype=torch.uint8),
        )

    def sequence_weights(self, metadata: BatchMetadata) -> Mapping[str, Tensor]:
        """Compute the multiplier [S] of every trainable token of a sequence, per term.

        The training loss is the SUM, over micro-batches and ranks too, of
        `loss_mask * term * weight[sequence_ids]`. Where a rollout has several rows, aggregations
        are given rollouts, with the trainable tokens of all their rows, and every row has the
        weight of its rollout.
        """
        metadata, rollouts = by_rollout(metadata)
        weights = {"policy": self.aggregation(metadata)}
        for name, auxiliary in self.auxiliaries.items():
            weights[name] = auxiliary.weights(metadata)
        if self.value_loss is not None:
            weights["value"] = self.aggregation(metadata)
        if rollouts is None:
            return weights
        return {name: weight[rollouts] for name, weight in weights.items()}

    @torch.no_grad()
    def _metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """Collect the metrics [N] of the ratio, and of every part; refuse a name given twice."""
        old_is_known = "old_logprobs" in union(self.trained_parts())
        metrics = ratio_metrics(inputs, old_is_known=old_is_known)
        measured_by = dict.fromkeys(metrics, "every algorithm")
        for part in self._token_parts():
            own = part.metrics(inputs)
            check_metric_names(own, type(part).__name__, measured_by)
            metrics.update(own)
        return {name: value.detach() for name, value in metrics.items()}

    def __repr__(self) -> str:
        """Render every part with its fields on one line, empty ones left out."""
        shown = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "name" and value not in (None, {}, False, Frozen()):
                text = value.values() if isinstance(value, dict) else [value]
                shown.append(f"{item.name}={' + '.join(repr(part) for part in text)}")
        return f"Algorithm {self.name}: {', '.join(shown)}"
