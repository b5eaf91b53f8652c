"""Give out the prompts of all sources: source by source in turn, each in the order of its epochs.

The driver's ledger draws from here. No draw is random: sources come by their weights (smooth
weighted round-robin), and rows by the seeded order of each epoch, so that a resumed run draws what
the run would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workers.data.prompts import PromptSet


@dataclass(kw_only=True, slots=True)
class _Place:
    """Place in one source: the epoch, and the position in the epoch's order."""

    epoch: int
    cursor: int
    order: list[int]


class PromptOrder:
    """Endless order of (epoch, row) over all sources.

    Args:
        prompts: of the run.
        seed: of the order.
        shuffle: False keeps the order of the files.
    """

    def __init__(self, prompts: PromptSet, *, seed: int, shuffle: bool) -> None:
        self._prompts, self._seed, self._shuffle = prompts, seed, shuffle
        numbers = range(len(prompts.sources))
        self._places = [self._place(number, 0, 0) for number in numbers]
        self._credits = [0.0] * len(self._places)  # how much each source is behind its share
        self._num_drawn = 0

    def _place(self, source: int, epoch: int, cursor: int) -> _Place:
        order = self._prompts.order(
            epoch=epoch, seed=self._seed, shuffle=self._shuffle, source=source
        )
        return _Place(epoch=epoch, cursor=cursor, order=order)

    def draw(
        self,
        weights: list[float],
        skip: Callable[[int], str | None],
        skipped: Callable[[int, int, str], None],
    ) -> tuple[int, int] | None:
        """Return the next (epoch, row), or None if every prompt of every source is skipped.

        Args:
            weights: of the sources; one of weight 0 gives nothing.
            skip: returns the reason against a row, or None.
            skipped: called with epoch, row and reason of every row that was passed over.
        """
        open_ones = [number for number, weight in enumerate(weights) if weight > 0]
        while open_ones:
            total = sum(weights[number] for number in open_ones)
            credit = {n: self._credits[n] + weights[n] / total for n in open_ones}
            chosen = max(open_ones, key=credit.__getitem__)
            entry = self._draw_from(chosen, skip, skipped)
            if entry is None:
                open_ones.remove(chosen)
                continue
            for number, value in credit.items():
                self._credits[number] = value - (number == chosen)
            self._num_drawn += 1
            return entry
        return None

    def _draw_from(
        self,
        source: int,
        skip: Callable[[int], str | None],
        skipped: Callable[[int, int, str], None],
    ) -> tuple[int, int] | None:
        """Draw from one source; None, and no change, if a whole round of its rows is skipped."""
        place = self._places[source]
        passed: list[tuple[int, int, str]] = []
        for _ in place.order:
            if place.cursor == len(place.order):
                place = self._place(source, place.epoch + 1, 0)
            row = place.order[place.cursor]
            place = _Place(epoch=place.epoch, cursor=place.cursor + 1, order=place.order)
            why = skip(row)
            if why is None:
                self._places[source] = place
                for entry in passed:
                    skipped(*entry)
                return place.epoch, row
            passed.append((place.epoch, row, why))
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {
            "cursor": self._num_drawn,
            "places": [[place.epoch, place.cursor] for place in self._places],
            "credits": list(self._credits),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint of the same sources."""
        self._num_drawn, self._credits = state["cursor"], list(state["credits"])
        self._places = [
            self._place(source, epoch, cursor)
            for source, (epoch, cursor) in enumerate(state["places"])
        ]
