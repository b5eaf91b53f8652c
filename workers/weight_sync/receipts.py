"""Receipts for vLLM's own transports, which keep no record of what they loaded.

Data flows past: the model's `load_weights` is wrapped once, and every tensor that a transport hands
to it is fingerprinted on its way. Runs inside vLLM's workers. Keeps no tensor; `shm` and `gloo` do
not need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from workers.weight_sync.fingerprint import Fingerprint, fingerprint


class ReceiptRecorder:
    """Recorder of the fingerprints of the tensors of the last update."""

    def __init__(self) -> None:
        self._fingerprints: dict[str, Fingerprint] = {}

    @classmethod
    def attach(cls, engine: Any) -> None:
        """Add `fingerprints()` and `received()` to a vLLM weight-transfer engine."""
        recorder = cls()
        load_weights, start = engine.model.load_weights, engine.start_weight_update

        def start_anew() -> None:
            recorder._fingerprints.clear()
            start()

        def load_and_record(weights: Iterable[tuple[str, Tensor]]) -> Any:
            return load_weights(recorder._record(weights))

        engine.model.load_weights = load_and_record
        engine.start_weight_update = start_anew
        engine.fingerprints = recorder._fingerprints.copy
        engine.received = lambda: iter(())  # the tensors are gone once they are loaded

    def _record(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self._fingerprints[name] = fingerprint(tensor.contiguous().view(-1))
            yield name, tensor
