"""Final answers of published solutions."""

import pytest

from workers.tasks.answers import after_hashes, last_boxed


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("#### 1,234,567", "1234567"),
        ("#### $18 ", "18"),
        ("#### -3.5\n", "-3.5"),
        ("#### 1\n#### 2", "2"),
        ("The answer is 72.", None),
    ],
)
def test_after_hashes(solution, answer):
    assert after_hashes(solution) == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{3} and then \boxed{ 4 }", "4"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"thus $\boxed 5$.", "5"),
        (r"\fbox{A}", "A"),
        (r"\boxed{never closed", None),
        ("no box", None),
    ],
)
def test_last_boxed(solution, answer):
    assert last_boxed(solution) == answer
