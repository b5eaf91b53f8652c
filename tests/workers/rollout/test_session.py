"""The ids of one rollout: what is appended, what trains, and where its budgets end."""

import asyncio

import pytest

from workers.rollout.environments.contract import SpentError
from workers.rollout.opening import Opening


def text(session):
    return "".join(map(chr, session.tokens))


def say(content):
    return [{"role": "user", "content": content}]


def test_an_observation_is_appended_and_does_not_train(rollout, says):
    async def played():
        own = rollout(says("ab", "c"))
        first = await own.first.draw(stop=["!"])
        await own.first.observe(say("low"))
        await own.first.observe(say("er"))
        second = await own.first.draw(max_tokens=5)
        await own.first.observe(say("bye"))
        return own, first, second

    own, first, second = asyncio.run(played())
    assert (first.number, first.text, second.number, second.tokens) == (1, "ab", 2, (ord("c"),))
    (row,) = own.rows([0.5])
    assert "".join(map(chr, row.tokens)) == "q:ablowerc"  # without what nobody answered
    assert [chr(t) for t, trains in zip(row.tokens, row.loss_mask, strict=True) if trains] == [
        *"abc"
    ]
    assert row.weight_versions == [-1, -1, 2, 2, -1, -1, -1, -1, -1, 2]
    assert [(s.start, s.end, s.reward) for s in row.turns] == [(2, 4, 0.5), (9, 10, 0.0)]
    assert own.text == "ab\nc"


def test_ids_that_follow_an_observation_do_not_repeat_it(rollout, says):
    async def played():
        own = rollout(says("ab", "c"), max_tokens=40)
        await own.first.draw()
        await own.first.observe(say("low"))
        own.first.observe_tokens([ord("!")])
        await own.first.observe(say("er"))
        await own.first.draw()
        return own

    own = asyncio.run(played())
    assert text(own.first) == "q:ablow!erc"


def test_ids_before_the_first_turn_are_not_replaced_by_a_message(rollout, says):
    async def played():
        own = rollout(says("ab"))
        own.first.observe_tokens([ord("!")])
        with pytest.raises(ValueError, match="observed before the first turn"):
            await own.first.observe(say("?"))
        with pytest.raises(ValueError, match="observed before the first turn"):
            await own.first.reopen("q")
        await own.first.draw()
        return own

    assert text(asyncio.run(played()).first) == "q:!ab"


def test_a_row_without_room_leaves_the_others_to_go_on(rollout, says):
    """An agent whose history is full begins another with a summary."""

    async def played():
        own = rollout(says("ab", "cd"), max_tokens=6)
        await own.first.draw()
        await own.first.observe(say("1234"))
        with pytest.raises(SpentError):
            await own.first.draw()
        summary = own.first.branch(0)
        await summary.reopen("s:")
        assert (own.first.may_draw, summary.may_draw) == (False, True)
        await summary.draw()
        return own

    own = asyncio.run(played())
    assert ["".join(map(chr, row.tokens)) for row in own.rows()] == ["q:ab", "s:cd"]
    assert own.finish_reason == "stop"


def test_each_turn_has_what_is_left_of_the_tokens_and_no_more(rollout, says):
    async def played():
        engine = says("abcd", "efgh", "ijkl")
        own = rollout(engine, max_tokens=10, max_turn_tokens=4)
        await own.first.draw()
        await own.first.observe(say("-"))
        await own.first.draw()
        last = await own.first.draw()
        return own, engine, last

    own, engine, last = asyncio.run(played())
    assert [limit for _, _, limit, _ in engine.asked] == [4, 4, 1]
    assert (last.text, last.finish_reason, own.finish_reason) == ("i", "length", "length")
    assert not own.first.may_draw
    with pytest.raises(SpentError, match="no turn or no token is left"):
        asyncio.run(own.first.draw())


def test_an_observation_without_room_is_left_out_and_ends_the_rollout(rollout, says):
    async def played():
        own = rollout(says("ab"), max_tokens=6)
        await own.first.draw()
        await own.first.observe(say("1234"))
        return own

    own = asyncio.run(played())
    assert text(own.first) == "q:ab"
    assert (own.first.may_draw, own.finish_reason) == (False, "length")


def test_before_the_first_turn_an_observation_joins_the_prompt(rollout, says):
    async def played():
        engine = says("ab")
        own = rollout(engine, prompt="q", max_tokens=4)
        await own.first.observe(say("?"))
        await own.first.draw()
        return own, engine

    own, engine = asyncio.run(played())
    assert engine.asked == [("q?", 1, 4, ("#",))]
    assert own.rows()[0].loss_mask == [False, False, True, True]
    with pytest.raises(ValueError, match="the prompt can't change once a turn was drawn"):
        asyncio.run(own.first.reopen("new"))


def test_a_prompt_that_the_environment_writes_has_the_bound_of_all_prompts(rollout, says):
    with pytest.raises(ValueError, match="prompt of 9 tokens, limit 8"):
        asyncio.run(rollout(says()).first.reopen("123456789"))


def test_a_branch_shares_a_prefix_and_the_budget_of_turns(rollout, says):
    async def played():
        engine = says("ab", "cd", "ef")
        own = rollout(engine, max_turns=3)
        await own.first.draw()
        other = own.first.branch(1)
        other.observe_tokens([ord("+")])
        await other.draw()
        await own.first.draw()
        unused = own.first.branch(2)
        return own, engine, unused

    own, engine, unused = asyncio.run(played())
    assert [(seen, turn) for seen, turn, _, _ in engine.asked] == [
        ("q:", 1),
        ("q+", 2),
        ("q:ab", 3),
    ]
    assert not unused.may_draw
    rows = own.rows([1.0, 2.0, 3.0])
    assert [row.branch for row in rows] == [0, 1]  # none for the branch without a turn
    assert [[s.reward for s in row.turns] for row in rows] == [[1.0, 3.0], [2.0]]
    with pytest.raises(ValueError, match="a row of 6 ids can't share the first 7"):
        own.first.branch(7)


def test_a_branch_behind_a_turn_observes_as_the_row_does(rollout, says):
    """Its first ids are the row's, the turn among them; its budget of tokens is the row's too."""

    async def played():
        own = rollout(says("ab", "c", "d"), max_tokens=6)
        await own.first.draw()
        await own.first.observe(say("12"))
        await own.first.draw()
        other = own.first.branch(4)
        await other.observe(say("3"))
        await other.draw()
        return own, other

    own, other = asyncio.run(played())
    assert [text(session) for session in (own.first, other)] == ["q:ab12c", "q:ab3d"]
    assert [sum(row.loss_mask) for row in own.rows()] == [3, 1]
    with pytest.raises(ValueError, match="the prompt can't change once a turn was drawn"):
        asyncio.run(other.reopen("new"))


def test_a_branch_that_shares_nothing_opens_with_a_prompt_of_its_own(rollout, says):
    async def played():
        own = rollout(says("ab", "cd"), max_tokens=4)
        await own.first.draw()
        other = own.first.branch(0)
        await other.reopen("another:")
        await other.draw()
        return own, other

    own, other = asyncio.run(played())
    assert (text(own.first), text(other)) == ("q:ab", "another:cd")
    assert own.first.may_draw is True


def test_a_branch_within_a_row_has_no_turn_to_render_messages_behind(rollout, says):
    async def played():
        own = rollout(says("ab"))
        await own.first.draw()
        await own.first.branch(1).observe(say("x"))

    with pytest.raises(ValueError, match="observes ids until it is drawn"):
        asyncio.run(played())


def test_the_opening_of_a_row_knows_its_messages():
    asked, said = say("q")[0], {"role": "assistant", "content": "a"}
    assert Opening(prompt="q:", max_tokens=9).messages() == []
    assert Opening(prompt=[asked], max_tokens=9).messages() == [asked]
    later = Opening(prompt=[asked], max_tokens=9, history=(asked, said))
    assert later.messages() == [asked, said]


def test_equal_states_have_equal_checksums_whatever_was_said_before(rollout, says):
    async def played(*states):
        own = rollout(says("a", "bc", "d"))
        for state in states:
            await own.first.draw(state=state)
            await own.first.observe(say("!"))
        return [span.state for span in own.rows()[0].turns]

    named = asyncio.run(played("0-9", "0-4", "0-9"))
    assert named[0] == named[2] != named[1]
    observed = asyncio.run(played("", "", ""))
    assert observed[1] == observed[2] != observed[0]  # "!" and "!", after the prompt


def test_an_environment_that_branches_for_ever_is_refused(rollout, says):
    """Rows that nothing draws would fill the worker's memory until the environment's time is up."""
    own = rollout(says(), max_turns=2)
    rows = [own.first.branch(1) for _ in range(65)]
    with pytest.raises(
        ValueError, match=r"environment\.max_turns=2 has at most 66 rows; draw in a"
    ):
        rows[-1].branch(1)
