"""The report shows the images of a prompt, small, once for all siblings."""

import base64
import io
from dataclasses import replace

import numpy as np
from PIL import Image
from recorded_run import model_folder, sample
from test_samples import FIRST, recorded

from orchestrator.report.pictures import num_pictures, small_pictures
from orchestrator.report.samples import list_lengths, load_groups, prompt_text
from orchestrator.report.token_texts import TokenTexts
from workers.data.images.decoding import png_of
from workers.data.images.spans import ImageSpan
from workers.data.turns import TurnSpan

RED = png_of(np.full((300, 600, 3), (250, 10, 10), np.uint8))
BLUE = png_of(np.full((30, 60, 3), (10, 10, 250), np.uint8))
SPAN = ImageSpan(offset=1, length=2, grid=(1, 2, 4), digest="9f86")
# "sum", two tokens of an image, "="; then "one ".
SHOWN = {
    "tokens": [6, 0, 0, 7, 1],
    "loss_mask": [False] * 4 + [True],
    "rollout_logprobs": [0.0] * 4 + [-0.5],
    "weight_versions": [-1] * 4 + [0],
    "images": [SPAN],
}


def test_a_group_has_small_pictures_and_places_in_its_text(tmp_path):
    texts = TokenTexts.of_model(str(model_folder(tmp_path / "model")))
    rows = [sample("a", number, (1,), 1.0, image_files=[RED], **SHOWN) for number in range(2)]
    (group,), pieces = load_groups(recorded(tmp_path, rows), [FIRST], texts)
    assert group["prompt"] == "sum<image>="
    assert [pieces[number] for number in group["samples"][1]["tokens"]] == ["one "]
    (address,) = group["images"]
    kind, _, data = address.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (kind, picture.size) == ("data:image/jpeg;base64", (160, 80))
    assert np.abs(np.asarray(picture)[40, 80] - np.array([250.0, 10.0, 10.0])).max() < 8


def test_a_sample_has_the_pictures_that_its_environment_showed(tmp_path):
    """The prompt of the other tests and a turn; then an image of the sibling's own, and a turn."""
    texts = TokenTexts.of_model(str(model_folder(tmp_path / "model")))
    later = ImageSpan(offset=5, length=2, grid=(1, 2, 4), digest="a1b2")
    row = {
        "tokens": [*SHOWN["tokens"], 0, 0, 1],
        "loss_mask": [*SHOWN["loss_mask"], False, False, True],
        "rollout_logprobs": [*SHOWN["rollout_logprobs"], 0.0, 0.0, -0.5],
        "weight_versions": [*SHOWN["weight_versions"], -1, -1, 0],
        "images": [SPAN, later],
        "turns": (
            TurnSpan(number=1, start=4, end=5, finish_reason="stop", state=0),
            TurnSpan(number=2, start=7, end=8, finish_reason="stop", state=0),
        ),
    }
    rows = [
        sample("a", number, (1,), 1.0, image_files=[RED, file], **row)
        for number, file in enumerate((BLUE, RED))
    ]
    steps = recorded(tmp_path, rows)
    assert num_pictures(steps[0].file) == [(1, 1), (1, 1)]
    (group,), pieces = load_groups(steps, [FIRST], texts)
    assert group["prompt"] == "sum<image>="
    words = [pieces[number] for number in group["samples"][0]["tokens"]]
    assert words == ["one ", "<image>", "", "one "]
    assert group["images"] == small_pictures([RED])
    assert [one["images"] for one in group["samples"]] == [
        small_pictures([BLUE]),
        small_pictures([RED]),
    ]


def test_groups_without_images_are_as_they_were(tmp_path):
    texts = TokenTexts.of_model(str(model_folder(tmp_path / "model")))
    rows = [sample("a", number, (1,), 1.0) for number in range(2)]
    (group,), _ = load_groups(recorded(tmp_path, rows), [FIRST], texts)
    assert "images" not in group
    assert group["prompt"] == "sum="


def test_images_count_in_the_size_of_a_report(tmp_path):
    rows = [
        replace(sample(name, number, (1,), 1.0, image_files=[RED], **SHOWN))
        for name in "abc"
        for number in range(2)
    ]
    chosen = [replace(FIRST, rows=(start, start + 1)) for start in (0, 2, 4)]
    groups, _ = load_groups(recorded(tmp_path, rows), chosen, TokenTexts(None), max_bytes=22_000)
    assert len(groups) == 2  # 10.5 kB each


def test_a_record_without_the_column_has_no_images_and_a_broken_file_is_left_out(tmp_path):
    steps = recorded(tmp_path, [sample("a", 0, (1,), 1.0)])
    assert list_lengths(steps[0].file, "no_such_column") == [0]
    assert small_pictures([b"broken", RED, RED, RED, RED, RED])[0].startswith("data:image/jpeg")
    assert len(small_pictures([b"broken", RED, RED, RED, RED, RED])) == 3
    assert prompt_text({"tokens": [6, 7, 1]}, 2, TokenTexts(None)) == TokenTexts(None).text([6, 7])
