"""Learning-rate factors by hand."""

import pytest

from workers.engines.zero.schedules import lr_factor


def factors(name: str, total: int | None = None, warmup: int = 0) -> list[float]:
    return [
        round(lr_factor(name, steps_taken=step, warmup_steps=warmup, total_steps=total), 6)
        for step in range(6)
    ]


def test_schedules_by_hand() -> None:
    assert factors("constant") == [1.0] * 6
    assert factors("constant", warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors("linear", total=4) == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    # after one step of warm-up, four steps: 1, (1 + cos 45 deg) / 2, 1/2, (1 + cos 135 deg) / 2, 0
    assert factors("cosine", total=5, warmup=1) == [1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0]


def test_a_schedule_shorter_than_its_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="total_steps=3 is below warmup_steps=5"):
        lr_factor("linear", steps_taken=0, warmup_steps=5, total_steps=3)
