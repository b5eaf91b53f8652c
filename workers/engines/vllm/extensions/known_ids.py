"""Mask of the ids of a padded head that no text has.

A head may have more rows than its tokenizer has ids. What such a row means was never trained, and a
policy that samples one trains on ids that no scorer sees. vLLM builds this processor in its workers
and calls it before it samples; log-probs are those of the ids that are left, as the learner's are.
Scores of a prompt's own tokens never pass here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor


class KnownIds(LogitsProcessor):
    """Processor that lets no id from `known_ids` on be sampled.

    Args:
        vllm_config: of vLLM, whose `additional_config` holds `known_ids`.
    """

    def __init__(self, vllm_config: Any, *_: Any) -> None:  # a device and more, which no mask needs
        self._known = int(vllm_config.additional_config["known_ids"])

    def apply(self, logits: Tensor) -> Tensor:
        """Mask the logits [requests, V] in place."""
        logits[:, self._known :] = -torch.inf
        return logits

    def is_argmax_invariant(self) -> bool:
        """Return False: the likeliest id may be one that is masked."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Do nothing: the mask is the same for every request."""
