"""Keep the ledger: the status of every prompt of every epoch.

A prompt is pending until it is submitted, in flight until its group is taken, and then trained at a
step or dropped for a reason; it is pending again if its group was aborted. The state is saved with
every checkpoint; a prompt in flight at that moment is pending again unless its finished group was
saved too, so a resumed run trains each prompt exactly once per epoch. The ledger is in the driver,
and holds no group and no sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from workers.data.prompts import PromptSet


class Ledger:
    """Ledger of prompts: gives them out in the seeded order of each epoch, and keeps their status.

    Args:
        prompts: of the run.
        seed: of the order.
        shuffle: False keeps the order of the file.
    """

    def __init__(self, prompts: PromptSet, *, seed: int, shuffle: bool) -> None:
        self._prompts, self._seed, self._shuffle = prompts, seed, shuffle
        self._epoch = 0
        self._cursor = 0  # position in the epoch's order
        self._order = prompts.order(epoch=0, seed=seed, shuffle=shuffle)
        self._returned: list[tuple[int, int]] = []  # (epoch, row) to hand out again first
        self._in_flight: dict[tuple[int, int], None] = {}
        # epoch -> row -> trained:<step>, dropped:<why>
        self._statuses: dict[int, dict[int, str]] = {}
        self._settled: Counter[str] = Counter()  # how many are trained, dropped
        self._of_step: list[tuple[int, int]] = []  # settled since the step began

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (epoch, row) of the next prompts, without end; each is in flight from then on."""
        while True:
            yield self._next()

    def _next(self) -> tuple[int, int]:
        if self._returned:
            entry = self._returned.pop(0)
        else:
            if self._cursor == len(self._order):
                self._go_to(self._epoch + 1, 0)
            entry = (self._epoch, self._order[self._cursor])
            self._cursor += 1
        self._in_flight[entry] = None
        return entry

    def _go_to(self, epoch: int, cursor: int) -> None:
        self._epoch, self._cursor = epoch, cursor
        self._order = self._prompts.order(epoch=epoch, seed=self._seed, shuffle=self._shuffle)

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

    def begin_step(self) -> None:
        """Begin to count which prompts are trained or dropped for a step."""
        self._of_step = []

    def reopen_step(self) -> None:
        """Put what was trained or dropped since `begin_step` back in flight: nothing was trained.

        The prompts come before those that were begun later, as they did.
        """
        for epoch, row in self._of_step:
            self._settled[_kind(self._statuses[epoch].pop(row))] -= 1
        self._in_flight = {**dict.fromkeys(self._of_step), **self._in_flight}
        self._of_step = []

    def _settle(self, epoch: int, row: int, status: str) -> None:
        if (epoch, row) not in self._in_flight:
            raise ValueError(f"prompt {row} of epoch {epoch} is not in flight; can't be {status}")
        del self._in_flight[(epoch, row)]
        self._statuses.setdefault(epoch, {})[row] = status
        self._of_step.append((epoch, row))
        self._settled[_kind(status)] += 1

    def status(self, epoch: int, row: int) -> str:
        """Return a prompt's status: pending, in_flight, trained:<step> or dropped:<why>."""
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
        """Epochs given out, as a fraction: prompts trained, dropped, in flight or returned."""
        known = self._settled.total() + len(self._in_flight) + len(self._returned)
        return known / len(self._prompts)

    def metrics(self) -> dict[str, float]:
        """Return `counts` and `epoch_frac` under their names in the log."""
        counts = {f"ledger/{name}": float(count) for name, count in self.counts().items()}
        return {**counts, "ledger/epoch_frac": self.epoch_frac}

    def state_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint; prompts in flight are to be sampled again."""
        return {
            "epoch": self._epoch,
            "cursor": self._cursor,
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
            ValueError: the checkpoint was written for other prompts.
        """
        if state["digest"] != self._prompts.digest:
            raise ValueError(
                f"{self._prompts.path} is not the prompt file of the checkpoint (its content "
                "differs); resume with the same data, or start a new run"
            )
        self._go_to(state["epoch"], state["cursor"])
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
