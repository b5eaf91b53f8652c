"""A sample of several rows is counted once, with the tokens of all of them."""

from orchestrator.step.samples import first_rows, whole_samples
from workers.data.trajectory import TrajectoryMeta


def meta(rollout, branch, *, sampled, version):
    return TrajectoryMeta(
        prompt_uid="p:0",
        group_id="g",
        rollout_id=f"g/{rollout}",
        num_tokens=10 + sampled,
        num_trained=sampled,
        num_sampled=sampled,
        finish_reason="stop",
        outcome="scored",
        reward=float(rollout),
        reward_parts={},
        min_version=version,
        max_version=version,
        generate_s=1.0,
        reward_s=0.0,
        num_turns=3,
        branch=branch,
    )


def test_rows_of_one_sample_are_one():
    rows = [
        meta(0, 0, sampled=4, version=7),
        meta(0, 1, sampled=2, version=8),
        meta(1, 1, sampled=5, version=7),  # its first row had no turn
    ]
    assert first_rows(rows) == [0, 2]
    merged, single = whole_samples(rows)
    assert (merged.num_sampled, merged.num_trained, merged.num_tokens) == (6, 6, 26)
    assert (merged.min_version, merged.max_version, merged.reward) == (7, 8, 0.0)
    assert single is rows[2]
