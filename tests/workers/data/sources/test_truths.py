"""A cell of the ground truth's column becomes text, or several texts."""

import pytest

from workers.data.sources.truths import read_truth


@pytest.mark.parametrize(
    ("cell", "truth"),
    [
        ("5", "5"),
        (5, "5"),
        (2.0, "2"),  # a whole number in a column with a null
        (-3.0, "-3"),
        (2.5, "2.5"),
        (1e300, "1e+300"),
        (float("nan"), None),
        (None, None),
        ("", ""),
        (True, "True"),
        (["5", 5.0, None], ["5", "5"]),
        ([], None),
        ([None], None),
    ],
)
def test_a_cell_is_read_as(cell, truth):
    assert read_truth(cell) == truth


@pytest.mark.parametrize("cell", [{"style": "rule"}, [{"gold": "5"}], [["5"]]])
def test_a_record_is_refused(cell):
    with pytest.raises(ValueError, match="a record or a list of them"):
        read_truth(cell)
