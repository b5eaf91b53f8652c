"""The ledger: what became of every prompt of every epoch.

A prompt is pending until it is submitted, in flight until its group is taken, and then trained at a
step or dropped for a reason, or pending again where its group was given up unfinished. The state is
saved with every checkpoint; what was in flight then is pending again unless its finished group was
saved too, so a resumed run trains each prompt exactly once per epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from workers.data.prompts import PromptSet


class Ledger:
    """Hands prompts out in the seeded order of each epoch and remembers their fate."""

    def __init__(self, prompts: PromptSet, *, seed: int, shuffle: bool) -> None:
        self._prompts, self._seed, self._shuffle = prompts, seed, shuffle
        self._epoch = 0
        self._cursor = 0  # position in the epoch's order
        self._order = prompts.order(epoch=0, seed=seed, shuffle=shuffle)
        self._returned: list[tuple[int, int]] = []  # (epoch, row) to hand out again first
        self._in_flight: dict[tuple[int, int], None] = {}
        self._fate: dict[int, dict[int, str]] = {}  # epoch -> row -> trained:<step>, dropped:<why>
        self._settled: Counter[str] = Counter()  # of all fates: how many are trained, dropped

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(epoch, row) of the next prompts, without end; each is in flight once handed out."""
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
        """A prompt that was in flight when the state was saved still is: its group was kept."""
        if (epoch, row) not in self._returned:
            raise ValueError(f"prompt {row} of epoch {epoch} was not in flight; can't be claimed")
        self._returned.remove((epoch, row))
        self._in_flight[(epoch, row)] = None

    def begin(self, epoch: int, row: int) -> None:
        """Hand out one prompt out of turn: its group was sampled elsewhere."""
        if self.fate(epoch, row) != "pending":
            raise ValueError(
                f"prompt {row} of epoch {epoch} is {self.fate(epoch, row)} already; its group is "
                "there twice, and a prompt trains once per epoch"
            )
        self._in_flight[(epoch, row)] = None

    def give_back(self, epoch: int, row: int) -> None:
        """The prompt's group was given up: it is pending again, and handed out before others."""
        if (epoch, row) not in self._in_flight:
            raise ValueError(f"prompt {row} of epoch {epoch} is not in flight; can't be given back")
        del self._in_flight[(epoch, row)]
        self._returned.append((epoch, row))

    def trained(self, epoch: int, row: int, step: int) -> None:
        """The prompt's group was trained at `step`."""
        self._settle(epoch, row, f"trained:{step}")

    def dropped(self, epoch: int, row: int, why: str) -> None:
        """The prompt's group will not be trained in this epoch."""
        self._settle(epoch, row, f"dropped:{why}")

    def untrain(self, step: int) -> None:
        """The prompts of a step that was begun and could not be trained are pending again."""
        fate = f"trained:{step}"
        for epoch, rows in self._fate.items():
            for row in [row for row, own in rows.items() if own == fate]:
                del rows[row]
                self._returned.append((epoch, row))
                self._settled[_kind(fate)] -= 1

    def _settle(self, epoch: int, row: int, fate: str) -> None:
        if (epoch, row) not in self._in_flight:
            raise ValueError(f"prompt {row} of epoch {epoch} is not in flight; can't be {fate}")
        del self._in_flight[(epoch, row)]
        self._fate.setdefault(epoch, {})[row] = fate
        self._settled[_kind(fate)] += 1

    def fate(self, epoch: int, row: int) -> str:
        """pending, in_flight, trained:<step> or dropped:<why>."""
        if (epoch, row) in self._in_flight:
            return "in_flight"
        return self._fate.get(epoch, {}).get(row, "pending")

    def counts(self) -> dict[str, int]:
        """How many prompts, over all epochs, were trained, dropped or are in flight."""
        return {
            "trained": self._settled["trained"],
            "dropped": self._settled["dropped"],
            "in_flight": len(self._in_flight),
        }

    @property
    def epoch_frac(self) -> float:
        """Epochs handed out, as a fraction; whatever was handed out has one of these fates."""
        known = self._settled.total() + len(self._in_flight) + len(self._returned)
        return known / len(self._prompts)

    def metrics(self) -> dict[str, float]:
        """`counts` and `epoch_frac` under their names in the log."""
        counts = {f"ledger/{name}": float(count) for name, count in self.counts().items()}
        return {**counts, "ledger/epoch_frac": self.epoch_frac}

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint; prompts in flight are to be sampled again."""
        return {
            "epoch": self._epoch,
            "cursor": self._cursor,
            "returned": [*self._in_flight, *self._returned],
            "fate": {
                str(epoch): {str(row): fate for row, fate in rows.items()}
                for epoch, rows in self._fate.items()
            },
            "digest": self._prompts.digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the checkpoint was written.

        Raises:
            ValueError: when it was written for other prompts.
        """
        if state["digest"] != self._prompts.digest():
            raise ValueError(
                f"{self._prompts.path} is not the prompt file of the checkpoint (its content "
                "differs); resume with the same data, or start a new run"
            )
        self._go_to(state["epoch"], state["cursor"])
        self._returned = [(epoch, row) for epoch, row in state["returned"]]
        self._in_flight = {}
        self._fate = {
            int(epoch): {int(row): fate for row, fate in rows.items()}
            for epoch, rows in state["fate"].items()
        }
        settled = (fate for rows in self._fate.values() for fate in rows.values())
        self._settled = Counter(map(_kind, settled))


def _kind(fate: str) -> str:
    return fate.split(":", 1)[0]
