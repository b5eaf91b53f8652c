"""Seeded requests whose prompt is read in parts, on vLLM's CPU engine.

After every part vLLM samples a token that it throws away, and takes the request's random generator
back by its offset. The generators of a CPU have none: vLLM 0.32 ends there, with EngineCore and all
requests ("CPU Generator does not use offset"). Long prompts are read in parts, and so is whatever
runs when a publication drops its keys and values. Here the generator's whole state is taken back.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


def states(runner: type[Any]) -> None:
    """Lets a class of CPU model runners throw tokens away; harmless when done twice."""
    if getattr(runner, "takes_back_by_state", False):
        return
    sample, bookkeeping = runner._sample, runner._bookkeeping_sync

    @functools.wraps(sample)
    def sample_and_take_back(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.input_batch
        thrown_away = np.nonzero(self.discard_request_mask.np[: batch.num_reqs])[0]
        generators = [batch.generators.get(int(row)) for row in thrown_away]
        states = [(one, one.get_state()) for one in generators if one is not None]
        output = sample(self, *args, **kwargs)
        for generator, state in states:
            generator.set_state(state)
        return output

    @functools.wraps(bookkeeping)
    def bookkeeping_without_offsets(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.input_batch
        generators, batch.generators = batch.generators, {}
        try:
            return bookkeeping(self, *args, **kwargs)
        finally:
            batch.generators = generators

    runner._sample = sample_and_take_back
    runner._bookkeeping_sync = bookkeeping_without_offsets
    runner.takes_back_by_state = True
