"""One group's order of events, on an engine and a reward whose answers the test arranges."""

import asyncio
from dataclasses import dataclass

from workers.data.requests import GroupRequest, Sample, Sampling
from workers.data.trajectory import STOPPED_EARLY
from workers.engines.vllm.answers import UnusableAnswerError
from workers.reward.base import RewardResult
from workers.rollout.environments.single_turn import Interaction, SingleTurn
from workers.rollout.group_play import EarlyStop, GroupPlay, RolloutContext
from workers.spans import SpanLog


class Engine:
    """Answers request r after `turns[r]` turns of the event loop, or when it is aborted."""

    def __init__(self, turns, broken=()):
        self.turns, self.broken = turns, broken
        self.asked, self.aborted = [], set()

    async def generate(self, tokens, *, request_id, sampling, seed):
        self.asked.append((request_id, list(tokens), seed))
        if request_id in self.broken:
            raise UnusableAnswerError("non-finite log-prob")
        for drawn in range(self.turns[request_id]):
            if request_id in self.aborted:
                return self.answer(drawn, "abort")
            await asyncio.sleep(0)
        return self.answer(self.turns[request_id], "stop")

    @staticmethod
    def answer(count, reason):
        return Sample(
            tokens=[7] * count,
            logprobs=[-1.0] * count,
            weight_versions=[3] * count,
            finish_reason=reason,
            text="x" * count,
        )

    async def abort(self, request_ids):
        self.aborted |= set(request_ids)


class Encoder:
    def encode(self, prompt):
        return [1, 2], None

    def text(self, prompt):
        return prompt


class Rewards:
    """A response earns what stands in `rewards` for its length."""

    def __init__(self, rewards):
        self.rewards, self.scored = rewards, []

    async def score(self, sample):
        self.scored.append(len(sample.response))
        await asyncio.sleep(0)
        reward = self.rewards[len(sample.response)]
        return RewardResult(outcome="scored", reward=reward, parts={}, seconds=0.0)


@dataclass(frozen=True, kw_only=True)
class TwoTurns(SingleTurn):
    """Asks for a second response after the first."""

    async def play(self, prompt_tokens, draw):
        first = await draw(prompt_tokens)
        return await super().play([*prompt_tokens, *first.tokens, 9], draw)


def play(engine, rewards, *, samples, environment=None, early_stop=None, scores_together=False):
    request = GroupRequest(
        group_id="g",
        prompt_uid="p",
        begun_version=1,
        dataset="d",
        prompt="q",
        ground_truth=None,
        num_samples=samples,
        seed=40,
        sampling=Sampling(max_tokens=99),
        may_stop_early=True,
    )
    context = RolloutContext(
        run_id="run",
        engine=engine,
        encoder=Encoder(),
        environment=environment or SingleTurn(),
        rewards=rewards,
        early_stop=early_stop,
        spans=SpanLog(),
        scores_together=scores_together,
    )
    return GroupPlay(request, context)


def differ(rewards, num_left):
    return num_left == 0 or max(rewards) > min(rewards)


def outcomes(siblings):
    return [(one.outcome, one.reward, sum(v >= 0 for v in one.weight_versions)) for one in siblings]


def test_every_turn_of_a_group_asks_the_same_engine_with_a_longer_prefix():
    engine = Engine({f"g/{k}/{turn}": 2 + k for k in range(2) for turn in (1, 2)})
    group = play(engine, Rewards({2: 0.0, 3: 1.0}), samples=2, environment=TwoTurns())
    siblings = asyncio.run(group.run())
    assert [s.reward for s in siblings] == [0.0, 1.0]
    asked = {name: (tokens, seed) for name, tokens, seed in engine.asked}
    assert asked["g/1/1"] == ([1, 2], 41)
    assert asked["g/1/2"] == ([1, 2, 7, 7, 7, 9], 41)
    assert group.drawing == set()


def test_the_rest_stops_once_enough_are_scored_and_differ():
    """Scored after 5, 9 and 14 turns with 0, 0 and 1: two of them settle nothing, three do."""
    engine = Engine({"g/0/1": 9, "g/1/1": 60, "g/2/1": 5, "g/3/1": 14, "g/4/1": 80})
    rewards = Rewards({5: 0.0, 9: 0.0, 14: 1.0})
    rule = EarlyStop(settled=differ, min_samples=2)
    found = outcomes(asyncio.run(play(engine, rewards, samples=5, early_stop=rule).run()))
    assert rewards.scored == [5, 9, 14]
    assert engine.aborted == {"g/1/1", "g/4/1"}
    assert [found[k] for k in (0, 2, 3)] == [
        ("scored", 0.0, 9),
        ("scored", 0.0, 5),
        ("scored", 1.0, 14),
    ]
    for k in (1, 4):
        outcome, reward, drawn = found[k]
        assert (outcome, reward) == (STOPPED_EARLY, None)
        assert 14 <= drawn < 60  # what it had when it was stopped


def test_too_few_scored_samples_stop_nobody():
    engine = Engine({"g/0/1": 2, "g/1/1": 4, "g/2/1": 50})
    rewards = Rewards({2: 0.0, 4: 1.0, 50: 1.0})
    rule = EarlyStop(settled=differ, min_samples=3)
    found = outcomes(asyncio.run(play(engine, rewards, samples=3, early_stop=rule).run()))
    assert [outcome for outcome, _, _ in found] == ["scored"] * 3
    assert engine.aborted == set()


def test_a_sibling_between_two_turns_is_not_drawn_again():
    class Waits(TwoTurns):
        async def play(self, prompt_tokens, draw):
            first = await draw(prompt_tokens)
            if len(first.tokens) == 3:  # a tool that takes its time
                for _ in range(50):
                    await asyncio.sleep(0)
                await draw([*prompt_tokens, *first.tokens])
            return Interaction(
                tokens=[*prompt_tokens, *first.tokens],
                loss_mask=[False, False, *[True] * len(first.tokens)],
                rollout_logprobs=[0.0, 0.0, *first.logprobs],
                weight_versions=[-1, -1, *first.weight_versions],
                finish_reason=first.finish_reason,
                response_text=first.text,
                num_turns=1,
            )

    engine = Engine({"g/0/1": 1, "g/1/1": 3, "g/2/1": 2})
    rule = EarlyStop(settled=differ, min_samples=2)
    group = play(engine, Rewards({1: 0.0, 2: 1.0}), samples=3, environment=Waits(), early_stop=rule)
    found = outcomes(asyncio.run(group.run()))
    assert found[1] == (STOPPED_EARLY, None, 0)
    assert [name for name, _, _ in engine.asked] == ["g/0/1", "g/1/1", "g/2/1"]


def test_what_the_engine_gave_up_or_garbled_is_never_scored():
    engine = Engine({"g/0/1": 4, "g/1/1": 4, "g/2/1": 4}, broken=["g/2/1"])
    engine.aborted.add("g/1/1")
    rewards = Rewards({4: 0.5})
    found = outcomes(asyncio.run(play(engine, rewards, samples=3).run()))
    assert found == [
        ("scored", 0.5, 4),
        ("failed:engine aborted", None, 0),
        ("failed:non-finite log-prob", None, 0),
    ]
    assert rewards.scored == [4]


def test_a_cancelled_group_says_what_the_engine_still_holds():
    async def run():
        engine = Engine({"g/0/1": 2, "g/1/1": 10**6})
        group = play(engine, Rewards({2: 1.0}), samples=2)
        task = asyncio.create_task(group.run())
        while not group.drawing or "g/0/1" in group.drawing:
            await asyncio.sleep(0)
        held = set(group.drawing)
        task.cancel()
        await asyncio.wait([task])
        return held, task.cancelled()

    assert asyncio.run(run()) == ({"g/1/1"}, True)


def test_a_scorer_of_whole_groups_gets_all_siblings_that_finished_once():
    """Siblings of 9, 5 and 7 turns finish in another order and arrive in their own."""

    class Ranks:
        calls = ()

        async def score_group(self, siblings):
            self.calls = (*self.calls, [len(sample.response) for sample in siblings])
            longest = max(len(sample.response) for sample in siblings)
            rewards = [float(len(sample.response) == longest) for sample in siblings]
            return [RewardResult(outcome="scored", reward=reward) for reward in rewards]

    rewards = Ranks()
    engine = Engine({"g/0/1": 9, "g/1/1": 5, "g/2/1": 7})
    group = play(engine, rewards, samples=3, scores_together=True)
    assert outcomes(asyncio.run(group.run())) == [
        ("scored", 1.0, 9),
        ("scored", 0.0, 5),
        ("scored", 0.0, 7),
    ]
    assert rewards.calls == ([9, 5, 7],)
