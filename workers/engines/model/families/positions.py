"""Fix the rotary positions of a model, so that a token's depend on its own place alone.

transformers chooses the frequencies of two kinds of rotary embeddings by the longest sequence of
the batch: a token's log-prob would then depend on what else was packed beside it. Runs in the ranks
of learner, reference and critic, once, when the model is loaded. Computes no positions itself.
"""

from typing import Any

from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LONGROPE = "longrope"
# Any name but transformers' own: the frequencies are then left as they are.
FIXED = "longrope, fixed"


def fix_positions(model: nn.Module, longest: int | None) -> None:
    """Choose a model's rotary frequencies once and for all, in place.

    `longrope` (2402.13753) has two sets, for sequences up to the original context and beyond. The
    run takes the one of its longest sequence for all sequences, as vLLM does.

    Args:
        model: of transformers, before its first batch.
        longest: tokens of the longest sequence that the run can have; None takes the model's
            context.

    Raises:
        ValueError: dynamic frequencies, which change with every length.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if kinds is None:
            continue
        named = kinds if isinstance(kinds, dict) else {None: kinds}
        for layer_type, kind in named.items():
            if "dynamic" in kind:
                raise ValueError(
                    f"{type(model).__name__} has rope_type={kind}: the positions of a token depend "
                    "on the longest sequence beside it, and an engine computes others; use a model "
                    "with longrope, yarn or linear scaling"
                )
            if kind == LONGROPE:
                _fix(module, layer_type, longest)


def _fix(module: Any, layer_type: str | None, longest: int | None) -> None:
    """Set the frequencies of one kind of layers (None: of all) and keep transformers off them."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    held = getattr(module, f"{prefix}inv_freq")
    frequencies, _ = ROPE_INIT_FUNCTIONS[LONGROPE](
        module.config,
        held.device,
        seq_len=longest or module.config.max_position_embeddings,
        layer_type=layer_type,
    )
    held.copy_(frequencies)
    if layer_type is None:
        module.rope_type = FIXED
    else:
        module.rope_type = {**module.rope_type, layer_type: FIXED}
