"""A task small enough to enumerate, on which every algorithm must learn.

Tabular policy over 3 tokens of 4 symbols, 8 prompts with a target each, reward = the fraction of
tokens that match. Runs in the process of `ballast check-algorithm`, or of a test. Not a language
model: the expected reward is exact.
Shapes: P prompts, K responses per prompt, S = P K sequences, T tokens, N = S T, V symbols.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.algorithm import Algorithm
from algorithms.inputs import BatchMetadata, CreditInputs, LossInputs, RewardInputs

PROMPTS, RESPONSES, LENGTH, SYMBOLS = 8, 8, 3, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Expected reward before and after training, exact."""

    before: float
    after: float


def expected_reward(logits: Tensor, targets: Tensor) -> float:
    """Return the mean probability of the target token under `logits` [P, T, V]."""
    chosen = logits.softmax(-1).gather(-1, targets[..., None])
    return float(chosen.mean().item())


def train(
    algorithm: Algorithm, *, rollouts: int = 40, updates: int = 2, lr: float = 0.1, seed: int = 0
) -> Curve:
    """Train a tabular policy with the framework's own sequence of calls."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, SYMBOLS, (PROMPTS, LENGTH), generator=generator)
    logits = torch.zeros(PROMPTS, LENGTH, SYMBOLS, requires_grad=True)
    critic = torch.zeros(PROMPTS, LENGTH, requires_grad=True)
    reference = logits.detach().clone()
    optimizer = torch.optim.Adam([logits, critic], lr=lr)
    before = expected_reward(logits.detach(), targets)
    for _ in range(rollouts):
        rollout = _Rollout(algorithm, logits, critic, reference, targets, generator)
        for _ in range(updates):
            optimizer.zero_grad()
            torch.autograd.backward(rollout.loss(logits, critic))
            optimizer.step()
    return Curve(before=before, after=expected_reward(logits.detach(), targets))


class _Rollout:
    """Sampled batch with its credit; `loss` is that of the current policy on the batch."""

    def __init__(
        self,
        algorithm: Algorithm,
        logits: Tensor,
        critic: Tensor,
        reference: Tensor,
        targets: Tensor,
        generator: torch.Generator,
    ) -> None:
        self.algorithm = algorithm
        probabilities = logits.detach().softmax(-1).reshape(-1, SYMBOLS)  # [P T, V]
        drawn = torch.multinomial(probabilities, RESPONSES, replacement=True, generator=generator)
        drawn = drawn.view(PROMPTS, LENGTH, RESPONSES).transpose(1, 2)  # [P, K, T]
        self.rewards = (drawn == targets[:, None]).float().mean(-1).flatten()  # [S]
        self.tokens = drawn.reshape(-1)  # [N]
        num = PROMPTS * RESPONSES
        self.sequence_ids = torch.arange(num).repeat_interleave(LENGTH)
        self.group_ids = torch.arange(PROMPTS).repeat_interleave(RESPONSES)
        self.old, self.old_entropy = (item.detach() for item in self._score(logits))
        self.reference = self._score(reference)[0]
        self.old_values = self._values(critic).detach()
        scored = RewardInputs(
            rewards=self.rewards,
            response_lengths=torch.full((num,), LENGTH),
            truncated=torch.zeros(num, dtype=torch.bool),
        )
        names = algorithm.reward_parts
        self.parts = dict.fromkeys(names, self.rewards)  # each part is the whole reward
        parts = [dict.fromkeys(names, reward) for reward in self.rewards.tolist()]
        kept = algorithm.keep_groups(self.rewards, self.group_ids, parts)[self.group_ids]
        self.mask = (algorithm.trains(scored) & kept).repeat_interleave(LENGTH)
        self.credit = algorithm.credit(
            CreditInputs(
                shaped_rewards=algorithm.shape_rewards(scored),
                group_ids=self.group_ids,
                sequence_ids=self.sequence_ids,
                loss_mask=self.mask,
                reward_parts=self.parts,
                old_logprobs=self.old,
                ref_logprobs=self.reference,
                rollout_logprobs=self.old,
                values=self.old_values,
            )
        )

    def _score(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log-probs of the sampled tokens and entropies, both [N]."""
        table = logits.log_softmax(-1)[self.group_ids].reshape(-1, SYMBOLS)  # [N, V]
        chosen = table.gather(-1, self.tokens[:, None]).squeeze(-1)
        return chosen, -(table.exp() * table).sum(-1)

    def _values(self, critic: Tensor) -> Tensor:
        """Return the critic's outputs [N]."""
        return critic[self.group_ids].reshape(-1)

    def loss(self, logits: Tensor, critic: Tensor) -> Tensor:
        """Compute the policy loss plus the critic's, reduced as the framework reduces."""
        logprobs, entropy = self._score(logits)
        inputs = LossInputs(
            logprobs=logprobs,
            old_logprobs=self.old,
            advantages=self.credit.advantages,
            loss_mask=self.mask,
            sequence_ids=self.sequence_ids,
            rollout_logprobs=self.old,
            ref_logprobs=self.reference,
            epoch_logprobs=self.old,
            entropy=entropy,
            old_entropy=self.old_entropy,
            values=self._values(critic),
            old_values=self.old_values,
            returns=self.credit.returns,
            rewards=self.rewards,
            staleness=torch.zeros_like(logprobs.detach()),
            truncated=torch.zeros_like(self.rewards, dtype=torch.bool),
            reward_parts=self.parts,
        )
        lengths = self.mask.view(-1, LENGTH).sum(-1)
        metadata = BatchMetadata(lengths=lengths, group_ids=self.group_ids, rewards=self.rewards)
        terms = dict(self.algorithm.token_loss(inputs).terms)
        if self.algorithm.needs_critic:
            terms |= self.algorithm.critic_loss(inputs).terms
        weights = self.algorithm.sequence_weights(metadata)
        total = 0.0 * (logits.sum() + critic.sum())
        for name, term in terms.items():
            total = total + (term * weights[name][self.sequence_ids] * self.mask).sum()
        return total
