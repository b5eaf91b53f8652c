"""Attestation on literal evidence: what it accepts, and the names in what it refuses."""

import pytest

from workers.weight_sync.attestation import (
    Attestation,
    AttestationError,
    EngineEvidence,
    Noise,
    ProbeGap,
    Tolerance,
)
from workers.weight_sync.endpoint import PublishReport

SENT = {"embed": (1, 2), "head": (3, 4)}


def report(version=1, fingerprints=SENT):
    return PublishReport(
        version=version,
        transport="shm",
        names=tuple(fingerprints),
        num_bytes=16,
        seconds={"total": 0.0},
        fingerprints=dict(fingerprints),
    )


def evidence(version=1, received=SENT, probe=(0.0, -1.0), engine_id=0, used=None):
    return EngineEvidence(
        engine_id=engine_id,
        version=version,
        received=received,
        probe_logprobs=list(probe),
        used=used or {},
    )


def attestation(value=1e-5):
    return Attestation(expected=["embed", "head"], tolerance=Tolerance.absolute(value))


def check(sent, *engines, judge=None, **kwargs):
    arguments = {"learner_logprobs": [0.0, -1.0], "optimizer_stepped": True} | kwargs
    return (judge or attestation()).check(sent, engines, **arguments)


def test_a_sound_publication_gives_its_metrics():
    metrics = check(report(), evidence(probe=(0.0, -1.000004)))
    assert metrics["publication/probe_gap_max"] == pytest.approx(4e-6, rel=1e-3)
    assert metrics["publication/probe_gap_mean"] == pytest.approx(2e-6, rel=1e-3)
    assert metrics["publication/unchanged_tensors"] == 0


def test_lists_from_the_wire_equal_tuples():
    check(report(), evidence(received={"embed": [1, 2], "head": [3, 4]}))


def test_what_an_engine_shows_in_the_first_publication_it_must_show_in_every_one():
    judge = attestation()
    # head is held in another layout: its bytes are never those that were sent.
    first = {"embed": [[0, 0, 1, 2]], "head": [[0, 0, 9, 9]], "other": [[0, 0, 5, 5]]}
    metrics = check(report(), evidence(used=first), judge=judge)
    assert metrics["publication/shown_in_use_frac"] == 0.5
    moved = {"embed": (5, 6), "head": (7, 8)}
    halves = {"embed": [[0, 0, 2, 2], [1, 0, 3, 4]]}  # of two tensor-parallel workers
    check(report(2, moved), evidence(2, moved, used=halves), judge=judge)
    with pytest.raises(AttestationError) as caught:
        check(report(3, SENT), evidence(3, SENT, used=halves), judge=judge)
    assert caught.value.reasons == {
        "embed": "arrived, but engine 0 computes with other weights",
    }
    assert caught.value.faults == []


def test_a_tensor_not_sent_is_named():
    with pytest.raises(AttestationError, match="head: was not sent") as caught:
        check(report(fingerprints={"embed": (1, 2)}), evidence(received={"embed": (1, 2)}))
    assert caught.value.reasons == {"head": "was not sent"}


def test_a_tensor_that_did_not_arrive_is_named_with_the_engine():
    with pytest.raises(AttestationError, match="head: did not arrive at engine 1"):
        check(report(), evidence(), evidence(received={"embed": (1, 2)}, engine_id=1))


def test_other_bytes_are_named():
    with pytest.raises(AttestationError, match="embed: arrived at engine 0 with other bytes"):
        check(report(), evidence(received={"embed": (1, 3), "head": (3, 4)}))


def test_an_engine_left_behind_is_named():
    with pytest.raises(AttestationError, match="engine 0 is at version 1"):
        check(report(version=2), evidence(version=1))


def test_weights_must_change_when_the_optimizer_stepped():
    judge = attestation()
    check(report(), evidence(), judge=judge)
    with pytest.raises(AttestationError, match="no tensor changed"):
        check(report(2), evidence(2), judge=judge)
    metrics = check(report(2), evidence(2), judge=judge, optimizer_stepped=False)
    assert metrics["publication/unchanged_tensors"] == 2
    moved = SENT | {"head": (5, 6)}
    metrics = check(report(3, moved), evidence(3, moved), judge=judge)
    assert metrics["publication/unchanged_tensors"] == 1


@pytest.mark.parametrize("value", [-1.1, float("nan")])
def test_a_probe_that_disagrees_asks_for_the_stale_weights(value):
    asked = []

    def diagnose(engine_id):
        asked.append(engine_id)
        return {"head": "computes with other weights"}

    with pytest.raises(AttestationError, match=r"head: computes .* \(engine 0\)") as caught:
        check(report(), evidence(probe=(0.0, value)), diagnose=diagnose)
    assert asked == [0]
    assert "disagree about the probe" in caught.value.faults[0]


def test_the_tolerance_follows_the_models_own_rounding():
    """At the start the gap is 1.5 x (mean) and 0.5 x (max) what the model rounds."""
    start = Noise.measured(ProbeGap(mean=0.003, max=0.02), ProbeGap(mean=0.002, max=0.04))
    assert (start.mean, start.max) == (1.5, 1.0)
    tolerance = start.tolerance(ProbeGap(mean=0.001, max=0.01))  # surer of its tokens since
    assert tolerance == Tolerance(mean=6 * 1.5 * 0.001, max=24 * 0.01)
    assert tolerance.allows(ProbeGap(mean=0.009, max=0.24))
    assert not tolerance.allows(ProbeGap(mean=0.0091, max=0.01))
    assert not tolerance.allows(ProbeGap(mean=0.001, max=0.25))


@pytest.mark.parametrize(
    ("rounding", "gap"),
    [
        (ProbeGap(mean=5.0e-4, max=3.1e-3), ProbeGap(mean=7.4e-4, max=1.37e-2)),  # ended a run
        (ProbeGap(mean=7.0e-4, max=5.6e-3), ProbeGap(mean=1.4e-3, max=3.2e-2)),
        (ProbeGap(mean=5.4e-4, max=7.6e-3), ProbeGap(mean=1.1e-3, max=1.1e-2)),
    ],
)
def test_rounding_that_happens_to_be_small_fails_no_right_publication(rounding, gap):
    """Measured in a tiny model in bfloat16, whose engine had the learner's weights every time."""
    assert Noise(mean=1.0, max=1.02).tolerance(rounding).allows(gap)
    assert not Noise(mean=1.0, max=1.02).tolerance(rounding).allows(ProbeGap(mean=0.01, max=0.03))


@pytest.mark.parametrize("gap", [(0.2, 0.5), (float("nan"), float("nan"))])
def test_a_gap_at_the_start_that_is_no_rounding_is_refused(gap):
    """A mean of 0.2 was once taken for noise, whatever the model."""
    mean, largest = gap
    with pytest.raises(ValueError, match="with equal weights learner and engine differ by"):
        Noise.measured(ProbeGap(mean=mean, max=largest), ProbeGap(mean=0.002, max=0.04))


def test_rounding_lets_one_token_differ_by_more_than_all():
    tolerance = Tolerance.rounding(1e-4)
    assert tolerance.allows(ProbeGap(mean=5e-7, max=1.8e-5))
    assert not tolerance.allows(ProbeGap(mean=1.1e-5, max=1.8e-5))  # many tokens, a little
    assert not tolerance.allows(ProbeGap(mean=5e-6, max=1.1e-4))  # one token, by much


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="got 1 from the learner and 2"):
        ProbeGap.between([0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="got none"):
        Attestation(expected=[], tolerance=Tolerance.absolute(1))
    with pytest.raises(AttestationError, match="no engine gave evidence"):
        check(report())
