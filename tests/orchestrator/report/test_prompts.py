"""Groups and prompts are judged by their rewards; answers are followed over evaluations."""

from pathlib import Path

from orchestrator.report.prompts import group_counts, heldout_answers, outcomes, prompts
from orchestrator.report.rows import RecordedStep


def recorded(step, groups, outcome="failed:timeout"):
    """A step of {group and prompt: rewards}; None has no reward."""
    rows = [(name, reward) for name, rewards in groups.items() for reward in rewards]
    return RecordedStep(
        step=step,
        file=Path("unread"),
        small={
            "group_id": [name for name, _ in rows],
            "prompt_uid": [name for name, _ in rows],
            "reward": [reward for _, reward in rows],
            "outcome": ["scored" if reward is not None else outcome for _, reward in rows],
        },
        facts={},
    )


STEPS = [
    recorded(1, {"a": [0.0, 0.0], "b": [0.0, 1.0], "c": [None, None]}),
    recorded(2, {"a": [1.0, 1.0], "b": [0.5, 0.5], "d": [0.2, 0.1]}, outcome="failed:crash"),
]


def test_groups_are_solved_mixed_equal_or_unscored():
    assert group_counts(STEPS) == {
        "steps": [1, 2],
        "solved": [0, 1],
        "mixed": [1, 1],
        "equal": [1, 1],
        "unscored": [1, 0],
    }


def test_prompts_are_judged_over_the_run():
    found = prompts(STEPS)
    assert found["counts"] == {"solved": 1, "sometimes": 1, "never": 1}
    assert found["total"] == 3  # c has no reward
    rows = {row["uid"]: (row["verdict"], row["steps"], row["means"]) for row in found["rows"]}
    assert rows == {
        "a": ("solved", [1, 2], [0, 1]),
        "b": ("sometimes", [1, 2], [0.5, 0.5]),
        "d": ("never", [2], [0.15]),
    }


def test_outcomes_are_counted_with_their_steps():
    assert outcomes(STEPS) == [
        {"outcome": "scored", "samples": 10, "first": 1, "last": 2},
        {"outcome": "failed:timeout", "samples": 2, "first": 1, "last": 1},
    ]


def answer(uid, text):
    return {"prompt_uid": uid, "prompt": f"{uid}=", "response": text, "reward": 1.0}


def test_a_held_out_prompt_shows_its_answer_after_each_evaluation_changed_ones_first():
    found = heldout_answers(
        {
            10: [answer("same", "4"), answer("other", "8"), answer("other", "a second sample")],
            0: [answer("same", "4"), answer("other", "?")],
        }
    )
    assert [prompt["uid"] for prompt in found] == ["other", "same"]
    assert [(a["step"], a["text"]) for a in found[0]["answers"]] == [(0, "?"), (10, "8")]


def test_of_many_evaluations_some_are_shown_and_damaged_answers_do_no_harm():
    found = heldout_answers({step: [answer("p", str(step))] for step in range(100)})
    assert [a["step"] for a in found[0]["answers"]] == [0, 14, 28, 42, 57, 71, 85, 99]
    (odd,) = heldout_answers({0: [{"prompt_uid": 3}]})
    assert odd["answers"] == [{"step": 0, "text": "", "reward": None, "outcome": ""}]
