"""Keep the ledger: the status of every prompt of every epoch.

A prompt is pending until it is submitted, in flight until its group is taken, and then trained at a
step or dropped for a reason; it is pending again if its group was aborted. A prompt that a
curriculum passes over is skipped in that epoch. The state is saved with
every checkpoint; a prompt in flight at that moment is pending again unless its finished group was
saved too, so a resumed run trains each prompt exactly once per epoch. The ledger is in the driver,
and holds no group and no sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from conf.schema import CurriculumConfig
from orchestrator.supply.curriculum import Curriculum
from orchestrator.supply.prompt_order import PromptOrder
from workers.data.prompts import PromptSet


class Ledger:
    """Ledger of prompts: gives them out in the seeded order of each epoch, and keeps their status.

    Args:
        prompts: of the run.
        seed: of the order.
        shuffle: False keeps the order of the files.
        curriculum: chooses sources and prompts; None takes all, by the weights of the sources.
    """

    def __init__(
        self,
        prompts: PromptSet,
        *,
        seed: int,
        shuffle: bool,
        curriculum: Curriculum | None = None,
    ) -> None:
        self._prompts = prompts
        self._curriculum = curriculum or Curriculum(CurriculumConfig(), prompts)
        self._order = PromptOrder(prompts, seed=seed, shuffle=shuffle)
        self._step = 1
        self._pass_rates: dict[int, float] = {}  # by row, as last sampled
        self._returned: list[tuple[int, int]] = []  # (epoch, row) to hand out again first
        self._in_flight: dict[tuple[int, int], None] = {}
        # epoch -> row -> trained:<step>, dropped:<why>, skipped:<why>
        self._statuses: dict[int, dict[int, str]] = {}
        self._settled: Counter[str] = Counter()  # how many are trained, dropped, skipped
        self._of_step: list[tuple[int, int]] = []  # settled since the step began
        self._rates_before: dict[int, float | None] = {}  # of what was observed since then

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (epoch, row) of the next prompts; each is in flight from then on.

        There is no end, unless the curriculum passes over every prompt.
        """
        while (entry := self._next()) is not None:
            self._in_flight[entry] = None
            yield entry

    def _next(self) -> tuple[int, int] | None:
        if self._returned:
            return self._returned.pop(0)
        begun = {row for _, row in self._in_flight} if self._curriculum.selects else set()

        def skip(row: int) -> str | None:
            if row in begun:  # its pass rate is being measured
                return "in flight"
            return self._curriculum.reason_to_skip(row, self._step, self._pass_rates)

        return self._order.draw(self._curriculum.weights(self._step), skip, self._skipped)

    def _skipped(self, epoch: int, row: int, why: str) -> None:
        self._statuses.setdefault(epoch, {})[row] = f"skipped:{why}"
        self._settled["skipped"] += 1

    def claim(self, epoch: int, row: int) -> None:
        """Mark a prompt as in flight again after a resume, because its finished group was kept.

        Raises:
            ValueError: the prompt was not in flight when the state was saved.
        """
        if (epoch, row) not in self._returned:
            raise ValueError(f"prompt {row} of epoch {epoch} was not in flight; can't be claimed")
        self._returned.remove((epoch, row))
        self._in_flight[(epoch, row)] = None

    def begin(self, epoch: int, row: int) -> None:
        """Mark one prompt as in flight out of turn, because its group was sampled elsewhere.

        Raises:
            ValueError: the prompt is not pending.
        """
        if self.status(epoch, row) != "pending":
            raise ValueError(
                f"prompt {row} of epoch {epoch} is {self.status(epoch, row)} already; its group is "
                "there twice, and a prompt trains once per epoch"
            )
        if (epoch, row) in self._returned:
            self._returned.remove((epoch, row))
        self._in_flight[(epoch, row)] = None

    def give_back(self, epoch: int, row: int) -> None:
        """Make a prompt pending again, before all others, because its group was aborted.

        Raises:
            ValueError: the prompt is not in flight.
        """
        if (epoch, row) not in self._in_flight:
            raise ValueError(f"prompt {row} of epoch {epoch} is not in flight; can't be given back")
        del self._in_flight[(epoch, row)]
        self._returned.append((epoch, row))

    def trained(self, epoch: int, row: int, step: int) -> None:
        """Mark a prompt as trained at `step`."""
        self._settle(epoch, row, f"trained:{step}")

    def dropped(self, epoch: int, row: int, why: str) -> None:
        """Mark a prompt as dropped: its group will not be trained in this epoch."""
        self._settle(epoch, row, f"dropped:{why}")

    def observe(self, row: int, pass_rate: float) -> None:
        """Keep the share of a prompt's samples that were right, for the curriculum."""
        if self._curriculum.selects:
            self._rates_before.setdefault(row, self._pass_rates.get(row))
            self._pass_rates[row] = pass_rate

    def begin_step(self, step: int) -> None:
        """Begin a step: the curriculum's stage, and the count of what is trained or dropped."""
        self._step, self._of_step, self._rates_before = step, [], {}

    def reopen_step(self) -> None:
        """Put what was trained or dropped since `begin_step` back in flight: nothing was trained.

        The prompts come before those that were begun later, as they did.
        """
        for epoch, row in self._of_step:
            self._settled[_kind(self._statuses[epoch].pop(row))] -= 1
        self._in_flight = {**dict.fromkeys(self._of_step), **self._in_flight}
        for row, rate in self._rates_before.items():
            if rate is None:
                del self._pass_rates[row]
            else:
                self._pass_rates[row] = rate
        self._of_step, self._rates_before = [], {}

    def _settle(self, epoch: int, row: int, status: str) -> None:
        if (epoch, row) not in self._in_flight:
            raise ValueError(f"prompt {row} of epoch {epoch} is not in flight; can't be {status}")
        del self._in_flight[(epoch, row)]
        self._statuses.setdefault(epoch, {})[row] = status
        self._of_step.append((epoch, row))
        self._settled[_kind(status)] += 1

    def status(self, epoch: int, row: int) -> str:
        """Return a prompt's status.

        Returns:
            pending, in_flight, trained:<step>, dropped:<why> or skipped:<why>.
        """
        if (epoch, row) in self._in_flight:
            return "in_flight"
        return self._statuses.get(epoch, {}).get(row, "pending")

    def counts(self) -> dict[str, int]:
        """Count the prompts, over all epochs, that were trained, dropped or are in flight."""
        return {
            "trained": self._settled["trained"],
            "dropped": self._settled["dropped"],
            "in_flight": len(self._in_flight),
        }

    @property
    def epoch_frac(self) -> float:
        """Epochs given out, as a fraction: prompts settled, in flight or returned."""
        known = self._settled.total() + len(self._in_flight) + len(self._returned)
        return known / len(self._prompts)

    def metrics(self) -> dict[str, float]:
        """Return `counts` and `epoch_frac` under their names in the log."""
        counts = {f"ledger/{name}": float(count) for name, count in self.counts().items()}
        metrics = {**counts, "ledger/epoch_frac": self.epoch_frac}
        if self._curriculum.selects:
            metrics["curriculum/skipped"] = float(self._settled["skipped"])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint; prompts in flight are to be sampled again."""
        return {
            **self._order.state_dict(),
            "pass_rates": {str(row): rate for row, rate in self._pass_rates.items()},
            "returned": [*self._in_flight, *self._returned],
            "fate": {
                str(epoch): {str(row): status for row, status in rows.items()}
                for epoch, rows in self._statuses.items()
            },
            "digest": self._prompts.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Raises:
            ValueError: the checkpoint was written for other prompts, or by an earlier version.
        """
        if "pass_rates" not in state:
            raise ValueError(
                "the checkpoint's ledger is of an earlier version, which kept no pass rates; "
                "finish that run with the version that began it, or start a new run"
            )
        if state["digest"] != self._prompts.digest:
            raise ValueError(
                f"{self._prompts.where} is not the prompt file of the checkpoint (its content "
                "differs); resume with the same data, or start a new run"
            )
        self._order.load_state_dict(state)
        self._pass_rates = {int(row): rate for row, rate in state["pass_rates"].items()}
        self._returned = [(epoch, row) for epoch, row in state["returned"]]
        self._in_flight = {}
        self._statuses = {
            int(epoch): {int(row): status for row, status in rows.items()}
            for epoch, rows in state["fate"].items()
        }
        settled = (status for rows in self._statuses.values() for status in rows.values())
        self._settled = Counter(map(_kind, settled))


def _kind(status: str) -> str:
    return status.split(":", 1)[0]
