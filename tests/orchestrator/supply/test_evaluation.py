"""pass@k and maj@k against counts done by hand."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import ray

from conf.compose import compose
from orchestrator.planning.sources import Sources
from orchestrator.supply.evaluation import Evaluator, heldout_sets, pass_at, summarise
from orchestrator.telemetry.counting import describe_reasons
from orchestrator.telemetry.heldout import HeldoutAnswer, HeldoutResult
from workers.data.prompts import PromptSet
from workers.data.sources.source import PromptSource
from workers.data.trajectory import RolloutGroup, Trajectory, describe, to_record_batch


def answer(uid, response, reward, outcome="scored", correct=None):
    return HeldoutAnswer(
        prompt_uid=uid,
        prompt=uid,
        response=response,
        ground_truth="7",
        reward=reward,
        outcome=outcome,
        correct=correct,
    )


def test_pass_at_counts_subsets():
    # 4 samples, 1 right: of the C(4,2) = 6 pairs, 3 hold the right one.
    assert pass_at(4, 1, 1) == pytest.approx(0.25)
    assert pass_at(4, 1, 2) == pytest.approx(3 / 6)
    assert pass_at(4, 0, 2) == 0.0
    assert pass_at(4, 3, 2) == 1.0
    assert pass_at(10, 3, 4) == pytest.approx(1 - math.comb(7, 4) / math.comb(10, 4))


def test_summary_of_two_prompts():
    answers = [
        answer("a", "7", 1.0),
        answer("a", "7\n", 1.0),
        answer("a", "8", 0.0),
        answer("a", "9", 0.0),
        answer("b", "5", 0.0),
        answer("b", "5", 0.0),
        answer("b", "7", 1.0),
        answer("b", "", None, "failed:timeout"),
    ]
    metrics = summarise(answers)
    assert metrics["mean"] == pytest.approx(3 / 8)
    assert metrics["failed_frac"] == pytest.approx(1 / 8)
    assert metrics["pass@1"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert metrics["pass@2"] == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert metrics["pass@4"] == 1.0
    assert metrics["maj@4"] == pytest.approx(0.5)  # a: "7" is right; b: "5" is not


def test_right_is_what_the_scorer_calls_correct():
    """Right answers earn 0.9, and a wrong one 1.0 for its format: pass@1 is 2/3, the mean 2.8/3."""
    answers = [
        answer("a", "7", 0.9, correct=True),
        answer("b", "7", 0.9, correct=True),
        answer("c", "8", 1.0, correct=False),
    ]
    metrics = summarise(answers)
    assert metrics["pass@1"] == pytest.approx(2 / 3)
    assert metrics["mean"] == pytest.approx(2.8 / 3)


def test_an_abstention_is_neither_a_failure_nor_a_zero():
    answers = [
        answer("a", "7", 1.0),
        answer("b", "?", None, "dropped:abstained"),
        answer("c", "", None, "failed:timeout"),
        answer("d", "8", 0.0),
    ]
    metrics = summarise(answers)
    assert metrics["mean"] == pytest.approx(1 / 3)
    assert metrics["failed_frac"] == 0.25
    assert metrics["abstained_frac"] == 0.25


def test_answers_vote_and_not_the_words_around_them():
    """Eight responses of different words, seven with the right answer."""
    answers = [
        replace(answer("a", f"word {number} so 72", 1.0), answer="72") for number in range(7)
    ]
    answers.append(replace(answer("a", "so 7", 0.0), answer="7"))
    assert summarise(answers)["maj@8"] == 1.0
    assert summarise([replace(each, answer=None) for each in answers[6:]])["maj@2"] == 1.0


def test_a_response_without_an_answer_has_no_vote_where_others_have_one():
    answers = [
        answer("a", "no idea", 0.0),
        answer("a", "no idea", 0.0),
        replace(answer("a", "so 7", 1.0), answer="7"),
    ]
    assert summarise(answers)["maj@3"] == 1.0


def test_intervals_are_over_prompts_and_not_over_samples():
    one = [answer(str(prompt), "7", float(prompt < 6)) for prompt in range(12)]
    metrics, repeated = summarise(one), summarise([each for each in one for _ in range(50)])
    assert metrics["pass@1_low"] == pytest.approx(0.2538, abs=1e-4)  # Wilson, 6 of 12
    assert metrics["pass@1_high"] == pytest.approx(0.7462, abs=1e-4)
    for name in ("pass@1_low", "pass@1_high", "mean_low", "mean_high"):
        assert repeated[name] == metrics[name]
    assert metrics["mean_low"] < metrics["mean"] < metrics["mean_high"]


class Engines:
    """Answers every request with its number of samples, all right but the first of each."""

    def submit(self, requests):
        self.requests = {request.group_id: request for request in requests}
        self.aside = []

    def set_aside(self, group_ids):
        self.wanted = list(group_ids)

    def take_aside(self):
        taken, self.aside = self.aside, []
        return [self._group(self.requests[name]) for name in taken]

    def wait(self, group_ids):
        return [self._group(self.requests[name]) for name in reversed(group_ids)]

    def _group(self, request):
        trajectories = [
            Trajectory(
                run_id="r",
                begun_version=3,
                prompt_uid=request.prompt_uid,
                group_id=request.group_id,
                rollout_id=f"{request.group_id}/{k}",
                dataset=request.dataset,
                tokens=[1, 2],
                loss_mask=[False, True],
                rollout_logprobs=[0.0, -0.5],
                weight_versions=[-1, 3],
                finish_reason="stop",
                outcome="scored",
                reward=float(k > 0),
                reward_notes={"exact/answer": str(k)},
                response_text=f"response {k}",
            )
            for k in range(request.num_samples)
        ]
        metas = tuple(describe(each) for each in trajectories)
        batch = to_record_batch(trajectories)
        return RolloutGroup(group_id=request.group_id, metas=metas, batch=batch, start=0)


@pytest.fixture
def sources(tmp_path):
    sets = {}
    for name, count in (("", 3), ("sums", 2), ("words", 4)):
        path = tmp_path / f"{name or 'heldout'}.jsonl"
        path.write_text('{"prompt": "1+1=", "ground_truth": ["2", "two"]}\n' * count)
        source = PromptSource(
            path,
            name=name or None,
            prompt_column="prompt",
            ground_truth_column="ground_truth",
            more={"evaluation_set": name} if name else None,
        )
        sets[name] = PromptSet.of([source])
    heldout = sets.pop("")
    return Sources(
        model_path=tmp_path, critic_path=tmp_path, train=heldout, heldout=heldout, sets=sets
    )


def test_every_set_has_its_own_samples_sampling_and_scores(sources, monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "get", lambda batch: batch)  # no cluster is needed to read a batch
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [tiny]\n"
        "evaluation:\n"
        "  sets:\n"
        "    sums: {path: sums.jsonl, samples_per_prompt: 4, limit: 1}\n"
        "    words: {path: words.jsonl, sampling: {temperature: 0.5, max_new_tokens: 3}}\n"
    )
    _, config = compose(["experiment=mine", "data.eval_limit=2"], config_dir=str(tmp_path))
    engines = Engines()
    result = Evaluator(engines, heldout_sets(config, sources)).run(3)
    requests = list(engines.requests.values())
    assert [(r.prompt_uid, r.num_samples, r.sampling.temperature) for r in requests] == [
        ("heldout:0", 1, 0.0),
        ("heldout:1", 1, 0.0),
        ("sums:0", 4, 0.0),
        *((f"words:{row}", 1, 0.5) for row in range(4)),
    ]
    assert requests[2].columns == {"dataset": "sums", "evaluation_set": "sums"}
    metrics = result.metrics
    assert (metrics["mean"], metrics["sums/mean"], metrics["words/mean"]) == (0.0, 0.75, 0.0)
    assert metrics["sums/pass@2"] == 1.0
    assert "pass@2" not in metrics
    assert [(a.heldout_set, a.answer) for a in result.answers[2:6]] == [
        ("sums", str(k)) for k in range(4)
    ]


def test_an_evaluation_beside_training_is_there_when_its_last_group_is(sources, monkeypatch):
    monkeypatch.setattr(ray, "get", lambda batch: batch)
    _, config = compose(["experiment=tiny"])
    engines = Engines()
    evaluator = Evaluator(engines, heldout_sets(config, replace(sources, sets={})))
    evaluator.begin(2)
    assert engines.wanted == [f"eval-2--{row}" for row in range(3)]
    assert evaluator.poll() is None
    engines.aside = engines.wanted[1:]
    assert evaluator.poll() is None
    engines.aside = engines.wanted[:1]
    result = evaluator.poll()
    assert [answer.prompt_uid for answer in result.answers] == [
        f"heldout:{row}" for row in range(3)
    ]
    assert result.metrics["newer_weights_frac"] == 1.0  # sampled by version 3
    evaluator.begin(3)
    engines.aside = engines.wanted[1:]
    assert "newer_weights_frac" not in evaluator.finish().metrics


def test_an_evaluation_in_which_every_sample_failed_says_why():
    failed = [answer("a", "", None, "failed:ValueError: no such column")] * 3
    answers = (*failed, answer("b", "", None, "failed:timeout"))
    result = HeldoutResult(metrics={}, answers=answers)
    assert result.all_failed() == describe_reasons(
        Counter({"failed:ValueError: no such column": 3, "failed:timeout": 1})
    )
    assert HeldoutResult(metrics={}, answers=(*answers, answer("c", "7", 0.0))).all_failed() is None
