"""Held-out sets that can't be are refused with the key and the remedy."""

import pytest

from conf.schema.evaluation import EvaluationConfig, EvaluationSetConfig
from conf.schema.rollout import SamplingConfig


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("a/b", {}, "evaluation.sets='a/b': use letters"),
        ("a", {"limit": -1}, "evaluation.sets.a.limit=-1: must not be negative"),
        ("a", {"samples_per_prompt": 0}, "sets.a.samples_per_prompt=0: must be at least 1"),
        ("a", {"prompt_template": "Q:"}, r"sets.a.prompt_template='Q:': has no \{prompt\}"),
        ("a", {"sampling": SamplingConfig(temperature=-1)}, "sets.a.sampling.temperature=-1"),
    ],
)
def test_what_cannot_be_is_refused(name, values, message):
    config = EvaluationConfig(sets={name: EvaluationSetConfig(path="a.jsonl", **values)})
    with pytest.raises(ValueError, match=message):
        config.check()


def test_a_greedy_set_is_accepted():
    own = EvaluationSetConfig(path="a.jsonl", sampling=SamplingConfig(temperature=0.0))
    found = EvaluationConfig(sets={"aime24": own})
    found.check()
    assert found.sets["aime24"].sampling.temperature == 0.0
