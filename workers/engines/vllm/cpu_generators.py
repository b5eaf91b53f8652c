"""Seeded requests whose prompt is read in parts, on vLLM's CPU engine.

After every part vLLM samples a token that it discards, and sets the request's random generator
back by its offset. The generators of a CPU have none: vLLM 0.32 ends there, with EngineCore and all
requests ("CPU Generator does not use offset"). Long prompts are read in parts, and so is whatever
runs when a publication drops its keys and values. Here the generator's whole state is restored.
Runs in vLLM's workers on a CPU. Changes no token that is kept.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


def patch_runner(runner: type[Any]) -> None:
    """Let a class of CPU model runners discard tokens; harmless when done twice."""
    if getattr(runner, "restores_generators_by_state", False):
        return
    sample, bookkeeping = runner._sample, runner._bookkeeping_sync

    @functools.wraps(sample)
    def sample_and_restore(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.input_batch
        discarded = np.nonzero(self.discard_request_mask.np[: batch.num_reqs])[0]
        generators = [batch.generators.get(int(row)) for row in discarded]
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

    runner._sample = sample_and_restore
    runner._bookkeeping_sync = bookkeeping_without_offsets
    runner.restores_generators_by_state = True
