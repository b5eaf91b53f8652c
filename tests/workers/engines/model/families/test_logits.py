"""Scales and soft caps of logits, by hand."""

from types import SimpleNamespace

import pytest

from workers.engines.model.families.logits import logit_scale, logit_softcap


def config(model_type: str = "llama", **settings: object) -> SimpleNamespace:
    return SimpleNamespace(model_type=model_type, **settings)


def test_a_plain_model_has_neither() -> None:
    assert logit_scale(config()) == 1.0
    assert logit_softcap(config(final_logit_softcapping=None)) is None


def test_scales_multiply_and_granite_divides() -> None:
    assert logit_scale(config("cohere", logit_scale=0.0625)) == 0.0625
    assert logit_scale(config("granite", logits_scaling=8)) == 0.125
    assert logit_scale(config("hyperclovax", logits_scaling=8)) == 8.0
    assert logit_scale(config("falcon_h1", lm_head_multiplier=0.5)) == 0.5


def test_both_names_of_a_soft_cap_are_known() -> None:
    assert logit_softcap(config(final_logit_softcapping=30)) == 30.0
    assert logit_softcap(config(logits_soft_cap=20.0)) == 20.0


@pytest.mark.parametrize("value", [0.0, -1.0, "inv_sqrt_d_model"])
def test_a_scale_that_is_no_positive_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="logit_scale=.*must be a positive number"):
        logit_scale(config(logit_scale=value))
