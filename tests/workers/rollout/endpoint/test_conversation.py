"""The rows that an agent's calls make: extended by what is new, branched where it was rewritten."""

import asyncio
import base64

import pytest

from tests.workers.data.images.folders import file_of, noise
from tests.workers.rollout.endpoint.served import Engine, encoder, served
from workers.data.images.settings import ImageLimits
from workers.data.prompts import PromptEncoder
from workers.models.tiny_vision import build_tiny_vision

S, E = "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("tokenizer"))


def user(content):
    return {"role": "user", "content": content}


def said(content):
    return {"role": "assistant", "content": content}


def test_a_history_that_goes_on_extends_the_row_by_what_is_new(tokens):
    async def play():
        async with served(Engine(tokens, "4", "5"), [user("guess")]) as own:
            first = await own.chat([user("guess")])
            history = [user("guess"), first["message"], user("higher")]
            second = await own.chat(history)
            return first, second, own.engine.asked, own.rows()

    first, second, asked, rows = asyncio.run(play())
    assert (first["message"]["content"], second["message"]["content"]) == ("4", "5")
    opening = f"{S}user\nguess{E}\n{S}assistant\n"
    between = f"\n{S}user\nhigher{E}\n{S}assistant\n"
    assert asked == [opening, f"{opening}4{E}{between}"]
    assert rows == [(f"{opening}4{E}{between}5{E}", [f"4{E}", f"5{E}"])]


def test_an_agent_that_writes_its_own_prompt_opens_the_row_with_it(tokens):
    async def play():
        async with served(Engine(tokens, "4"), [user("guess")]) as own:
            await own.chat([{"role": "developer", "content": "be short"}, user("guess")])
            return own.rows()

    opening = f"{S}system\nbe short{E}\n{S}user\nguess{E}\n{S}assistant\n"
    assert asyncio.run(play()) == [(f"{opening}4{E}", [f"4{E}"])]


def test_the_same_question_again_branches_before_the_first_turn(tokens):
    async def play():
        async with served(Engine(tokens, "4", "7"), [user("guess")]) as own:
            answers = [(await own.chat([user("guess")]))["message"]["content"] for _ in range(2)]
            return answers, own.rows()

    answers, rows = asyncio.run(play())
    opening = f"{S}user\nguess{E}\n{S}assistant\n"
    assert answers == ["4", "7"]
    assert rows == [(f"{opening}4{E}", [f"4{E}"]), (f"{opening}7{E}", [f"7{E}"])]


def test_a_rewritten_observation_branches_behind_the_turn_that_is_kept(tokens):
    """The shared turn trains where it was sampled, and its ids are not rendered again."""

    async def play():
        async with served(Engine(tokens, "4", "5", "6"), [user("guess")]) as own:
            first = await own.chat([user("guess")])
            history = [user("guess"), first["message"]]
            await own.chat([*history, user("higher")])
            await own.chat([*history, user("summary")])
            return own.rows()

    rows = asyncio.run(play())
    opening = f"{S}user\nguess{E}\n{S}assistant\n4{E}\n{S}user\n"
    assert rows == [
        (f"{opening}higher{E}\n{S}assistant\n5{E}", [f"4{E}", f"5{E}"]),
        (f"{opening}summary{E}\n{S}assistant\n6{E}", [f"6{E}"]),
    ]


def test_a_rewritten_turn_makes_a_row_of_its_own(tokens):
    async def play():
        async with served(Engine(tokens, "4", "6"), [user("guess")]) as own:
            await own.chat([user("guess")])
            await own.chat([user("guess"), said("9"), user("higher")])
            return own.rows()

    rows = asyncio.run(play())
    rendered = f"{S}user\nguess{E}\n{S}assistant\n9{E}\n{S}user\nhigher{E}\n{S}assistant\n"
    assert rows[1] == (f"{rendered}6{E}", [f"6{E}"])


def test_a_branch_goes_on_and_is_branched_again(tokens):
    async def play():
        async with served(Engine(tokens, *"abcd"), [user("q")]) as own:
            first = await own.chat([user("q")])
            base = [user("q"), first["message"]]
            await own.chat([*base, user("1")])
            other = await own.chat([*base, user("2")])
            await own.chat([*base, user("2"), other["message"], user("3")])
            return own.rows()

    rows = asyncio.run(play())
    assert [trained for _, trained in rows] == [[f"a{E}", f"b{E}"], [f"c{E}", f"d{E}"]]
    shared = f"{S}user\nq{E}\n{S}assistant\na{E}\n{S}user\n"
    assert rows[1][0] == f"{shared}2{E}\n{S}assistant\nc{E}\n{S}user\n3{E}\n{S}assistant\nd{E}"


def test_lost_thoughts_and_white_space_are_no_rewriting(tokens):
    async def play():
        answer = "<think>hm</think>\n4 "
        async with served(Engine(tokens, answer, "5"), [user("guess")]) as own:
            await own.chat([user("guess")])
            await own.chat([user("guess"), said("4"), user("higher")])
            return own.rows()

    rows = asyncio.run(play())
    assert len(rows) == 1
    assert f"<think>hm</think>\n4 {E}\n{S}user\nhigher" in rows[0][0]


def test_conversations_side_by_side_are_rows_of_their_own(tokens):
    """Two sub-agents with prompts of their own, whose turns are drawn at the same time."""

    async def play():
        async with served(Engine(tokens, *"abcd"), [user("q")]) as own:
            own.engine.free.clear()
            calls = [asyncio.create_task(own.chat([user(text)])) for text in ("x", "y")]
            while len(own.engine.asked) < 2:
                await asyncio.sleep(0.01)
            own.engine.free.set()
            x, y = await asyncio.gather(*calls)
            await own.chat([user("x"), x["message"], user("1")])
            await own.chat([user("y"), y["message"], user("2")])
            return own.rows()

    rows = asyncio.run(play())
    assert sorted(text.count("assistant") for text, _ in rows) == [2, 2]
    assert sorted(len(trained) for _, trained in rows) == [2, 2]


def test_a_text_goes_on_behind_what_was_sampled(tokens):
    async def play():
        async with served(Engine(tokens, "4", "5"), "guess:") as own:
            first = await own.complete("guess:")
            await own.complete(f"guess:{first}\nhigher:")
            return own.rows()

    assert asyncio.run(play()) == [(f"guess:4{E}\nhigher:5{E}", [f"4{E}", f"5{E}"])]


def test_a_stop_string_is_not_answered_and_not_doubled(tokens):
    async def play():
        async with served(Engine(tokens, "4\n", "5"), "guess:") as own:
            first = await own.complete("guess:", stop="\n")
            await own.complete("guess:4\nhigher:")
            return first, own.rows()

    first, rows = asyncio.run(play())
    assert first == "4"
    assert rows == [(f"guess:4\n{E}higher:5{E}", [f"4\n{E}", f"5{E}"])]


def shows(text, address):
    part = {"type": "image_url", "image_url": {"url": address}}
    return user([{"type": "text", "text": text}, part])


def address(seed):
    file = file_of(noise(56, 56, seed=seed))
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def test_an_agents_images_go_into_its_rows_once_each_and_a_broken_one_costs_a_call(tmp_path):
    seeing = PromptEncoder(build_tiny_vision(tmp_path / "m"), 256, images=ImageLimits())
    one, two, three = (shows("s", address(seed)) for seed in range(3))

    async def play():
        async with served(Engine(seeing, "4", "5", "6"), [user("guess")]) as own:
            first = await own.chat([one])
            history = [one, first["message"], two]
            await own.chat(history)
            broken = [one, first["message"], shows("s", "data:image/png;base64,AAEC")]
            status, text = await own.post("chat/completions", {"model": "m", "messages": broken})
            assert (status, "image 0: image can't be read" in text) == (400, True)
            await own.chat([one, first["message"], three])  # in the place of the second
            return own.rollout.rows()

    rows = asyncio.run(play())
    assert [[span.digest for span in row.images.spans] for row in rows] == [
        [seeing.load([base64.b64decode(address(seed)[22:])])[0].digest for seed in seeds]
        for seeds in ((0, 1), (0, 2))
    ]
    pad = seeing.image_settings.image_token_id
    assert [row.tokens.count(pad) for row in rows] == [8, 8]
    assert [sum(row.loss_mask) for row in rows] == [4, 2]
