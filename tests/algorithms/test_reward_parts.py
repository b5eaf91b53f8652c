"""Parts of the reward, by name, in a loss: values by hand, and refusals that name the part."""

from dataclasses import dataclass

import pytest
import torch

from algorithms.advantages.decoupled import DecoupledGroupRelative
from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.conformance import run
from algorithms.conformance.checks import CheckFailed, columns
from algorithms.conformance.rehearsal import rehearse
from algorithms.filters import DynamicSampling
from algorithms.inputs import LossInputs
from algorithms.parts import PolicyLoss
from algorithms.policy_losses.clipped import ClippedRatio


@dataclass(frozen=True, kw_only=True)
class WellFormed(PolicyLoss):
    """-(1 + format) A log pi: responses of the right format count twice."""

    reward_parts = ("format",)
    on_policy_reinforce = False

    def __call__(self, inputs):
        right = inputs.reward_parts["format"][inputs.sequence_ids]
        return -(1.0 + right) * inputs.advantages * inputs.logprobs


def algorithm(loss=None, **parts):
    return Algorithm(
        name="parts",
        advantage=parts.pop("advantage", GroupRelative()),
        policy_loss=loss or WellFormed(),
        aggregation=TokenMean(),
        **parts,
    )


def inputs(parts):
    logprobs = torch.tensor([0.0, -1.0, -0.5, 0.0, -2.0], requires_grad=True)
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        advantages=torch.tensor([0.0, 1.0, 1.0, 0.0, -1.0]),
        loss_mask=torch.tensor([False, True, True, False, True]),
        sequence_ids=torch.tensor([0, 0, 0, 1, 1]),
        reward_parts=parts,
    )


def test_a_loss_reads_the_part_that_it_names_of_every_sequence():
    given = inputs({"format": torch.tensor([1.0, 0.0])})
    loss = algorithm().token_loss(given).terms["policy"]
    assert loss.tolist() == [0.0, 2.0, 1.0, 0.0, -2.0]
    loss.sum().backward()
    assert given.logprobs.grad.tolist() == [0.0, -2.0, -2.0, 0.0, 1.0]


def test_a_batch_without_the_part_is_refused_by_name():
    with pytest.raises(ValueError, match=r"reads the reward's parts \['format'\] and the batch"):
        algorithm().token_loss(inputs({"exact": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"reads the reward's parts \['format'\] and the batch"):
        algorithm().token_loss(inputs(None))


def test_a_reward_without_the_part_is_refused_with_the_reader_and_what_there_is():
    rewards, groups = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
    both = [{"format": 1.0, "exact": 1.0}, {"format": 0.0, "exact": 0.0}]
    assert algorithm().keep_groups(rewards, groups, both).tolist() == [True]
    one_lacks = [both[0], {"exact": 0.0}]
    refusal = "policy_loss reads 'format', which is no part of every reward; there is exact, format"
    with pytest.raises(ValueError, match=refusal):
        algorithm().keep_groups(rewards, groups, one_lacks)


def test_the_readers_of_parts_are_named_by_their_keys():
    every = algorithm(
        advantage=DecoupledGroupRelative(weights={"exact": 1.0, "format": 0.5}),
        filters={"dynamic": DynamicSampling(part="exact")},
    )
    assert every.part_readers == {
        "advantage": ("exact", "format"),
        "policy_loss": ("format",),
        "filters.dynamic": ("exact",),
    }
    assert every.loss_reward_parts == ("format",)
    assert algorithm(ClippedRatio()).part_readers == {}


def test_a_text_instead_of_names_is_refused():
    class Careless(WellFormed):
        reward_parts = "format"

    with pytest.raises(ValueError, match=r"declares reward_parts='format', one text; write \('fo"):
        algorithm(Careless())


def test_the_kit_gives_the_parts_and_a_loss_that_reads_them_conforms():
    report = run(algorithm(advantage=DecoupledGroupRelative(weights={"exact": 1.0})))
    assert report.passed, report.table()
    assert "reads reward part exact, reward part format" in report.table()


def test_the_kit_finds_a_part_that_is_read_undeclared_and_one_that_is_declared_unread():
    class Undeclared(WellFormed):
        reward_parts = ()

    class Unread(WellFormed):
        reward_parts = ("format", "style")

    with pytest.raises(CheckFailed, match="Undeclared reads reward part format, undeclared"):
        columns(algorithm(Undeclared()))
    with pytest.raises(CheckFailed, match=r"Unread declares \['reward part style'\], unread"):
        columns(algorithm(Unread()))


def test_the_plan_rehearses_an_algorithm_that_reads_parts():
    weights = {"exact": 1.0, "format": 0.5}
    made = algorithm(advantage=DecoupledGroupRelative(weights=weights))
    assert "credit/part/exact/informative_groups_frac" in rehearse(made)
