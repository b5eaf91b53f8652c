"""Read from a configuration what a model does to the logits of its head: a scale, then a soft cap.

transformers does both in the `forward` of each family, behind the head; the packed head, which
never holds all logits, has to do them itself. Runs in the ranks of learner and reference. The
self-test at load finds a family whose logits are changed in a way that is not read here.
"""

from typing import Any

# Factors of the logits, by the name of their setting: Cohere, Falcon-H1, Muse.
FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
# Divides the logits (Granite, MiniCPM3), except in the families that multiply by it.
DIVISOR = "logits_scaling"
MULTIPLYING_FAMILIES = ("hyperclovax",)
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma, RecurrentGemma


def logit_scale(config: Any) -> float:
    """Return the factor c of a model's logits, c x (hidden W^T + bias); 1.0 where there is none.

    Args:
        config: transformers' text configuration.

    Raises:
        ValueError: a scale that is no positive number.
    """
    scale = 1.0
    for name in (*FACTORS, DIVISOR):
        value = getattr(config, name, None)
        if value is None:
            continue
        if not isinstance(value, int | float) or not value > 0:
            raise ValueError(
                f"{name}={value!r} in the model's config.json: the scale of logits must be a "
                "positive number; use another model"
            )
        divides = name == DIVISOR and not config.model_type.startswith(MULTIPLYING_FAMILIES)
        scale *= 1.0 / value if divides else float(value)
    return scale


def logit_softcap(config: Any) -> float | None:
    """Return the c of c x tanh(logits / c) that a model ends with; None where there is none.

    Args:
        config: transformers' text configuration.
    """
    found = (getattr(config, name, None) for name in SOFT_CAPS)
    return next((float(value) for value in found if value is not None), None)
