"""Names of the parts of vision-language models, and the parameters that a run freezes.

Run by the driver, which reads names from file headers, and by the learner's ranks. Imports no
torch.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

#: Bytes of features that a rank keeps of a frozen tower.
KEPT_BYTES = 1 << 30
#: By `model_type`: name prefixes of tower and connector, as transformers and as folders write them.
VISION_PREFIXES = {
    "qwen2_5_vl": ("model.visual.", "visual."),
    "idefics3": ("model.vision_model.", "model.connector."),
}


def is_vision_name(name: str, model_type: str | None) -> bool:
    """Return True for a parameter of the tower, or of the connector between tower and decoder."""
    return name.startswith(VISION_PREFIXES.get(model_type or "", ("\0",)))


def frozen_names(
    names: Iterable[str], model_type: str | None, patterns: Sequence[str] | None
) -> set[str]:
    """Return the names of the parameters that a run leaves as they were loaded.

    Args:
        names: of all parameters of the model.
        model_type: of its configuration.
        patterns: shell patterns of names, such as `model.visual.*`; None freezes the tower and the
            connector of a vision-language model, and nothing of others.

    Raises:
        ValueError: a pattern that no name matches, or patterns that all names match.
    """
    every = list(names)
    if patterns is None:
        return {name for name in every if is_vision_name(name, model_type)}
    frozen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in every if fnmatchcase(name, pattern)}
        if not matched:
            heads = sorted({".".join(name.split(".")[:2]) for name in every})
            raise ValueError(
                f"model.freeze: {pattern!r} matches no parameter of this model; names begin with "
                f"{', '.join(heads)}; write patterns such as {heads[0]}.*"
            )
        frozen |= matched
    if len(frozen) == len(every):
        raise ValueError(f"model.freeze={list(patterns)} leaves nothing to train; freeze less")
    return frozen
