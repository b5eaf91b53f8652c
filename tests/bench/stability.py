"""Stability under many optimizer steps per rollout: CPGD's and ERC's claims on a task of seconds.

    python tests/bench/stability.py [--seeds 5] [--out FOLDER]

What it is: a small autoregressive network that learns to reverse 6 digits, with 16 optimizer steps
per rollout at a large learning rate, so that pi leaves pi_old within a rollout. It prints one row
per algorithm and draws the curves. What it is not: the stack, or evidence about language models.
Only the algorithms differ; data, network, seeds and optimizer are the same.

Legend: S = 128 responses, T = 6 tokens, N = S T tokens, V = 6 digits.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from torch import Tensor, nn

from algorithms.algorithm import Algorithm
from algorithms.inputs import BatchMetadata, CreditInputs, LossInputs

DIGITS, LENGTH, PROMPTS, RESPONSES = 6, 6, 16, 8
ROLLOUTS, UPDATES, LEARNING_RATE = 100, 16, 3e-3
CONF = Path(__file__).resolve().parents[2] / "conf"

NO_CLIP = "algorithm.policy_loss.clip_low=1.0", "algorithm.policy_loss.clip_high=inf"
NO_KL = "~algorithm.regularizers.kl"
NO_DRIFT = "~algorithm.regularizers.drift"
NO_FILTERS = "algorithm.filters={}", "algorithm.reward_shaping={}"
RAW = "algorithm/advantage=raw"
VARIANTS: dict[str, tuple[str, ...]] = {
    "PG, raw rewards": ("algorithm=cpgd", *NO_CLIP, NO_DRIFT, RAW),
    "PG": ("algorithm=cpgd", *NO_CLIP, NO_DRIFT),
    "PGD (drift, no clip)": ("algorithm=cpgd", *NO_CLIP),
    "CPG (clip, no drift)": ("algorithm=cpgd", NO_DRIFT),
    "CPGD": ("algorithm=cpgd",),
    "IS-PG (ratio, no clip)": ("algorithm=grpo", *NO_CLIP, NO_KL),
    "GRPO": ("algorithm=grpo", NO_KL),
    "GRPO dual clip 3": ("algorithm=grpo", NO_KL, "algorithm.policy_loss.dual_clip=3"),
    "DAPO": ("algorithm=dapo", *NO_FILTERS),
    "ERC-DAPO": ("algorithm=erc_dapo", *NO_FILTERS),
    "ERC-DAPO, no NLL": ("algorithm=erc_dapo", *NO_FILTERS, "~algorithm.auxiliaries.correct"),
    "RPG": ("algorithm=rpg", *NO_FILTERS),
}


class Reverser(nn.Module):
    """Log-probs of the next digit from the prompt, the position and the previous digit."""

    def __init__(self) -> None:
        super().__init__()
        width = LENGTH * DIGITS * LENGTH + DIGITS + 1
        self.layers = nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, DIGITS))

    def forward(self, prompts: Tensor, previous: Tensor, position: Tensor) -> Tensor:
        """`prompts` [B, T], `previous` and `position` [B] -> [B, V]."""
        known = nn.functional.one_hot(prompts, DIGITS).flatten(1)  # [B, T V]
        place = nn.functional.one_hot(position, LENGTH)  # [B, T]
        before = nn.functional.one_hot(previous, DIGITS + 1)
        looked_up = (known[:, :, None] * place[:, None]).flatten(1)  # [B, T V T]
        features: Tensor = self.layers(torch.cat([looked_up, before], -1).float())
        return features.log_softmax(-1)


@dataclass
class Curves:
    """One number per optimizer step (ratios, KL, masks) or per rollout (reward, entropy)."""

    reward: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    ratio_max: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    masked: list[float] = field(default_factory=list)


def sample(policy: Reverser, prompts: Tensor) -> Tensor:
    """Responses [S, T] to `prompts` [S, T]."""
    tokens, previous = [], torch.full((len(prompts),), DIGITS)
    for position in range(LENGTH):
        log_p = policy(prompts, previous, torch.full_like(previous, position))
        previous = torch.multinomial(log_p.exp(), 1).squeeze(1)
        tokens.append(previous)
    return torch.stack(tokens, 1)


def score(policy: Reverser, prompts: Tensor, responses: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of `responses` [S, T], both [N]."""
    start = torch.full((len(prompts), 1), DIGITS)
    previous = torch.cat([start, responses[:, :-1]], 1).flatten()
    position = torch.arange(LENGTH).repeat(len(prompts))
    log_p = policy(prompts.repeat_interleave(LENGTH, 0), previous, position)  # [N, V]
    chosen = log_p.gather(-1, responses.flatten()[:, None]).squeeze(-1)
    return chosen, -(log_p.exp() * log_p).sum(-1)


def train(algorithm: Algorithm, seed: int) -> Curves:
    """One run; every algorithm sees the same prompts and the same initial network."""
    torch.manual_seed(seed)
    policy, curves = Reverser(), Curves()
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    groups = torch.arange(PROMPTS).repeat_interleave(RESPONSES)  # [S]
    ids = torch.arange(len(groups)).repeat_interleave(LENGTH)  # [N]
    mask = torch.ones_like(ids, dtype=torch.bool)
    for _ in range(ROLLOUTS):
        prompts = torch.randint(0, DIGITS, (PROMPTS, LENGTH))[groups]
        with torch.no_grad():
            responses = sample(policy, prompts)
            old, old_entropy = score(policy, prompts, responses)
        rewards = (responses == prompts.flip(1)).float().mean(1)  # [S]
        curves.reward.append(rewards.mean().item())
        curves.entropy.append(old_entropy.mean().item())
        credit = algorithm.credit(
            CreditInputs(shaped_rewards=rewards, group_ids=groups, sequence_ids=ids, loss_mask=mask)
        )
        lengths = torch.full_like(groups, LENGTH)
        weights = algorithm.sequence_weights(
            BatchMetadata(lengths=lengths, group_ids=groups, rewards=rewards)
        )
        for _ in range(UPDATES):
            logprobs, entropy = score(policy, prompts, responses)
            loss = algorithm.token_loss(
                LossInputs(
                    logprobs=logprobs,
                    old_logprobs=old,
                    advantages=credit.advantages,
                    loss_mask=mask,
                    sequence_ids=ids,
                    entropy=entropy,
                    old_entropy=old_entropy,
                )
            )
            optimizer.zero_grad()
            sum((term * weights[name][ids]).sum() for name, term in loss.terms.items()).backward()
            optimizer.step()
            curves.ratio_max.append(loss.metrics["policy/ratio_max"].max().item())
            curves.kl.append(loss.metrics["policy/kl_old_k3"].mean().item())
            if "erc/mask_frac" in loss.metrics:
                curves.masked.append(loss.metrics["erc/mask_frac"].mean().item())
    return curves


def build(overrides: tuple[str, ...]) -> Algorithm:
    """An algorithm from the shipped configuration."""
    config = compose("algorithm_only", overrides=list(overrides))
    algorithm = instantiate(config.algorithm, _convert_="all")
    assert isinstance(algorithm, Algorithm)
    return algorithm


def row(name: str, runs: list[Curves]) -> str:
    """Medians over seeds as one line of a Markdown table."""

    def median(values: list[float]) -> float:
        return float(torch.tensor(values).median())

    final = median([sum(run.reward[-10:]) / 10 for run in runs])
    reached = median([len([r for r in run.reward if r < 0.9]) for run in runs])
    ratio = median([torch.tensor(run.ratio_max).quantile(0.99).item() for run in runs])
    far = median([sum(value > 10 for value in run.ratio_max) / len(run.ratio_max) for run in runs])
    kl = median([sum(run.kl) / len(run.kl) for run in runs])
    wobble = median([torch.tensor(run.entropy).diff().abs().mean().item() for run in runs])
    entropy = median([run.entropy[-1] for run in runs])
    masked = median([sum(run.masked) / len(run.masked) for run in runs]) if runs[0].masked else None
    return (
        f"| {name} | {final:.2f} | {reached:.0f} | {ratio:.3g} | {far:.1%} | {kl:.3g} "
        f"| {entropy:.2f} | {wobble:.3f} | {'-' if masked is None else f'{masked:.0%}'} |"
    )


HEADER = (
    "| variant | reward, last 10 | rollouts below 0.9 | ratio max, 99% | updates with ratio > 10 "
    "| KL from old | final entropy | entropy step | masked |\n|---|---|---|---|---|---|---|---|---|"
)


def draw(results: dict[str, list[Curves]], path: Path) -> None:
    """Curves of the first seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 4.5))
    colors = plt.get_cmap("tab20").colors
    for (name, runs), color in zip(results.items(), colors, strict=False):
        curves = runs[0]
        axes[0].plot(curves.reward, label=name, linewidth=1, color=color)
        axes[1].plot(curves.entropy, linewidth=1, color=color)
        per_rollout = torch.tensor(curves.ratio_max).view(-1, UPDATES).max(1).values
        axes[2].plot(per_rollout, linewidth=1, color=color)
    for axis, title in zip(axes, ("reward", "entropy", "largest ratio in a rollout"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("rollout")
    axes[2].set_yscale("log")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Run every variant on every seed; print the table; write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="folder of stability.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ConfigStore.instance().store(
        name="algorithm_only",
        node={
            "defaults": [{"algorithm": "grpo"}, "_self_"],
            "rollout": {"sampling": {"max_new_tokens": 16}},
        },
    )
    results = {}
    print(HEADER)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for name, overrides in VARIANTS.items():
            algorithm = build(overrides)
            results[name] = [train(algorithm, seed) for seed in range(options.seeds)]
            print(row(name, results[name]), flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(results, options.out / "stability.png")


if __name__ == "__main__":
    main()
