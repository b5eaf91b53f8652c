"""Tokens of chosen groups: their texts, their numbers, and what is cut."""

import math

from recorded_run import HOSTILE, WORDS, model_folder, sample, write_rollouts
from tokenizers import Tokenizer, decoders, models

from orchestrator.report.rows import read_rows
from orchestrator.report.samples import PIECE_CHARACTERS, SHOWN_TOKENS, load_groups, rounded
from orchestrator.report.selection import ChosenGroup
from orchestrator.report.token_texts import TokenTexts
from workers.data.turns import TurnSpan

FIRST = ChosenGroup(place=0, rows=(0, 1), why="first step")


def recorded(folder, rows):
    write_rollouts(folder, 1, rows, ratio=1.25, gap=0.5)
    return read_rows({1: folder / "rollouts" / "step_000001.parquet"})


def test_a_group_has_its_prompt_and_every_number_of_its_tokens(tmp_path):
    texts = TokenTexts.of_model(str(model_folder(tmp_path / "model")))
    judged = sample("a", 0, (1, 2), 1.0, reward_notes={"judge": "the sum is wrong"})
    steps = recorded(tmp_path, [judged, sample("a", 1, (3,), None)])
    (group,), pieces = load_groups(steps, [FIRST], texts)
    assert (group["step"], group["group"], group["prompt"]) == (1, "a", "sum=")
    first, second = group["samples"]
    assert [pieces[number] for number in first["tokens"]] == ["one ", "two "]
    assert (first["reward"], first["outcome"], first["parts"]) == (1, "scored", {"exact": 1})
    assert (second["reward"], second["outcome"]) == (None, "failed:timeout")
    # Equal values of all tokens are written once; prompt tokens have none.
    assert (first["sampler"], first["old"], first["adv"]) == (-0.5, 0, 0.5)
    assert first["now"] == rounded(math.log(1.25))
    assert (first["flags"], second["flags"]) == (1, 0)  # clipped where the advantage is positive
    assert (first["trains"], first["version"], first["left_out"]) == (1, 0, 0)
    assert "text" not in first
    assert first["notes"] == {"judge": "the sum is wrong"}


def test_tokens_of_an_environment_between_two_turns_are_marked(tmp_path):
    texts = TokenTexts.of_model(str(model_folder(tmp_path / "model")))
    turns = sample(
        "a",
        0,
        (1, 4, 2),
        1.0,
        loss_mask=[False, False, True, False, True],
        weight_versions=[-1, -1, 3, -1, 4],
        num_turns=2,
        turns=(
            TurnSpan(number=1, start=2, end=3, finish_reason="length", state=7, reward=0.25),
            TurnSpan(number=2, start=4, end=5, finish_reason="stop", state=8),
        ),
    )
    steps = recorded(tmp_path, [turns, sample("a", 1, (3,), 0.0)])
    (group,), pieces = load_groups(steps, [FIRST], texts)
    shown = group["samples"][0]
    assert [pieces[number] for number in shown["tokens"]] == ["one ", "four ", "two "]
    assert (shown["trains"], shown["version"]) == ([1, 0, 1], [3, -1, 4])
    assert (shown["turns"], shown["facts"]["sampled"]) == (2, 2)
    assert group["prompt"] == "sum="
    assert shown["marks"] == [
        {"at": 0, "number": 1, "reward": 0.25, "finish": "length"},
        {"at": 2, "number": 2, "reward": 0, "finish": "stop"},
    ]


def test_the_middle_of_a_long_response_is_left_out(tmp_path):
    long = tuple([1] * SHOWN_TOKENS + [2] * 10 + [3] * SHOWN_TOKENS)
    steps = recorded(tmp_path, [sample("a", 0, long, 1.0), sample("a", 1, (1,), 0.0)])
    texts = TokenTexts.of_model(str(model_folder(tmp_path / "model")))
    (group,), pieces = load_groups(steps, [FIRST], texts)
    shown = group["samples"][0]
    assert shown["left_out"] == 10
    assert [pieces[n] for n in shown["tokens"]] == ["one "] * SHOWN_TOKENS + [
        "three "
    ] * SHOWN_TOKENS


def test_a_full_report_leaves_out_the_less_important_groups(tmp_path):
    rows = [sample(name, number, (1,) * 100, 1.0) for name in "abc" for number in range(2)]
    steps = recorded(tmp_path, rows)
    chosen = [ChosenGroup(place=0, rows=(k, k + 1), why="x") for k in (4, 0, 2)]
    groups, _ = load_groups(steps, chosen, TokenTexts(None), max_bytes=18_000)
    assert [group["group"] for group in groups] == ["c", "a"]  # each is about 8,500 bytes


def test_without_a_tokenizer_tokens_are_numbers_beside_the_text(tmp_path):
    steps = recorded(tmp_path, [sample("a", 0, (1, 2), 1.0), sample("a", 1, (3,), 0.0)])
    (group,), pieces = load_groups(steps, [FIRST], TokenTexts.of_model("/no/model"))
    assert [pieces[number] for number in group["samples"][0]["tokens"]] == ["1 ", "2 "]
    assert group["samples"][0]["text"] == "one two "
    assert group["prompt"] == "6 7"


def test_a_token_of_a_million_characters_is_cut(tmp_path):
    texts = TokenTexts.of_model(str(model_folder(tmp_path / "model")))
    endless = WORDS.index(HOSTILE[5])
    steps = recorded(tmp_path, [sample("a", 0, (endless,), 1.0), sample("a", 1, (1,), 0.0)])
    _, pieces = load_groups(steps, [FIRST], texts)
    assert len(pieces[0]) < PIECE_CHARACTERS + 40
    assert pieces[0].endswith("(999500 more characters)")


def test_pieces_join_to_the_text_of_any_tokenizer(tmp_path):
    """Bytes of one character stand in its last token; a space at a word's begin is kept."""
    by_bytes = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE({**by_bytes, "▁a": 256}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    ids = [256, *"😀".encode(), 256, ord("b")]
    pieces = TokenTexts(tokenizer).pieces(ids)
    assert "".join(pieces) == "a😀 ab"
    assert pieces == ["a", "", "", "", "😀", " a", "b"]


def test_numbers_are_short_and_json_has_them_all():
    assert rounded(0.123456789) == 0.1235
    assert rounded(3.0) == 3
    assert [rounded(value) for value in (None, math.nan, math.inf)] == [None, None, None]
