"""Every check lets its bounds pass, refuses what is outside, and names value and remedy."""

import math

import pytest
import torch

from algorithms.validation import (
    check_at_least,
    check_choice,
    check_finite,
    check_fraction,
    check_number,
    check_ordered,
    check_positive,
    present,
)


def test_bounds_pass():
    check_number("eps", 0)
    check_at_least("eps", 2.0, 2.0)
    check_at_least("eps", math.inf, 0.0)
    check_positive("eps", 1e-30)
    check_fraction("eps", 0)
    check_fraction("eps", 1)
    check_finite("eps", -1e300)
    check_ordered("low", 0.1, "high", 0.2)
    check_choice("kind", "k3", ("k1", "k3"))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_number("eps", "0.2"), "eps='0.2' is no number; write it as"),
        (lambda: check_number("eps", True), "eps=True is no number"),
        (lambda: check_at_least("eps", 1.9, 2.0), "eps=1.9 is below 2.0; set eps to 2.0 or more"),
        (lambda: check_at_least("eps", math.nan, 0.0), "eps=nan is below 0.0"),
        (lambda: check_positive("eps", 0.0), "eps=0.0 is not positive; set eps above 0"),
        (lambda: check_positive("eps", math.nan), "eps=nan is not positive"),
        (lambda: check_fraction("eps", 1.01), "eps=1.01 is outside"),
        (lambda: check_fraction("eps", math.nan), "eps=nan is outside"),
        (lambda: check_finite("eps", math.inf), "eps=inf is not finite"),
        (lambda: check_ordered("low", 0.2, "high", 0.2), "low=0.2 is not below high=0.2"),
        (lambda: check_choice("kind", "k9", ("k3", "k1")), "kind='k9' is unknown; .* k1, k3"),
    ],
)
def test_what_is_outside_is_refused_with_its_value(check, message):
    with pytest.raises(ValueError, match=message):
        check()


def test_a_column_that_nobody_filled_in_is_named():
    column = torch.ones(2)
    assert present("values", column) is column
    with pytest.raises(ValueError, match="column 'values' is None"):
        present("values", None)
