"""Proof, after every publication, that engines sample from the learner's weights.

Data flows from what the sender and every engine report, and both sides' log-probs of a fixed probe,
to metrics, or to an `AttestationError` that names the tensors. Runs in the driver. Pure: it fetches
nothing and retries nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from workers.weight_sync.endpoint import PublishReport
from workers.weight_sync.fingerprint import Block, Fingerprint, join_blocks

PLAUSIBLE_RATIO = 20.0  # of a gap to the model's own rounding; measured: 1, a tiny model on a CPU
PLAUSIBLE_MEAN = 0.2  # gap of log-probs beyond any rounding
# By which the ratio may grow after the start, over all tokens and of a single one. By chance a
# model rounds more or less: over 190 right publications of `experiment=tiny` in 16 bits, whose
# probe of 79 tokens is among the smallest, the ratio grew to 2.6 and 6.8.
MEAN_MARGIN, MAX_MARGIN = 6.0, 24.0
SMALLEST = 1e-5  # rounding below it is that of float32


class AttestationError(RuntimeError):
    """Publication that cannot be trusted.

    Attributes:
        reasons: reason by tensor name.
        faults: what is wrong besides, one sentence each.
    """

    def __init__(self, version: int, reasons: Mapping[str, str], faults: Sequence[str]) -> None:
        self.reasons = dict(reasons)
        self.faults = list(faults)
        lines = [*faults, *(f"{name}: {reason}" for name, reason in reasons.items())]
        super().__init__(
            f"publication of weight version {version} failed its attestation; training stops "
            f"because the engines would sample from other weights than the learner's:\n  "
            + "\n  ".join(lines)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeGap:
    """Distance between two scorings of the same tokens: mean and max over the tokens.

    The distance of two log-probs is |a - b| / max(1, |a|): absolute for likely tokens, relative for
    unlikely ones, whose rounding error grows with their size (float32 holds -20 to 1e-6 only).
    """

    mean: float
    max: float

    @classmethod
    def between(cls, learner: Sequence[float], engine: Sequence[float]) -> ProbeGap:
        """Compare log-probs token by token.

        Raises:
            ValueError: sequences of different lengths, or empty ones.
        """
        if len(learner) != len(engine) or not learner:
            raise ValueError(
                f"probe log-probs must be of equal, positive length, got {len(learner)} from the "
                f"learner and {len(engine)} from the engine"
            )
        gaps = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(learner, engine, strict=True)]
        # max() passes over NaN: one unequal to itself must fail every comparison.
        worst = max(gaps) if all(gap == gap for gap in gaps) else float("nan")
        return cls(mean=sum(gaps) / len(gaps), max=worst)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """Largest gap that counts as agreement.

    `Tolerance.rounding(1e-4)` in float32; `Noise` gives one where arithmetic differs.
    """

    mean: float
    max: float

    @classmethod
    def absolute(cls, value: float) -> Tolerance:
        """Use the same bound on the mean and on the maximum."""
        return cls(mean=value, max=value)

    @classmethod
    def rounding(cls, value: float) -> Tolerance:
        """Allow rounding only: `value` for any one token, a tenth of it for their mean.

        For engines and learners that round alike. A policy that is nearly sure of its tokens has
        large logits; single tokens then differ by 1.8e-5 at a mean of 5e-7 (seen after 143 steps of
        `experiment=tiny`).
        """
        return cls(mean=value / 10, max=value)

    def allows(self, gap: ProbeGap) -> bool:
        """Return True where the gap counts as agreement; never for NaN."""
        return gap.mean <= self.mean and gap.max <= self.max


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Ratio of the gap between learner and engines to the model's own rounding, measured at start.

    The model's rounding is the gap between the learner's log-probs and those of the same weights
    with other roundings (`PackedModel.other_rounding`). It depends on the weights of the moment: a
    policy that is sure of its tokens rounds less. So the rounding is measured in every publication,
    and only the ratio is that of the start, when both sides held the same weights for certain.

    Attributes:
        mean: ratio of the means over the tokens, at least 1.
        max: ratio of the largest gaps, at least 1.
    """

    mean: float
    max: float

    @classmethod
    def measured(cls, gap: ProbeGap, rounding: ProbeGap) -> Noise:
        """Take the ratio of a gap between learner and engines to the model's own rounding.

        Raises:
            ValueError: a gap that no arithmetic explains.
        """
        noise = cls(
            mean=max(1.0, gap.mean / max(rounding.mean, SMALLEST)),
            max=max(1.0, gap.max / max(rounding.max, SMALLEST)),
        )
        plausible = noise.mean <= PLAUSIBLE_RATIO and gap.mean <= PLAUSIBLE_MEAN
        if not (plausible and gap.max == gap.max):
            raise ValueError(
                f"with equal weights learner and engine differ by {gap.mean:.3g} on average, and "
                f"two ways to round in the learner by {rounding.mean:.3g}; more than "
                f"{PLAUSIBLE_RATIO:g} times that, or {PLAUSIBLE_MEAN:g}, is no rounding"
            )
        return noise

    def tolerance(self, rounding: ProbeGap) -> Tolerance:
        """Return the tolerance where the model rounds as measured now."""
        return Tolerance(
            mean=MEAN_MARGIN * self.mean * max(rounding.mean, SMALLEST),
            max=MAX_MARGIN * self.max * max(rounding.max, SMALLEST),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineEvidence:
    """Report of one engine after a publication.

    Worked example, a probe of four tokens:
        engine_id 0    version 7    received {"model.norm.weight": [8, 13], ...}
        probe_logprobs [0.0 -4.159 -4.158 -4.160]

    Attributes:
        engine_id: number of the engine.
        version: label of the weights it samples from.
        received: fingerprint by name of what arrived.
        used: blocks by name of the weights in use, [row, column, plain, weighted] each; without
            those that kernels have packed.
        probe_logprobs: [T] of the probe's tokens under its live weights.
    """

    engine_id: int
    version: int
    received: Mapping[str, Sequence[int]] = field(repr=False)
    probe_logprobs: Sequence[float] = field(repr=False)
    used: Mapping[str, Sequence[Sequence[int]]] = field(repr=False, default_factory=dict)

    def in_use(self) -> dict[str, Fingerprint]:
        """Return the fingerprint of every tensor in use that this engine shows."""
        return {
            name: join_blocks(
                Block(row=row, column=column, plain=plain, weighted=weighted)
                for row, column, plain, weighted in blocks
            )
            for name, blocks in self.used.items()
        }


class Attestation:
    """Check of publications one after the other, which keeps the last one's fingerprints.

    That tensors are in use is shown by the engines' own memory. An engine may hold a tensor in
    another layout or type than it is sent in; such tensors show themselves in the first
    publication, whose weights the engines may have had before, and are judged by arrival and probe
    alone.

    Args:
        expected: every tensor a publication must contain, derived from the learner's module
            (`expected_names` of `workers.engines.zero.weights`) and not from what the source
            yields.
        tolerance: of the probe.
    """

    def __init__(self, *, expected: Sequence[str], tolerance: Tolerance) -> None:
        if not expected:
            raise ValueError("attestation needs the names of the learner's parameters, got none")
        self.expected = tuple(expected)
        self.tolerance = tolerance
        self._previous: dict[str, Fingerprint] = {}
        self._shown: frozenset[str] | None = None  # tensors that engines hold as they are sent

    def check(
        self,
        report: PublishReport,
        engines: Sequence[EngineEvidence],
        *,
        learner_logprobs: Sequence[float],
        optimizer_stepped: bool,
        diagnose: Callable[[int], Mapping[str, str]] | None = None,
    ) -> dict[str, float]:
        """Accept a publication, or raise.

        Args:
            report: of the sender, from rank 0.
            engines: evidence of every engine.
            learner_logprobs: [T] of the probe's tokens under the learner's weights.
            optimizer_stepped: True where a gradient other than zero was applied since the last one.
            diagnose: fetches the stale live weights of an engine (by id); called if a probe fails.

        Returns:
            Metrics `publication/...`.

        Raises:
            AttestationError: with the names of the tensors.
        """
        reasons: dict[str, str] = {}
        faults: list[str] = []
        if not engines:
            faults.append("no engine gave evidence")
        for name in self.expected:
            if name not in report.fingerprints:
                reasons[name] = "was not sent"
        unchanged = self._unchanged(report)
        if optimizer_stepped and self._previous and not unchanged < len(report.fingerprints):
            faults.append("the optimizer stepped, but no tensor changed since the last publication")
        gaps = []
        for engine in engines:
            gap = ProbeGap.between(learner_logprobs, engine.probe_logprobs)
            gaps.append(gap)
            self._check_engine(report, engine, reasons, faults)
            if not self.tolerance.allows(gap):
                faults.append(_disagreement(engine.engine_id, gap, self.tolerance))
                if diagnose is not None:
                    for name, reason in diagnose(engine.engine_id).items():
                        reasons.setdefault(name, f"{reason} (engine {engine.engine_id})")
        if reasons or faults:
            raise AttestationError(report.version, reasons, faults)
        self._previous = dict(report.fingerprints)
        if self._shown is None:
            self._shown = self._alike(report, engines)
        return {
            "publication/probe_gap_max": max(gap.max for gap in gaps),
            "publication/probe_gap_mean": max(gap.mean for gap in gaps),
            "publication/unchanged_tensors": float(unchanged),
            "publication/shown_in_use_frac": len(self._shown) / max(1, len(report.fingerprints)),
        }

    @staticmethod
    def _alike(report: PublishReport, engines: Sequence[EngineEvidence]) -> frozenset[str]:
        """Name the tensors that every engine uses as they were sent."""
        used = [engine.in_use() for engine in engines]
        return frozenset(
            name
            for name, sent in report.fingerprints.items()
            if all(each.get(name) == tuple(sent) for each in used)
        )

    def _unchanged(self, report: PublishReport) -> int:
        previous = self._previous
        return sum(previous.get(name) == value for name, value in report.fingerprints.items())

    def _check_engine(
        self,
        report: PublishReport,
        engine: EngineEvidence,
        reasons: dict[str, str],
        faults: list[str],
    ) -> None:
        label = f"engine {engine.engine_id}"
        if engine.version != report.version:
            faults.append(f"{label} is at version {engine.version}")
        for name, sent in report.fingerprints.items():
            arrived = engine.received.get(name)
            if arrived is None:
                reasons.setdefault(name, f"did not arrive at {label}")
            elif tuple(arrived) != tuple(sent):
                reasons.setdefault(name, f"arrived at {label} with other bytes than were sent")
        used = engine.in_use() if self._shown else {}
        for name in self._shown or ():
            wanted = report.fingerprints.get(name)
            if wanted is not None and used.get(name) != tuple(wanted):
                reasons.setdefault(name, f"arrived, but {label} computes with other weights")


def _disagreement(engine_id: int, gap: ProbeGap, allowed: Tolerance) -> str:
    return (
        f"engine {engine_id} and the learner disagree about the probe: mean {gap.mean:.3g} "
        f"(allowed {allowed.mean:.3g}), max {gap.max:.3g} (allowed {allowed.max:.3g})"
    )
