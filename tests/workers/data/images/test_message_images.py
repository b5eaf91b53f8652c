"""Messages lose the data of their images, and keep the places."""

import base64
import io

import pytest
from PIL import Image

from tests.workers.data.images.folders import file_of, noise
from workers.data.images.decoding import ImageFaultError, decode, read_file
from workers.data.images.message_images import (
    file_of_source,
    split_messages,
    split_prompt,
    without_images,
)

FILE = file_of(noise(3, 2))
ADDRESS = f"data:image/png;base64,{base64.b64encode(FILE).decode()}"
TEXT = {"type": "text", "text": "or"}
PLACE = {"type": "image"}


def user(*parts):
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ({"type": "image", "image": FILE}, FILE),
        ({"type": "image", "image": "/a.png"}, "/a.png"),
        ({"type": "image", "image": {"bytes": FILE, "path": None}}, FILE),
        ({"type": "image_url", "image_url": {"url": ADDRESS}}, ADDRESS),
        ({"type": "image_url", "image_url": ADDRESS}, ADDRESS),
    ],
)
def test_every_form_of_an_image_part_leaves_a_place_and_its_source(part, source):
    assert split_messages([user(part, TEXT)]) == ([user(PLACE, TEXT)], [source])
    assert without_images([user(part, TEXT)]) == [user(PLACE, TEXT)]


def test_a_prompt_names_the_images_of_its_row_by_places_without_data():
    prompt = [
        {"role": "system", "content": "<image> is text"},
        user(PLACE, TEXT, {"type": "image", "image": FILE}),
    ]
    assert split_prompt(prompt) == ([prompt[0], user(PLACE, TEXT, PLACE)], [None, None, FILE])
    assert split_prompt("<image>or<image>") == ("<image>or<image>", [None, None])


def test_behind_a_turn_a_place_in_a_text_is_text_and_a_part_has_data():
    message = {"role": "user", "content": "<image>"}
    assert split_messages([message]) == ([message], [])
    with pytest.raises(ImageFaultError, match="an image part without data behind a turn"):
        split_messages([user(PLACE)])
    with pytest.raises(ImageFaultError, match="an image part holds a int; give bytes"):
        split_messages([user({"type": "image", "image": 7})])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "CMYK", "YCbCr"])
def test_a_picture_is_kept_pixel_for_pixel(mode):
    picture = noise(5, 4).convert("L").convert("I;16" if mode == "I;16" else mode)
    again = decode(file_of_source(picture))
    expected = picture.convert("RGB") if mode != "I;16" else None
    assert again.size == (5, 4)
    assert expected is None or again.tobytes() == expected.tobytes()


def test_a_picture_that_can_not_be_kept_or_an_address_without_a_file_is_named():
    with pytest.raises(ImageFaultError, match="picture of mode F can't be kept"):
        file_of_source(Image.new("F", (2, 2)))
    cut = Image.open(io.BytesIO(file_of(noise(60, 60))[:400]))
    with pytest.raises(ImageFaultError, match="picture of mode RGB can't be kept"):
        file_of_source(cut)
    assert read_file(ADDRESS) == FILE
    with pytest.raises(ImageFaultError, match="is not in base64; write data:image/png;base64"):
        read_file("data:image/png,abc")
    with pytest.raises(ImageFaultError, match="is no base64"):
        read_file("data:image/png;base64,!!")
    with pytest.raises(ImageFaultError, match="is not on this machine"):
        read_file("https://somewhere/a.png")
