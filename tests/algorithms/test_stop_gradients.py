"""Only the current policy is trained (V22), and autograd agrees with finite differences (V23)."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from algorithms.algorithm import Algorithm
from algorithms.conformance.batches import metadata_of, random_inputs, total_loss
from algorithms.inputs import LossInputs

CONF = Path(__file__).resolve().parents[2] / "conf" / "algorithm"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def load(name: str) -> Algorithm:
    """Compose the defaults list by hand: groups under their own key or as the header says."""
    body = OmegaConf.load(CONF / f"{name}.yaml")
    for default in body.pop("defaults"):
        if default == "_self_":
            continue
        ((group, option),) = default.items()
        path = CONF / group / f"{option}.yaml"
        part = OmegaConf.load(path)
        header = path.read_text().splitlines()[0]
        if header == "# @package algorithm.gates":
            body = OmegaConf.merge(body, {"gates": part})
        elif header == "# @package algorithm":
            body = OmegaConf.merge(body, part)
        else:
            body = OmegaConf.merge(body, {group: part})
    root = {"rollout": {"sampling": {"max_new_tokens": 16}}, "algorithm": body}
    algorithm = instantiate(OmegaConf.create(root).algorithm, _convert_="all")
    assert isinstance(algorithm, Algorithm)
    return algorithm


@pytest.mark.parametrize("name", NAMES)
def test_v22_only_logprobs_receive_a_gradient(name: str) -> None:
    algorithm = load(name)
    columns: dict[str, Tensor] = {}
    inputs = random_inputs()
    for item in fields(LossInputs):
        column = getattr(inputs, item.name)
        if isinstance(column, Tensor):
            floats = column.is_floating_point()
            columns[item.name] = column.detach().clone().requires_grad_() if floats else column
    inputs = LossInputs(**columns)
    weights = dict(algorithm.sequence_weights(metadata_of(inputs, 8)))
    weights.pop("value", None)
    total_loss(algorithm, inputs, weights).backward()
    for column_name, column in columns.items():
        trained = column.grad is not None and bool((column.grad != 0).any())
        assert trained == (column_name == "logprobs"), column_name


def two_layers(parameters: Tensor, hidden: Tensor, chosen: Tensor) -> Tensor:
    """Log-probs [N] of a small network: 4 features, 5 hidden units, 6 tokens."""
    first, second = parameters[:20].view(4, 5), parameters[20:50].view(5, 6)
    logits = torch.tanh(hidden @ first) @ second
    return logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)


@pytest.mark.parametrize("name", NAMES)
def test_v23_finite_differences_through_a_network(name: str) -> None:
    algorithm = load(name)
    generator = torch.Generator().manual_seed(3)
    base = random_inputs([4, 6, 3])
    num = base.loss_mask.numel()
    hidden = torch.randn(num, 4, generator=generator, dtype=torch.float64)
    chosen = torch.randint(0, 6, (num,), generator=generator)
    start = torch.randn(50, generator=generator, dtype=torch.float64)
    old = two_layers(start, hidden, chosen).detach()
    # Off-policy by a little over the clip for some tokens, on none of its edges.
    now = start + 0.15 * torch.randn(50, generator=generator, dtype=torch.float64)
    weights = dict(algorithm.sequence_weights(metadata_of(base, 3)))
    weights.pop("value", None)
    reference = replace(base, old_logprobs=old, ref_logprobs=old - 0.1, rollout_logprobs=old + 0.05)

    def loss_of(parameters: Tensor) -> Tensor:
        logprobs = two_layers(parameters, hidden, chosen)
        return total_loss(algorithm, replace(reference, logprobs=logprobs), weights)

    leaf = two_layers(now, hidden, chosen).detach().requires_grad_()
    loss = total_loss(algorithm, replace(reference, logprobs=leaf), weights)
    (slopes,) = torch.autograd.grad(loss, leaf)

    def linearised(parameters: Tensor) -> Tensor:
        return (slopes * two_layers(parameters, hidden, chosen)).sum()

    assert slopes.abs().sum() > 0
    assert_gradient(loss_of, loss_of if name not in STOPPED else linearised, now)


# A loss with a stop-gradient is not the integral of its gradient; its slopes per token are held.
STOPPED = {"ce_gppo", "cispo", "cpgd", "erc_dapo", "erc_gppo", "gppo", "rpg"}


def assert_gradient(
    loss_of: Callable[[Tensor], Tensor], value_of: Callable[[Tensor], Tensor], at: Tensor
) -> None:
    parameters = at.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(parameters), parameters)
    step = 1e-6
    for index in (0, 7, 23, 41):
        move = torch.zeros_like(at)
        move[index] = step
        numeric = (value_of(at + move) - value_of(at - move)).item() / (2 * step)
        assert numeric == pytest.approx(grad[index].item(), rel=1e-5, abs=1e-8)
