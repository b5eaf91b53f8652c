"""End a run whose gradients are not finite.

A learner skips an optimizer step whose gradient is not finite, so its weights stay as they were;
one such step is an accident, several in a row are a run that learns nothing. Reports of the ranks
in, one error out, in the driver; the caller saves the weights that are still good.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from workers.learner.policy_worker import TrainReport

SHOWN = 5


class NonFiniteGradientsError(RuntimeError):
    """Too many skipped optimizer steps in a row; the message names the tensors."""


def check_skipped(reports: Sequence[TrainReport], *, limit: int) -> None:
    """Check that fewer than `limit` optimizer steps in a row were skipped.

    Args:
        reports: of all ranks, which skip together; none where the policy did not train.
        limit: `learner.max_skipped_steps`.

    Raises:
        NonFiniteGradientsError: with the worst tensors and what to change.
    """
    in_a_row = max((report.skipped_in_a_row for report in reports), default=0)
    if in_a_row < limit:
        return
    names = dict.fromkeys(name for report in reports for name in report.non_finite)
    worst = ", ".join(islice(names, SHOWN)) or "no tensor by itself, the norm over all of them"
    raise NonFiniteGradientsError(
        f"{in_a_row} optimizer steps in a row had a non-finite gradient and were skipped "
        f"(learner.max_skipped_steps={limit}), worst in {worst}. Lower learner.optimizer.lr or the "
        "coefficient that grew, or look at rewards and log-probs of the last recorded rollouts"
    )
