"""Save and restore the random generators of a process, as plain data that JSON can hold.

Driver and learner ranks run the module for checkpoints. Covered are Python's, numpy's and torch's
generators, on the host and on every visible device. No generator is seeded here. vLLM engines are
not covered and need not be, because every request carries a seed of its own.
"""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state() -> dict[str, Any]:
    """Return the state of every generator of this process."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _encode(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = [_encode(one) for one in torch.cuda.get_rng_state_all()]
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set every generator to the state that `random_state` returned.

    Devices are restored in their order, as many as there are on both sides.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    legacy = (kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached)
    np.random.set_state(legacy)  # noqa: NPY002
    torch.set_rng_state(_decode(state["torch"]))
    if torch.cuda.is_available():
        for device, one in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(_decode(one), device)


class RandomGenerators:
    """The generators of this process, as a part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generators."""
        return random_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the generators to a saved state."""
        set_random_state(state)


def _encode(state: Tensor) -> str:
    """Encode a generator's uint8 state [n] in base64."""
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
