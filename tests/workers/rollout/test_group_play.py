"""One group's order of events, on an engine and a reward whose answers the test arranges."""

import asyncio
import contextlib
import math
from dataclasses import dataclass, replace

import pytest

from workers.data.requests import GroupRequest, Sample, Sampling
from workers.data.trajectory import STOPPED_EARLY, to_record_batch
from workers.engines.vllm.answers import UnusableAnswerError
from workers.engines.vllm.process import EngineTimeoutError
from workers.failures import EngineDiedError
from workers.reward.base import RewardResult
from workers.rollout.early_stop import EarlyStop
from workers.rollout.environments import guarded_play
from workers.rollout.environments.contract import Outcome
from workers.rollout.environments.single_turn import SingleTurn
from workers.rollout.group_play import GroupPlay, RolloutContext, turn_seed
from workers.rollout.limits import BoundedEnvironment, RolloutLimits
from workers.rollout.turn_texts import TurnTexts
from workers.spans import SpanLog


class Engine:
    """Answers request r after `turns[r]` turns of the event loop, or when it is aborted."""

    def __init__(self, turns, broken=()):
        self.turns, self.broken = turns, broken
        self.asked, self.aborted = [], set()

    async def generate(self, tokens, *, request_id, sampling, seed, images):
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
    image_settings = None  # prompts show no images

    def __init__(self, fault=None):
        self.fault = fault

    def encode(self, prompt):
        return [1, 2], self.fault

    def text(self, prompt):
        return prompt

    def prefill(self, prompt):
        return "<think>\n"

    def continuation(self, text):
        return [ord(letter) for letter in text]


class Rewards:
    """A response earns what stands in `rewards` for its length."""

    def __init__(self, rewards):
        self.rewards, self.scored = rewards, []

    async def score(self, sample):
        self.scored.append(len(sample.response))
        await asyncio.sleep(0)
        reward = self.rewards[len(sample.response)]
        return RewardResult(outcome="scored", reward=reward, parts={}, seconds=0.0)


class TwoTurns(SingleTurn):
    """Asks for a second response after the first, of which the scorer sees the second."""

    async def play(self, task, session):
        await session.draw()
        session.observe_tokens([9])
        return await super().play(task, session)


def play(
    engine,
    rewards,
    *,
    samples,
    environment=None,
    early_stop=None,
    limits=None,
    prompt_fault=None,
    scores_together=False,
    include_prefill=False,
    others=None,
    named="",
):
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
        environment=named,
    )
    encoder = Encoder(prompt_fault)
    context = RolloutContext(
        run_id="run",
        engine=engine,
        encoder=encoder,
        texts=TurnTexts(encoder),
        environments={
            "": BoundedEnvironment(
                environment=environment or SingleTurn(),
                limits=limits or RolloutLimits(max_turns=4),
            ),
            **(others or {}),
        },
        rewards=rewards,
        early_stop=early_stop,
        spans=SpanLog(),
        scores_together=scores_together,
        include_prefill=include_prefill,
    )
    return GroupPlay(request, context)


def differ(rewards, num_left):
    return num_left == 0 or max(rewards) > min(rewards)


def outcomes(siblings):
    return [(one.outcome, one.reward, sum(v >= 0 for v in one.weight_versions)) for one in siblings]


@pytest.mark.parametrize(
    ("named", "turns", "end"),
    [("", 1, "stop"), ("data.sources.long", 2, "stop"), ("data.sources.cut", 1, "length")],
)
def test_a_group_is_played_in_the_environment_of_its_source_with_its_budgets(named, turns, end):
    two = TwoTurns()
    others = {
        "data.sources.long": BoundedEnvironment(environment=two, limits=RolloutLimits(max_turns=2)),
        "data.sources.cut": BoundedEnvironment(environment=two, limits=RolloutLimits(max_turns=1)),
    }
    engine = Engine({"g/0/1": 2, "g/0/2": 3})
    rewards = Rewards({2: 0.0, 3: 1.0})
    group = play(engine, rewards, samples=1, others=others, named=named)
    (row,) = asyncio.run(group.run())
    assert (row.num_turns, row.finish_reason, row.outcome) == (turns, end, "scored")


def test_every_turn_of_a_group_asks_the_same_engine_with_a_longer_prefix():
    engine = Engine({f"g/{k}/{turn}": 2 + k for k in range(2) for turn in (1, 2)})
    group = play(engine, Rewards({2: 0.0, 3: 1.0}), samples=2, environment=TwoTurns())
    siblings = asyncio.run(group.run())
    assert [s.reward for s in siblings] == [0.0, 1.0]
    asked = {name: (tokens, seed) for name, tokens, seed in engine.asked}
    assert asked["g/1/1"] == ([1, 2], 41)
    assert asked["g/1/2"][0] == [1, 2, 7, 7, 7, 9]
    assert len({seed for _, _, seed in engine.asked}) == 4  # every turn draws with its own
    assert group.drawing == set()
    second = siblings[1]
    assert second.tokens == [1, 2, 7, 7, 7, 9, 7, 7, 7]
    assert second.loss_mask == [False, False, True, True, True, False, True, True, True]
    assert second.rollout_logprobs == [0.0, 0.0, -1.0, -1.0, -1.0, 0.0, -1.0, -1.0, -1.0]
    assert second.weight_versions == [-1, -1, 3, 3, 3, -1, 3, 3, 3]
    assert [(span.number, span.start, span.end) for span in second.turns] == [(1, 2, 5), (2, 6, 9)]
    assert (second.num_turns, second.response_text) == (2, "xxx")


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
    class Waits(SingleTurn):
        async def play(self, task, session):
            ended = await super().play(task, session)
            if len(ended.response) == 3:  # a tool that takes its time
                for _ in range(50):
                    await asyncio.sleep(0)
                await session.draw()
            return ended

    engine = Engine({"g/0/1": 1, "g/1/1": 3, "g/2/1": 2})
    rule = EarlyStop(settled=differ, min_samples=2)
    group = play(engine, Rewards({1: 0.0, 2: 1.0}), samples=3, environment=Waits(), early_stop=rule)
    found = outcomes(asyncio.run(group.run()))
    assert found[1] == (STOPPED_EARLY, None, 3)  # its finished turn is recorded
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


def test_a_prompt_that_is_none_is_dropped_and_its_row_is_named():
    engine = Engine({})
    found = outcomes(asyncio.run(play(engine, Rewards({}), samples=2, prompt_fault="null").run()))
    assert found == [("dropped:p: null", None, 0)] * 2
    assert engine.asked == []


@dataclass(frozen=True, kw_only=True)
class Bad(SingleTurn):
    """Ends as `how` says where the response has three tokens, as `SingleTurn` elsewhere."""

    how: str

    async def play(self, task, session):
        ended = await super().play(task, session)
        if len(ended.response) == 3:
            return await getattr(self, self.how)(ended, session)
        return ended

    async def raises(self, ended, session):
        return session.tokens[99]

    async def exits(self, ended, session):
        raise SystemExit("bye")

    async def waits(self, ended, session):
        await asyncio.Event().wait()

    async def floods(self, ended, session):
        while True:
            await session.observe([{"role": "user", "content": "x" * 5}])

    async def gives_nothing(self, ended, session):
        return None

    async def gives_a_word(self, ended, session):
        return replace(ended, reward="good")

    async def gives_no_number(self, ended, session):
        return replace(ended, turn_rewards=[0.0, math.nan])

    async def gives_a_list(self, ended, session):
        return replace(ended, parts=[1.0])


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raises", "raised IndexError: list index out of range"),
        ("exits", "raised SystemExit: bye"),
        ("waits", "took longer than 0.1 s"),
        ("floods", "raised ValueError: observations of 25 bytes, beyond environment."),
        ("gives_nothing", "returned NoneType instead of an Outcome"),
        ("gives_a_word", "returned reward of type str, not a number"),
        ("gives_no_number", "returned turn reward 1 that is not finite"),
        ("gives_a_list", "returned parts of type list, not a mapping"),
    ],
)
def test_a_fault_of_the_environment_costs_one_sample_and_its_turns_are_recorded(how, reason):
    engine, rewards = Engine({"g/0/1": 2, "g/1/1": 3, "g/2/1": 4}), Rewards({2: 0.0, 4: 1.0})
    limits = RolloutLimits(stretch_s=0.1, max_observation_bytes=20)
    group = play(engine, rewards, samples=3, environment=Bad(how=how), limits=limits)
    siblings = asyncio.run(group.run())
    found = outcomes(siblings)
    assert [found[0], found[2]] == [("scored", 0.0, 2), ("scored", 1.0, 4)]
    outcome, reward, drawn = found[1]
    assert outcome.startswith(f"failed:environment:{reason}")
    assert (reward, drawn) == (None, 3)
    assert siblings[1].tokens == [1, 2, 7, 7, 7]
    assert siblings[1].finish_reason == "abort"


def test_texts_that_are_no_unicode_are_recorded_all_the_same():
    """An agent's JSON or a file's name may hold half a surrogate pair, which Arrow refuses."""

    class Garbles(SingleTurn):
        async def play(self, task, session):
            await session.draw()
            if task.sibling:
                raise OSError("no file \udcff")
            half = "\ud83d"
            notes, parts = {f"n{half}": f"why{half}"}, {f"p{half}": 1.0}
            return Outcome(reward=1.0, response=f"5{half}", notes=notes, parts=parts)

    engine = Engine({"g/0/1": 1, "g/1/1": 1})
    group = play(engine, Rewards({}), samples=2, environment=Garbles())
    first, second = to_record_batch(asyncio.run(group.run())).to_pylist()
    assert (first["response_text"], dict(first["reward_notes"])) == ("5?", {"n?": "why?"})
    assert dict(first["reward_parts"]) == {"p?": 1.0}
    assert second["outcome"] == "failed:environment:raised OSError: no file ?"


def test_the_limit_of_an_environment_does_not_count_what_the_engine_takes():
    class Slow(Engine):
        async def generate(self, tokens, **rest):
            await asyncio.sleep(0.3)
            return await super().generate(tokens, **rest)

    engine = Slow({"g/0/1": 1, "g/0/2": 1})
    group = play(
        engine,
        Rewards({1: 1.0}),
        samples=1,
        environment=TwoTurns(),
        limits=RolloutLimits(max_turns=2, stretch_s=0.1),
    )
    assert [outcome for outcome, _, _ in outcomes(asyncio.run(group.run()))] == ["scored"]


class Insists(SingleTurn):
    """Where the first response has three tokens: draws again, whatever a draw raises.

    It gives up in the end, for the sake of the test, which closes its event loop.
    """

    async def play(self, task, session):
        ended, refused = await super().play(task, session), 0
        while len(ended.response) == 3 and refused < 20:
            try:
                await session.draw()
            except guarded_play.RolloutOverError:
                refused += 1
            except BaseException:
                continue
        return ended


@pytest.fixture
def soon(monkeypatch):
    """Wait for the end of an environment for a part of a second only."""
    monkeypatch.setattr(guarded_play, "END_S", 0.05)
    monkeypatch.setattr(guarded_play, "AGAIN_S", 0.005)


def test_a_loop_of_refused_draws_costs_one_sample(soon):
    """Each of them raises `SpentError` at once; the others must get their turn all the same."""
    engine = Engine({"g/0/1": 3, "g/1/1": 60})
    limits = RolloutLimits(max_turns=1, stretch_s=0.1)
    rewards = Rewards({60: 1.0})
    group = play(engine, rewards, samples=2, environment=Insists(), limits=limits)
    found = outcomes(asyncio.run(group.run()))
    reason = "failed:environment:took longer than 0.1 s, and does not end"
    assert found == [(reason, None, 3), ("scored", 1.0, 60)]


def test_a_sibling_that_ignores_an_early_stop_is_left_behind(soon):
    engine = Engine({"g/0/1": 1, "g/1/1": 3, "g/1/2": 10**6, "g/2/1": 2})
    rule = EarlyStop(settled=differ, min_samples=2)
    limits = RolloutLimits(max_turns=2, stretch_s=0.1)
    rewards = Rewards({1: 0.0, 2: 1.0})
    group = play(engine, rewards, samples=3, environment=Insists(), early_stop=rule, limits=limits)
    found = outcomes(asyncio.run(group.run()))
    assert [outcome for outcome, _, _ in found] == ["scored", STOPPED_EARLY, "scored"]
    assert [name for name, _, _ in engine.asked] == ["g/0/1", "g/1/1", "g/2/1", "g/1/2"]


def test_an_aborted_group_ends_and_draws_no_more_whatever_its_environment_catches(soon):
    """At a pause, at the end, or where its engine died: nobody waits for the environment."""

    async def run():
        engine = Engine({"g/0/1": 3, "g/0/2": 10**6})
        limits = RolloutLimits(max_turns=9)
        group = play(engine, Rewards({}), samples=1, environment=Insists(), limits=limits)
        task = asyncio.create_task(group.run())
        while "g/0/2" not in group.drawing:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.05)
        return task.cancelled(), group.drawing, [name for name, _, _ in engine.asked]

    assert asyncio.run(run()) == (True, set(), ["g/0/1", "g/0/2"])


def test_a_fault_of_the_engine_is_not_the_environments_even_if_it_hides_it():
    class Hides(SingleTurn):
        async def play(self, task, session):
            with contextlib.suppress(Exception):
                await session.draw()
            raise KeyError("tool")

    class Hangs(Engine):
        async def generate(self, tokens, **rest):
            raise EngineTimeoutError("made no step")

    group = play(Hangs({}), Rewards({}), samples=1, environment=Hides())
    with pytest.raises(EngineTimeoutError, match="made no step"):
        asyncio.run(group.run())


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


class Judges(SingleTurn):
    """Gives its own reward to the longer responses, and leaves the others to the scorer."""

    async def play(self, task, session):
        ended = await super().play(task, session)
        if len(ended.response) < 3:
            return replace(ended, parts={"short": 1.0})
        return Outcome(reward=0.5, parts={"own": 1.0}, notes={"why": "long"}, turn_rewards=[0.25])


def test_the_reward_of_an_environment_takes_the_place_of_the_scorers():
    rewards = Rewards({2: 1.0})
    group = play(Engine({"g/0/1": 2, "g/1/1": 3}), rewards, samples=2, environment=Judges())
    scored, judged = asyncio.run(group.run())
    assert rewards.scored == [2]
    assert (scored.reward, scored.reward_parts) == (1.0, {"short": 1.0})
    assert (judged.reward, judged.reward_parts) == (0.5, {"own": 1.0})
    assert (judged.reward_notes, judged.turns[0].reward) == ({"why": "long"}, 0.25)


def test_an_environment_that_draws_beyond_its_turns_ends_as_cut_and_is_scored():
    class Endless(SingleTurn):
        async def play(self, task, session):
            while True:
                await session.draw()

    engine = Engine({f"g/0/{turn}": 2 for turn in (1, 2, 3)})
    rewards = Rewards({5: 0.0})  # "xx", a line break, "xx"
    limits = RolloutLimits(max_turns=2)
    group = play(engine, rewards, samples=1, environment=Endless(), limits=limits)
    (only,) = asyncio.run(group.run())
    assert (only.outcome, only.reward, only.finish_reason) == ("scored", 0.0, "length")
    assert (only.num_turns, len(engine.asked)) == (2, 2)


def test_all_the_time_that_an_environment_takes_is_bounded():
    class Slow(SingleTurn):
        async def play(self, task, session):
            while True:
                await asyncio.sleep(0.04)
                await session.draw()

    engine = Engine({f"g/0/{turn}": 1 for turn in range(1, 10)})
    limits = RolloutLimits(max_turns=9, stretch_s=1.0, total_s=0.1)
    group = play(engine, Rewards({}), samples=1, environment=Slow(), limits=limits)
    (only,) = asyncio.run(group.run())
    assert only.outcome.startswith("failed:environment:took longer than")
    assert only.num_turns <= 2  # none where a busy machine takes the time


def test_branches_are_rows_of_one_sample_that_train_what_each_sampled():
    class Branches(SingleTurn):
        async def play(self, task, session):
            await session.draw()
            other = session.branch(3)
            other.observe_tokens([8])
            await other.draw()
            return Outcome(reward=1.0, turn_rewards=[0.25, 0.75])

    engine = Engine({"g/0/1": 2, "g/0/2": 3})
    first, second = asyncio.run(play(engine, Rewards({}), samples=1, environment=Branches()).run())
    assert (first.rollout_id, first.branch) == ("g/0", 0)
    assert (second.rollout_id, second.branch) == ("g/0", 1)
    assert first.tokens == [1, 2, 7, 7]
    assert second.tokens == [1, 2, 7, 8, 7, 7, 7]
    assert second.loss_mask == [False] * 4 + [True] * 3  # the shared token trains in its own row
    assert [first.turns[0].reward, second.turns[0].reward] == [0.25, 0.75]
    assert [first.reward, second.reward, first.num_turns] == [1.0, 1.0, 2]


def test_a_rollout_whose_engine_dies_between_turns_is_played_again_from_its_first_token():
    """The pool gives the same request to another engine, and the first one's group never ends."""

    class Dies(Engine):
        async def generate(self, tokens, *, request_id, **rest):
            sample = await super().generate(tokens, request_id=request_id, **rest)
            if request_id.endswith("/2"):
                raise EngineDiedError("killed")
            return sample

    turns = {f"g/{k}/{turn}": 2 for k in range(2) for turn in (1, 2)}
    first, second = Dies(turns), Engine(turns)
    with pytest.raises(EngineDiedError, match="killed"):
        asyncio.run(play(first, Rewards({}), samples=2, environment=TwoTurns()).run())
    again = play(second, Rewards({2: 1.0}), samples=2, environment=TwoTurns())
    siblings = asyncio.run(again.run())
    assert [(one.outcome, one.num_turns) for one in siblings] == [("scored", 2)] * 2
    assert second.asked[:2] == first.asked[:2]  # the same prompts and seeds
    assert [name for name, _, _ in second.asked] == ["g/0/1", "g/1/1", "g/0/2", "g/1/2"]


@pytest.mark.parametrize(
    ("include_prefill", "seen"), [(False, "xxx"), (True, "<think>\nxxx")], ids=["bare", "whole"]
)
def test_the_scorer_sees_what_the_template_opened_only_if_told(include_prefill, seen):
    class Sees:
        async def score(self, sample):
            self.response = sample.response
            return RewardResult(outcome="scored", reward=1.0)

    rewards = Sees()
    group = play(Engine({"g/0/1": 3}), rewards, samples=1, include_prefill=include_prefill)
    (sibling,) = asyncio.run(group.run())
    assert rewards.response == seen
    assert sibling.response_text == "xxx"


def test_the_first_turn_draws_with_the_seed_of_its_sample():
    assert turn_seed(41, 1) == 41
    later = {turn_seed(seed, turn) for seed in (41, 42) for turn in (2, 3)}
    assert len(later) == 4
    assert all(0 <= seed < 2**31 for seed in later)
