"""The golden tables: d(token loss) / d(log pi) per ratio, sign of the advantage and loss.

Numbers are printed to six significant digits, so the tolerance is half a unit of the sixth.
"""

import math

import pytest
import torch

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.conformance.batches import gradient
from algorithms.inputs import LossInputs
from algorithms.parts import PolicyLoss, Regularizer
from algorithms.policy_losses.clipped import ClippedRatio, Reinforce
from algorithms.policy_losses.cpgd import ClippedLogRatio
from algorithms.policy_losses.gppo import GradientPreservingClip
from algorithms.policy_losses.rpg import RegularizedPolicyGradient
from algorithms.policy_losses.sequence import SequenceRatio
from algorithms.policy_losses.truncated import SoftAdaptive, TruncatedImportance
from algorithms.regularizers import PolicyDrift

RATIOS = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.4, 4.0, 12.0)


def rpg(divergence: str, clip: str, style: str = "reinforce", **knobs: float) -> PolicyLoss:
    knobs = {"beta": 0.1} | knobs
    return RegularizedPolicyGradient(divergence=divergence, clip=clip, style=style, **knobs)


PPO = ClippedRatio()
DAPO = ClippedRatio(clip_high=0.28, dual_clip=10.0)
DUAL = ClippedRatio(dual_clip=3.0)
CPG = ClippedLogRatio()
DRIFT = PolicyDrift()
CISPO = TruncatedImportance()
CISPO_TRL = TruncatedImportance(ratio_min=0.0, ratio_max=5.0)
GPPO = GradientPreservingClip()
CE_GPPO = GradientPreservingClip(beta_low=0.75)

POSITIVE = [
    (PPO, None, (-0.5, -0.75, -0.9, -1, -1.1, 0, 0, 0, 0)),
    (DAPO, None, (-0.5, -0.75, -0.9, -1, -1.1, -1.25, 0, 0, 0)),
    (DUAL, None, (-0.5, -0.75, -0.9, -1, -1.1, 0, 0, 0, 0)),
    (CPG, DRIFT, (-1.005, -1.0025, -1.001, -1, -0.999, 0.0025, 0.004, 0.02, 0.02)),
    (CISPO, None, (-0.8, -0.8, -0.9, -1, -1.1, -1.25, -1.28, -1.28, -1.28)),
    (CISPO_TRL, None, (-0.5, -0.75, -0.9, -1, -1.1, -1.25, -1.4, -4, -5)),
    (GPPO, None, (-0.5, -0.75, -0.9, -1, -1.1, -1.2, -1.2, -1.2, -1.2)),
    (CE_GPPO, None, (-0.5, -0.75, -0.9, -1, -1.1, -1.2, -1.2, -1.2, -1.2)),
    (
        SoftAdaptive(),
        None,
        (
            -0.470007,
            -0.738402,
            -0.897754,
            -1,
            -1.09725,
            -1.23067,
            -1.34546,
            -0.722827,
            -0.000801655,
        ),
    ),
    (rpg("fkl", "none"), None, (-0.6, -0.85, -1, -1.1, -1.2, -1.35, -1.5, -4.1, -12.1)),
    (rpg("ufkl", "none"), None, (-0.55, -0.775, -0.91, -1, -1.09, -1.225, -1.36, -3.7, -10.9)),
    (
        rpg("rkl", "none"),
        None,
        (-0.484657, -0.696576, -0.819482, -0.9, -0.979516, -1.09711, -1.21289, -3.04548, -7.81811),
    ),
    (
        rpg("urkl", "none"),
        None,
        (-0.534657, -0.771576, -0.909482, -1, -1.08952, -1.22211, -1.35289, -3.44548, -9.01811),
    ),
    (rpg("ufkl", "gated"), None, (-0.52, -0.77, -0.91, -1, -1.09, -1.225, 0, 0, 0)),
    (
        rpg("urkl", "gated"),
        None,
        (-0.517851, -0.767851, -0.909482, -1, -1.08952, -1.22211, 0, 0, 0),
    ),
    (rpg("ufkl", "hard"), None, (-0.82, -0.82, -0.91, -1, -1.09, -1.225, -1.252, -1.252, -1.252)),
    (
        rpg("urkl", "hard"),
        None,
        (-0.817851, -0.817851, -0.909482, -1, -1.08952, -1.22211, -1.2484, -1.2484, -1.2484),
    ),
]
NEGATIVE = [
    (PPO, None, (0, 0, 0.9, 1, 1.1, 1.25, 1.4, 4, 12)),
    (DAPO, None, (0, 0, 0.9, 1, 1.1, 1.25, 1.4, 4, 0)),
    (DUAL, None, (0, 0, 0.9, 1, 1.1, 1.25, 1.4, 0, 0)),
    (CPG, DRIFT, (-0.005, -0.0025, 0.999, 1, 1.001, 1.0025, 1.004, 1.02, 1.02)),
    (CISPO, None, (0.8, 0.8, 0.9, 1, 1.1, 1.25, 1.28, 1.28, 1.28)),
    (CISPO_TRL, None, (0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.4, 4, 5)),
    (GPPO, None, (0.8, 0.8, 0.9, 1, 1.1, 1.25, 1.4, 4, 0)),
    (CE_GPPO, None, (0.6, 0.6, 0.9, 1, 1.1, 1.25, 1.4, 4, 0)),
    (
        SoftAdaptive(),
        None,
        (0.46707, 0.737227, 0.897524, 1, 1.09697, 1.22871, 1.34003, 0.630445, 0.000462521),
    ),
    (rpg("fkl", "none"), None, (0.4, 0.65, 0.8, 0.9, 1, 1.15, 1.3, 3.9, 11.9)),
    (rpg("ufkl", "none"), None, (0.45, 0.725, 0.89, 1, 1.11, 1.275, 1.44, 4.3, 13.1)),
    (
        rpg("rkl", "none"),
        None,
        (0.515343, 0.803424, 0.980518, 1.1, 1.22048, 1.40289, 1.58711, 4.95452, 16.1819),
    ),
    (
        rpg("urkl", "none"),
        None,
        (0.465343, 0.728424, 0.890518, 1, 1.11048, 1.27789, 1.44711, 4.55452, 14.9819),
    ),
    (rpg("ufkl", "gated"), None, (0, 0, 0.89, 1, 1.11, 1.275, 1.428, 4.028, 0)),
    (rpg("urkl", "gated"), None, (0, 0, 0.890518, 1, 1.11048, 1.27789, 1.4316, 4.0316, 0)),
    (rpg("ufkl", "hard"), None, (0.78, 0.78, 0.89, 1, 1.11, 1.275, 1.308, 1.308, 1.308)),
    (
        rpg("urkl", "hard"),
        None,
        (0.782149, 0.782149, 0.890518, 1, 1.11048, 1.27789, 1.3116, 1.3116, 1.3116),
    ),
]


def composed(loss: PolicyLoss, regularizer: Regularizer | None = None) -> Algorithm:
    return Algorithm(
        name="golden",
        advantage=GroupRelative(),
        policy_loss=loss,
        aggregation=TokenMean(),
        regularizers={} if regularizer is None else {"drift": regularizer},
    )


def inputs_at(ratios: torch.Tensor, advantages: torch.Tensor) -> LossInputs:
    """One token per sequence at the given ratios."""
    old = torch.linspace(-3.0, -0.5, ratios.numel(), dtype=torch.float64)
    return LossInputs(
        logprobs=(old + ratios.log()).requires_grad_(),
        old_logprobs=old,
        advantages=advantages,
        loss_mask=torch.ones(ratios.numel(), dtype=torch.bool),
        sequence_ids=torch.arange(ratios.numel()),
    )


@pytest.mark.parametrize(
    ("loss", "regularizer", "expected", "advantage"),
    [(*row, 1.0) for row in POSITIVE] + [(*row, -1.0) for row in NEGATIVE],
)
def test_gradient_table(
    loss: PolicyLoss, regularizer: Regularizer | None, expected: tuple[float, ...], advantage: float
) -> None:
    ratios = torch.tensor(RATIOS, dtype=torch.float64)
    inputs = inputs_at(ratios, torch.full_like(ratios, advantage))
    found = gradient(composed(loss, regularizer), inputs)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=5e-6, atol=5e-10
    )


# V1: ratios between and beyond every clip edge, never on one.
V1_RATIOS = (0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.27, 1.3, 3.1, 9.9, 10.1)


def rpg_gradient(divergence: str, clip: str, w: float, a: float) -> float:
    """Closed forms of RPG, written independently of the losses; e=.2/.28, c=10, beta=.3."""
    low, high, c, beta = 0.8, 1.28, 10.0, 0.3

    def slope(at: float) -> float:
        log = math.log(at)
        return {"fkl": -1.0, "ufkl": at - 1, "rkl": at * (log + 1), "urkl": at * log}[divergence]

    def passes(sign: float, *, strict: bool = False) -> bool:
        return w < high if sign > 0 else (low < w if strict else low <= w) and w < c

    truncated = min(max(w, low), high)
    cut = (a > 0 and w > high) or (a < 0 and (w < low or w > c))
    sign = a - beta * slope(w) / w
    forms = {
        "none": -w * a + beta * slope(w),
        "hard": -truncated * a + beta * slope(truncated),
        "gated": (-w * a + beta * slope(truncated)) * passes(a),
        "gated_paper": (-w * a + beta * slope(w)) * passes(sign, strict=True),
        "dual": -w * a * (not cut) + beta * slope(w),
        "dual_joint": -w * a * (not cut),
    }
    if clip == "dual_joint" and divergence in ("rkl", "urkl"):
        hat = a - beta * (math.log(w) + (divergence == "rkl"))
        bound = high if hat > 0 and w > high else low if hat < 0 and w < low else None
        bound = c if hat < 0 and w > c else bound
        return w * beta - w * hat if bound is None else beta * bound
    return forms[clip]


def expected_gradient(kind: str, w: float, a: float) -> float:
    """Closed forms of the others; e=.2/.28, c=10."""
    low, high, c = 0.8, 1.28, 10.0
    divergence, _, clip = kind.partition(":")
    if clip:
        return rpg_gradient(divergence, clip, w, a)
    above, below = a > 0 and w > high, a < 0 and w < low
    tau = 1.0 if a > 0 else 1.05
    s = 1 / (1 + math.exp(-tau * (w - 1)))
    factor = -0.9 * high if above else -0.5 * low if below else -w * (not (a < 0 and w > c))
    return {
        "reinforce": -a,
        "cispo": -min(max(w, low), high) * a,
        "cpg": -a * (not (above or below)),
        "gspo": -w * a * (not (above or below)),
        "dapo": -w * a * (not (above or below or (a < 0 and w > c))),
        "sapo": -4 * s * (1 - s) * w * a,
        "ce_gppo": factor * a,
    }[kind]


V1_LOSSES: dict[str, PolicyLoss] = {
    "dapo": DAPO,
    "cpg": ClippedLogRatio(clip_high=0.28),
    "cispo": CISPO,
    "reinforce": Reinforce(),
    "gspo": SequenceRatio(clip_low=0.2, clip_high=0.28),
    "sapo": SoftAdaptive(),
    "ce_gppo": GradientPreservingClip(clip_high=0.28, beta_low=0.5, beta_high=0.9),
} | {
    f"{divergence}:{clip}": rpg(divergence, clip, style, beta=0.3, kl_limit=100.0)
    for divergence in ("fkl", "ufkl", "rkl", "urkl")
    for style, clip in (
        ("reinforce", "none"),
        ("reinforce", "hard"),
        ("reinforce", "gated"),
        ("reinforce", "gated_paper"),
        ("differentiable", "dual"),
        ("differentiable", "dual_joint"),
    )
}
V1_LOSSES |= {
    f"{divergence}:none:differentiable": rpg(divergence, "none", "differentiable", beta=0.3)
    for divergence in ("fkl", "ufkl", "rkl", "urkl")
}


@pytest.mark.parametrize("kind", V1_LOSSES)
def test_v1_autograd_equals_closed_form(kind: str) -> None:
    advantages = (1.7, -0.6, 0.0)
    pairs = [(w, a) for w in V1_RATIOS for a in advantages]
    inputs = inputs_at(
        torch.tensor([w for w, _ in pairs], dtype=torch.float64),
        torch.tensor([a for _, a in pairs], dtype=torch.float64),
    )
    expected = [expected_gradient(kind.removesuffix(":differentiable"), w, a) for w, a in pairs]
    found = gradient(composed(V1_LOSSES[kind]), inputs)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("cap", [0.0, 2.0, 100.0])
def test_v1_masked_tokens_have_no_gradient_even_when_nan(cap: float) -> None:
    inputs = inputs_at(torch.tensor([0.5, 1.0], dtype=torch.float64), torch.ones(2).double())
    drift = PolicyDrift(coefficient=0.5, cap=cap) if cap else None
    broken = LossInputs(
        logprobs=torch.tensor([-1.0, math.nan], dtype=torch.float64, requires_grad=True),
        old_logprobs=torch.tensor([-1.0, -math.inf], dtype=torch.float64),
        advantages=torch.tensor([1.0, math.nan], dtype=torch.float64),
        loss_mask=torch.tensor([True, False]),
        sequence_ids=inputs.sequence_ids,
    )
    for loss in V1_LOSSES.values():
        found = gradient(composed(loss, drift), broken)
        assert found[1] == 0.0
        assert torch.isfinite(found[0])


def test_separate_kl_loss_is_bounded_in_value() -> None:
    # urkl at w = 12: 12 (ln 12 - 1) + 1 = 18.8 > 10, so only the dual-clipped reward remains.
    loss = rpg("urkl", "dual", "differentiable")
    inputs = inputs_at(torch.tensor([12.0]).double(), torch.tensor([1.0]).double())
    assert gradient(composed(loss), inputs).item() == 0.0
