import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workers.data.images.folders import file_of, noise
from workers.data.images.decoding import ImageFaultError, decode, read_file


def test_white_is_behind_transparent_pixels() -> None:
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 255))
    assert np.asarray(decode(file_of(half))).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_a_transparent_palette_shows_white_too() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    file = file_of(palette, transparency=0)
    assert np.asarray(decode(file)).tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_sixteen_bits_keep_their_upper_eight() -> None:
    deep = Image.fromarray(np.array([[0, 256, 0x8000, 0xFFFF]], dtype=np.uint16))
    # The converter of PIL alone would give 0, 255, 255, 255.
    assert np.asarray(decode(file_of(deep)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_picture_is_turned_as_its_camera_says() -> None:
    lying = Image.new("RGB", (2, 1), (255, 255, 255))
    lying.putpixel((0, 0), (9, 9, 9))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    assert np.asarray(decode(file_of(lying, exif=exif)))[:, :, 0].tolist() == [[9], [255]]


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"no picture", "image can't be read (UnidentifiedImageError"),
        (file_of(noise(40, 40))[:900], "image can't be read (OSError: image file is truncated"),
        (file_of(Image.new("RGB", (1005, 5))), "image of 1005 x 5 pixels: one side is over 200"),
    ],
)
def test_a_file_that_is_no_usable_picture_is_named(file: bytes, reason: str) -> None:
    with pytest.raises(ImageFaultError) as fault:
        decode(file)
    assert str(fault.value).startswith(reason)


def test_floating_point_pixels_are_refused() -> None:
    file = io.BytesIO()
    Image.new("F", (4, 4)).save(file, format="TIFF")
    with pytest.raises(ImageFaultError, match="floating-point pixels; save the picture with 8"):
        decode(file.getvalue())


def test_files_are_read_by_path_by_address_and_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(b"abc")
    assert read_file(str(tmp_path / "a b.png")) == b"abc"
    assert read_file(f"file://{tmp_path}/a%20b.png") == b"abc"
    assert read_file(b"abc") == b"abc"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageFaultError, match="gone.png': No such file or directory"):
        read_file(str(tmp_path / "gone.png"))
    with pytest.raises(ImageFaultError, match="is not on this machine; fetch it"):
        read_file("https://example.org/a.png")
    with pytest.raises(ImageFaultError, match="image file of 0 bytes"):
        read_file(b"")
