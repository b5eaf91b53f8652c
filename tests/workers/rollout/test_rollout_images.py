"""Images that an environment shows: their ids, their places, their budgets."""

import asyncio

import pytest

from tests.workers.data.images.folders import file_of, noise
from workers.data.images.settings import ImageLimits
from workers.data.prompts import PromptEncoder
from workers.data.requests import Sample, Sampling
from workers.models.tiny import build_tiny
from workers.models.tiny_vision import build_tiny_vision
from workers.rollout.environments.contract import Task
from workers.rollout.environments.guarded_play import EnvironmentClock
from workers.rollout.limits import RolloutLimits
from workers.rollout.session import Rollout
from workers.rollout.turn_texts import TurnTexts

SMALL, WIDE, OTHER = (
    file_of(noise(56, 56)),
    file_of(noise(112, 56, seed=1)),
    file_of(noise(56, 56, seed=2)),
)
END = "<|im_end|>"


@pytest.fixture(scope="module", params=["qwen2_5_vl", "idefics3"])
def encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    build_tiny_vision(folder, architecture=request.param)
    return PromptEncoder(folder, 256, images=ImageLimits(max_per_prompt=4))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = build_tiny_vision(tmp_path_factory.mktemp("models") / "qwen")
    return PromptEncoder(folder, 256, images=ImageLimits(max_per_prompt=4))


def user(*parts):
    return {"role": "user", "content": list(parts)}


def words(text):
    return {"type": "text", "text": text}


def image(file):
    return {"type": "image", "image": file}


class Policy:
    """Says the next of `answers` in every turn, and keeps the images that it was shown."""

    def __init__(self, encoder, *answers):
        self.encoder, self.answers, self.shown = encoder, list(answers), []

    async def __call__(self, tokens, turn, sampling, images):
        self.shown.append(images)
        ids = self.encoder.continuation(self.answers.pop(0))
        return Sample(
            tokens=ids,
            logprobs=[-0.5] * len(ids),
            weight_versions=[2] * len(ids),
            finish_reason="stop",
            text=self.encoder.decode(ids[:-1]),
        )


def begun(encoder, prompt, files=(), *answers, max_tokens=400, **limits):
    tokens, images, fault = encoder.encode_shown(prompt, encoder.load(files) if files else ())
    assert fault is None
    policy = Policy(encoder, *answers)
    rollout = Rollout(
        Task(uid="p:0", prompt=prompt, ground_truth=None),
        tokens,
        sampling=Sampling(max_tokens=max_tokens),
        limits=RolloutLimits(**{"max_turns": 4, **limits}),
        texts=TurnTexts(encoder),
        sample=policy,
        clock=EnvironmentClock(stretch_s=60.0),
        images=images,
    )
    return rollout, policy


def files_of(images):
    return [shown.file for shown in images.loaded]


def test_the_ids_of_two_turns_are_those_of_the_rendered_history(encoder):
    opening = [user(words("now"), {"type": "image"}, words("?"))]
    later = user(image(WIDE), words("and"), image(OTHER))

    async def played():
        rollout, policy = begun(encoder, opening, [SMALL], "r" + END, "g" + END)
        await rollout.first.draw()
        await rollout.first.observe([later])
        await rollout.first.draw()
        return rollout, policy

    rollout, policy = asyncio.run(played())
    (row,) = rollout.rows()
    history = [
        *opening,
        {"role": "assistant", "content": [words("r")]},
        user({"type": "image"}, words("and"), {"type": "image"}),
    ]
    ids, images, _ = encoder.encode_shown(history, encoder.load([SMALL, WIDE, OTHER]))
    assert row.tokens == ids + encoder.continuation("g" + END)
    assert row.images.spans == images.spans
    assert [files_of(shown) for shown in policy.shown] == [[SMALL], [SMALL, WIDE, OTHER]]
    trained = [token for token, on in zip(row.tokens, row.loss_mask, strict=True) if on]
    assert encoder.decode(trained) == f"r{END}g{END}"


def test_the_record_holds_offsets_grids_and_files_of_literal_values(qwen):
    rollout, _ = begun(qwen, "<image>ab", [SMALL], "c" + END, "x" + END)

    async def play():
        await rollout.first.draw()
        await rollout.first.observe([user(words("d"), image(WIDE))])
        await rollout.first.draw()

    asyncio.run(play())
    (row,) = rollout.rows()
    pad = qwen.image_settings.image_token_id
    # <start> 4 pads <end> a b | c <end> | d <start> 8 pads <end> | x <end>
    assert [k for k, token in enumerate(row.tokens) if token == pad] == [
        *range(1, 5),
        *range(12, 20),
    ]
    assert len(row.tokens) == 23
    assert [(s.offset, s.length, s.grid) for s in row.images.spans] == [
        (1, 4, (1, 4, 4)),
        (12, 8, (1, 4, 8)),
    ]
    assert row.loss_mask == [False] * 8 + [True] * 2 + [False] * 11 + [True] * 2
    assert files_of(row.images) == [SMALL, WIDE]


def test_an_image_that_no_turn_answered_is_not_in_the_record(qwen):
    async def played():
        rollout, _ = begun(qwen, "a", (), "b" + END)
        await rollout.first.draw()
        await rollout.first.observe([user(image(SMALL))])
        return rollout

    (row,) = asyncio.run(played()).rows()
    assert row.images.spans == ()
    assert qwen.decode(row.tokens) == "ab" + END


def test_an_observation_is_rendered_anew_with_what_follows_it(qwen):
    """Its image keeps its place, and stands there once."""

    async def played():
        rollout, policy = begun(qwen, [user(words("q"))], (), "a" + END, "b" + END)
        await rollout.first.draw()
        await rollout.first.observe([user(image(SMALL))])
        await rollout.first.observe([user(words("and"), image(OTHER))])
        await rollout.first.draw()
        return rollout, policy

    rollout, policy = asyncio.run(played())
    assert files_of(policy.shown[1]) == [SMALL, OTHER]
    history = [
        user(words("q")),
        {"role": "assistant", "content": "a"},
        user({"type": "image"}),
        user(words("and"), {"type": "image"}),
    ]
    ids, images, _ = qwen.encode_shown(history, qwen.load([SMALL, OTHER]))
    assert rollout.first.tokens[: len(ids)] == ids
    assert policy.shown[1].spans == images.spans


@pytest.mark.parametrize("as_chat", [False, True])
def test_before_the_first_turn_images_join_those_of_the_prompt(encoder, as_chat):
    prompt = [{"role": "user", "content": "<image>a"}] if as_chat else "<image>a"

    async def played():
        rollout, policy = begun(encoder, prompt, [SMALL], "b" + END)
        await rollout.first.observe([user(words("c"), image(WIDE))])
        await rollout.first.observe([user(image(OTHER))])
        await rollout.first.draw()
        return rollout, policy

    rollout, policy = asyncio.run(played())
    joined = "<image>ac<image><image>"
    if as_chat:
        joined = [*prompt, user(words("c"), {"type": "image"}), user({"type": "image"})]
    ids, images, _ = encoder.encode_shown(joined, encoder.load([SMALL, WIDE, OTHER]))
    assert rollout.rows()[0].tokens[: len(ids)] == ids
    assert policy.shown[0].spans == images.spans
    assert files_of(policy.shown[0]) == [SMALL, WIDE, OTHER]


def test_a_prompt_that_the_environment_writes_shows_the_images_of_its_row_or_its_own(qwen):
    async def played(*prompts):
        rollout, policy = begun(qwen, "<image>a", [SMALL], "b" + END)
        for prompt in prompts:
            await rollout.first.reopen(prompt)
        await rollout.first.draw()
        return policy.shown[0]

    own = [user(image(OTHER), words("before"), {"type": "image"})]
    assert files_of(asyncio.run(played(own))) == [OTHER, SMALL]
    assert files_of(asyncio.run(played(own, "x<image>"))) == [SMALL]
    assert files_of(asyncio.run(played([user(words("none"))]))) == []
    with pytest.raises(ValueError, match="2 places for images of its row, which has 1"):
        asyncio.run(played("<image><image>"))


def test_tools_are_described_beside_the_images_of_the_row(qwen):
    async def played():
        prompt = [{"role": "user", "content": "<image>a"}]
        rollout, policy = begun(qwen, prompt, [SMALL], "b" + END)
        await rollout.first.reopen(prompt, tools=[{"type": "function"}])
        await rollout.first.draw()
        return policy.shown[0]

    shown = asyncio.run(played())
    assert (files_of(shown), [span.length for span in shown.spans]) == ([SMALL], [4])


def test_a_branch_has_the_images_that_it_shares_and_never_a_part_of_one(qwen):
    async def played():
        rollout, policy = begun(qwen, "<image>a", [SMALL], "b" + END, "c" + END, "d" + END)
        await rollout.first.draw()
        turn_end = len(rollout.first.tokens)
        await rollout.first.observe([user(image(WIDE))])
        await rollout.first.draw()
        other = rollout.first.branch(turn_end)
        await other.observe([user(image(OTHER))])
        await other.draw()
        with pytest.raises(ValueError, match="the first 3 ids end within an image"):
            rollout.first.branch(3)
        return rollout, policy

    rollout, policy = asyncio.run(played())
    assert [files_of(shown) for shown in policy.shown] == [
        [SMALL],
        [SMALL, WIDE],
        [SMALL, OTHER],
    ]
    assert [files_of(row.images) for row in rollout.rows()] == [[SMALL, WIDE], [SMALL, OTHER]]


def test_equal_ids_with_other_images_are_another_state(qwen):
    async def state_after(file):
        rollout, _ = begun(qwen, "a", (), "b" + END, "c" + END)
        await rollout.first.draw()
        await rollout.first.observe([user(image(file))])
        await rollout.first.draw()
        return rollout.rows()[0].turns[1].state

    states = [asyncio.run(state_after(file)) for file in (SMALL, SMALL, OTHER)]
    assert states[0] == states[1] != states[2]


def test_rows_that_show_the_same_file_hold_its_pixels_once(qwen):
    async def shown():
        rollout, policy = begun(qwen, "a", (), "b" + END)
        await rollout.first.observe([user(image(SMALL))])
        await rollout.first.draw()
        return policy.shown[0].loaded[0]

    first, second = asyncio.run(shown()), asyncio.run(shown())
    held = [asyncio.run(shown()), asyncio.run(shown())]
    assert held[0] is held[1] is first is second


async def observing(encoder, parts, **how):
    rollout, _ = begun(encoder, "a", (), "b" + END, **how)
    await rollout.first.draw()
    await rollout.first.observe([user(*parts)])
    return rollout


@pytest.mark.parametrize(
    ("parts", "limits", "reason"),
    [
        ([image(b"broken")], {}, "image 0: image can't be read"),
        ([image(SMALL), image("/no/such.png")], {}, "image 1: image '/no/such.png': No such file"),
        ([image(SMALL)] * 5, {}, "prompt with 5 images, limit 4; raise data.images.max_per_prompt"),
        ([image(SMALL)], {"max_image_bytes": 9}, "bytes, beyond environment.max_image_bytes=9"),
        ([{"type": "image"}], {}, "an image part without data"),
        ([image(SMALL), words("<|image_pad|>")], {}, "2 places for images in the prompt and 1"),
        ([image(file_of(noise(402, 2)))], {}, "one side is over 200 times the other"),
        ([image("https://x/a.png")], {}, "is not on this machine"),
    ],
)
def test_an_image_that_can_not_be_shown_is_refused_with_the_reason(qwen, parts, limits, reason):
    with pytest.raises(ValueError, match=reason):
        asyncio.run(observing(qwen, parts, **limits))


def test_images_of_all_turns_count_towards_the_limit_of_a_row(qwen):
    async def played():
        rollout = await observing(qwen, [image(SMALL)] * 3)
        await rollout.first.observe([user(image(SMALL), image(SMALL))])

    with pytest.raises(ValueError, match="prompt with 5 images, limit 4"):
        asyncio.run(played())


def test_an_image_without_room_for_all_of_its_tokens_ends_the_row(qwen):
    rollout = asyncio.run(observing(qwen, [image(WIDE)], max_tokens=12))
    assert (rollout.first.may_draw, rollout.finish_reason) == (False, "length")
    assert rollout.first.tokens == qwen.continuation("ab" + END)
    assert asyncio.run(observing(qwen, [image(WIDE)], max_tokens=13)).first.may_draw


def test_a_placeholder_in_the_text_of_an_environment_is_text(qwen):
    async def played():
        rollout = await observing(qwen, [words("<|image_pad|>")])
        return rollout.first

    session = asyncio.run(played())
    assert session.tokens[-1] == qwen.image_settings.image_token_id
    assert session._columns.images.spans == ()


@pytest.mark.parametrize("part", [image(SMALL), {"type": "image_url", "image_url": {"url": "x"}}])
def test_a_run_that_shows_no_images_refuses_one_with_the_remedy(part):
    encoder = PromptEncoder(build_tiny(), 64)
    with pytest.raises(ValueError, match="set environment.shows_images=true, or send text"):
        asyncio.run(observing(encoder, [part]))
    rollout, _ = begun(encoder, "a", (), "b")
    with pytest.raises(ValueError, match="set environment.shows_images=true, or send text"):
        asyncio.run(rollout.first.reopen([user(part)]))


def test_a_template_that_writes_no_place_for_a_tools_image_is_named_with_the_remedy(tmp_path):
    encoder = PromptEncoder(build_tiny_vision(tmp_path / "m"), 256, images=ImageLimits())
    encoder.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}"
        "{% elif m.role == 'tool' %}{% for p in m.content %}{{ p.text }}{% endfor %}"
        "{% endif %};{% endfor %}"
    )

    async def played():
        rollout, _ = begun(encoder, [{"role": "user", "content": "q"}], (), "b")
        await rollout.first.draw()
        await rollout.first.observe([{"role": "tool", "content": [image(SMALL)]}])

    with pytest.raises(ValueError, match=r"\['tool'\]; send images in a message of the user"):
        asyncio.run(played())
