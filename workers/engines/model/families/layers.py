"""Make the layers of a model fit for packed batches, or refuse the model.

Runs in the ranks of learner, reference and critic, once, when the model is loaded. Computes
nothing.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

# Families whose window stands in the mask alone, which packed attention does not read.
MASKED_WINDOWS = ("phimoe",)
# Names of attention that a vision tower can compute too.
TOWER_ATTENTION = ("eager", "flash_attention_2")


def check_layers(model: PreTrainedModel) -> None:
    """Raise ValueError for kinds of layers that packed attention would compute wrongly."""
    config: Any = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    if getattr(config, "attention_chunk_size", None):
        unknown.append(f"attention_chunk_size={config.attention_chunk_size}")
    window = getattr(config, "sliding_window", None)
    masked = window is not None and config.model_type in MASKED_WINDOWS
    if masked and window < config.max_position_embeddings:
        unknown.append(f"sliding_window={window}")
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has layers that packed batches do not support: "
            f"{', '.join(unknown)}; use a model with full or sliding attention"
        )


def set_attention(model: PreTrainedModel, name: str, *, vision: bool = False) -> None:
    """Set the attention of a model; raise ValueError where the model keeps another one.

    Args:
        model: of transformers.
        name: of the decoder's attention.
        vision: True for a model whose tower computes images. Attention of packed sequences is
            causal; the tower's is not, and the tower gets `sdpa`.
    """
    remedy = "sequences of a packed batch would see each other; use another model"
    try:
        tower = name if name in TOWER_ATTENTION else "sdpa"
        model.set_attn_implementation(
            {"text_config": name, "vision_config": tower} if vision else name
        )
    except ValueError as error:
        raise ValueError(
            f"{type(model).__name__} takes no attention but its own, not learner.attention "
            f"({name}): {remedy}"
        ) from error
    kept = {
        str(module.config._attn_implementation)
        for module in model.get_decoder().modules()
        if isinstance(module, PreTrainedModel)
    } - {name}
    if kept:
        raise ValueError(
            f"{type(model).__name__} keeps its attention {', '.join(sorted(kept))} where "
            f"learner.attention ({name}) was set: {remedy}"
        )


def remove_dropout(model: PreTrainedModel) -> None:
    """Set the rate of every dropout of a model to 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
