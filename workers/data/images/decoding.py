"""Read image files and decode their bytes to RGB, alike in engines and learner; write small ones.

Libraries decode pictures differently: one puts white behind transparent pixels and another black,
and few apply the rotation that a camera writes beside them. This is the only place that decodes.
Runs in rollout workers and learner ranks, and in the driver's commands that show data. Does not
resize.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # modes of 16-bit grey pictures
PNG_MODES = (*DEEP, "1", "L", "LA", "P", "RGB", "RGBA", "F")  # others become RGB; "F" is refused
MAX_ASPECT = 200  # between the sides, as the processors of transformers have it


class ImageFaultError(ValueError):
    """Image that can't be used; the message is the reason."""


def read_file(source: str | bytes) -> bytes:
    """Return the bytes of an image file.

    Args:
        source: a path, a `file://` address, a `data:` address in base64, or the bytes themselves.

    Raises:
        ImageFaultError: no such file, no bytes, or an address of another kind.
    """
    if isinstance(source, bytes):
        found = source
    elif source.startswith("data:"):
        found = _data_of(source)
    else:
        parts = urlsplit(source)
        if parts.scheme not in ("", "file"):
            raise ImageFaultError(
                f"image {source!r} is not on this machine; fetch it, and name the local file"
            )
        path = Path(unquote(parts.path) if parts.scheme else source)
        try:
            found = path.read_bytes()
        except OSError as error:
            raise ImageFaultError(f"image {source!r}: {error.strerror or error}") from error
    if not found:
        raise ImageFaultError("image file of 0 bytes")
    return found


def _data_of(address: str) -> bytes:
    """Return the bytes that a `data:` address in base64 holds (RFC 2397)."""
    head, comma, data = address.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageFaultError(
            f"image address {address[:40]!r} is not in base64; write data:image/png;base64,..."
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageFaultError(f"image address {head},... is no base64 ({error})") from error


def decode(file_bytes: bytes) -> Image.Image:
    """Decode a picture to RGB: turned as its camera says, with white behind transparent pixels.

    Grey pictures of 16 bits keep their upper 8 bits. Of a picture with several frames the first one
    is taken.

    Raises:
        ImageFaultError: the bytes are no picture that can be read, or its sides differ by more than
            a factor of 200.
    """
    try:
        with Image.open(io.BytesIO(file_bytes)) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
        rgb = _rgb(picture)
    except ImageFaultError:
        raise
    except Exception as error:  # decoders raise what they like on broken files
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageFaultError(f"image can't be read ({reason}); replace the file") from error
    width, height = rgb.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageFaultError(
            f"image of {width} x {height} pixels: one side is over {MAX_ASPECT} times the other; "
            "crop or pad the picture"
        )
    return rgb


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in DEEP:
        return _shallow(picture).convert("RGB")
    if picture.mode == "F":
        raise ImageFaultError("image of floating-point pixels; save the picture with 8 bits")
    if picture.has_transparency_data:
        shown = picture.convert("RGBA")
        white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, shown).convert("RGB")
    return picture.convert("RGB")


def _shallow(picture: Image.Image) -> Image.Image:
    """Return the upper 8 bits of a grey picture of 16 bits."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageFaultError("image of more than 16 bits a pixel; save the picture with 8 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def describe_picture(file_bytes: bytes) -> str:
    """Return the size and the mean colour of a picture, such as `56 x 56 pixels, mean #e01010`.

    Raises:
        ImageFaultError: the bytes are no picture that can be used.
    """
    picture = decode(file_bytes)
    red, green, blue = np.asarray(picture).reshape(-1, 3).mean(axis=0).round().astype(int)
    width, height = picture.size
    return f"{width} x {height} pixels, mean #{red:02x}{green:02x}{blue:02x}"


def thumbnail(file_bytes: bytes, side: int) -> bytes:
    """Return a picture as a JPEG file of at most `side` x `side` pixels.

    Raises:
        ImageFaultError: the bytes are no picture that can be used.
    """
    small = decode(file_bytes)
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=80)
    return file.getvalue()


def file_of(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file, pixel for pixel.

    Raises:
        ImageFaultError: PNG files hold no such pixels.
    """
    file = io.BytesIO()
    try:
        shown = picture if picture.mode in PNG_MODES else picture.convert("RGB")
        shown.save(file, format="PNG")
    except Exception as error:  # pictures are read from their files late, and may be broken
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageFaultError(f"picture of mode {picture.mode} can't be kept ({reason})") from error
    return file.getvalue()


def png_of(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return colours [height, width, 3] as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
