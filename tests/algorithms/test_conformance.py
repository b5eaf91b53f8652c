"""The conformance kit passes every shipped algorithm and fails broken ones for the right reason."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from torch import Tensor

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.conformance import Report, Row, check, run
from algorithms.inputs import LossInputs
from algorithms.parts import Gate, PolicyLoss
from algorithms.ratios import policy_ratio

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
MIXES = [
    ["algorithm=cpgd", "algorithm/advantage=rloo", "algorithm/correction=icepop"],
    ["algorithm=grpo", "algorithm/gate=erc", "algorithm/aggregation=group_token_mean"],
    ["algorithm=gspo", "algorithm/gate=erc", "algorithm/correction=tis_veto"],
    [
        "algorithm=reinforce",
        "algorithm/gate=dppo",
        "algorithm.bypass=true",
        "algorithm.policy_loss.importance_cap=inf",
    ],
    ["algorithm=ppo", "algorithm/correction=opsm", "algorithm.advantage.kl_coefficient=0.01"],
    ["algorithm=dapo", "algorithm.bypass=true"],
    ["algorithm=cpgd", "algorithm.policy_loss.schedule=0.5"],
    ["algorithm=rpg", "algorithm.policy_loss.divergence=urkl"],
    ["algorithm=rpg", "algorithm.policy_loss.divergence=fkl", "algorithm.policy_loss.clip=hard"],
    ["algorithm=rpg_differentiable", "algorithm.policy_loss.clip=dual_joint"],
    ["algorithm=rpg_differentiable", "algorithm.policy_loss.divergence=rkl"],
    ["algorithm=rpg", "algorithm.policy_loss.reference=ref"],
]


def build(*overrides: str) -> Algorithm:
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(
        name="algorithm_only",
        node={
            "defaults": [{"algorithm": "grpo"}, "_self_"],
            "rollout": {"sampling": {"max_new_tokens": 16}},
        },
    )
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("algorithm_only", overrides=list(overrides))
    algorithm = instantiate(config.algorithm, _convert_="all")
    assert isinstance(algorithm, Algorithm)
    return algorithm


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_algorithm_conforms_and_learns(name: str) -> None:
    report = run(build(f"algorithm={name}"))
    assert report.passed, report.table()
    assert report.table().endswith("11 checks, 0 failed")


@pytest.mark.parametrize("overrides", MIXES, ids=" ".join)
def test_mixes_conform_and_learn(overrides: list[str]) -> None:
    report = run(build(*overrides))
    assert report.passed, report.table()


def failed(loss: PolicyLoss, gates: dict[str, Gate] | None = None) -> set[str]:
    algorithm = Algorithm(
        name="broken",
        advantage=GroupRelative(),
        policy_loss=loss,
        aggregation=TokenMean(),
        gates=gates or {},
    )
    return {row.name for row in check(algorithm) if not row.passed}


@dataclass(frozen=True, kw_only=True)
class Undeclared(PolicyLoss):
    def __call__(self, inputs: LossInputs) -> Tensor:
        return -policy_ratio(inputs) * inputs.advantages


@dataclass(frozen=True, kw_only=True)
class Declared(Undeclared):
    columns = frozenset({"old_logprobs"})


class Greedy(Declared):
    columns = frozenset({"old_logprobs", "ref_logprobs"})


class Unclamped(Declared):
    def __call__(self, inputs: LossInputs) -> Tensor:
        # exp of a product overflows to inf, and inf / inf is nan
        ratio = (20.0 * (inputs.logprobs - inputs.old_logprobs)).exp()
        return -inputs.advantages * ratio / (1.0 + ratio) * 0.2


class Centered(Declared):
    """Depends on what else is in the micro-batch."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        return -policy_ratio(inputs) * (inputs.advantages - inputs.advantages.mean())


class Upside(Declared):
    def __call__(self, inputs: LossInputs) -> Tensor:
        return policy_ratio(inputs) * inputs.advantages


class Detached(Declared):
    def __call__(self, inputs: LossInputs) -> Tensor:
        return -policy_ratio(inputs).detach() * inputs.advantages * inputs.logprobs


class Reduced(Declared):
    def __call__(self, inputs: LossInputs) -> Tensor:
        return super().__call__(inputs).mean()


@dataclass(frozen=True, kw_only=True)
class Closed(Gate):
    def __call__(self, inputs: LossInputs) -> Tensor:
        return torch.zeros_like(inputs.loss_mask)


def test_the_reference_loss_of_this_file_conforms() -> None:
    assert failed(Declared()) == set()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Undeclared(), "reads what it declares"),
        (Greedy(), "reads what it declares"),
        (Unclamped(), "finite gradients on edge cases"),
        (Centered(), "same gradient for any packing"),
        (Upside(), "REINFORCE on-policy"),
        (Upside(), "learns a small task"),
        (Detached(), "autograd equals differences"),
        (Reduced(), "finite gradients on edge cases"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PolicyLoss) else value,
)
def test_broken_losses_fail_the_check_made_for_them(loss: PolicyLoss, expected: str) -> None:
    assert expected in failed(loss)


def test_a_gate_that_stops_everything_does_not_learn() -> None:
    assert failed(Declared(), {"closed": Closed()}) == {"learns a small task"}


def test_a_declared_stop_gradient_is_not_differenced() -> None:
    class Honest(Detached):
        exact_gradient = False

    assert "autograd equals differences" not in failed(Honest())


def test_report_table() -> None:
    rows = (Row(name="a", passed=True, detail="x"), Row(name="bcd", passed=False, detail="y"))
    report = Report(algorithm="Algorithm z", rows=rows)
    assert report.table() == "Algorithm z\npass  a    x\nFAIL  bcd  y\n2 checks, 1 failed"
    assert not report.passed
    assert replace(report, rows=rows[:1]).passed
