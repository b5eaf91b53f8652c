"""Put the tokens of images into a prompt: one placeholder becomes all tokens of its image, once.

Ids that are expanded already would be expanded again by an engine, silently; here the ids of a
prompt are expanded once, in the rollout worker, and the places are recorded. A token that the
policy samples is never a place of an image, whatever its id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workers.data.images.decoding import ImageFaultError
from workers.data.images.settings import Grid, ImageSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpan:
    """Place of one image in the tokens of a prompt.

    Features go to the positions offset <= i < offset + length that hold the model's image token: to
    all of them in Qwen2.5-VL, to those between the marks of tiles in Idefics3.

    Example, an image of 4 x 4 patches behind 17 tokens of text:
        ImageSpan(offset=17, length=4, grid=(1, 4, 4), digest="9f86d081...")

    Attributes:
        offset: position of its first token.
        length: tokens in all.
        grid: frames, rows and columns of patches; of tiles in Idefics3.
        digest: SHA-256 of the file and the pixel settings.
    """

    offset: int
    length: int
    grid: Grid
    digest: str


def expand(
    tokens: Sequence[int],
    images: Sequence[tuple[Grid, str]],
    settings: ImageSettings,
    encode: Callable[[str], Sequence[int]],
) -> tuple[list[int], list[ImageSpan]]:
    """Put every image's tokens in the place of its placeholder.

    Args:
        tokens: [T] ids with one image token per image.
        images: grid and digest of each, in the order of the prompt.
        settings: of the model.
        encode: text to ids, without tokens at the ends; Idefics3's marks of tiles need it.

    Returns:
        The ids of the prompt, and a span per image.

    Raises:
        ImageFaultError: another number of placeholders than of images.
    """
    places = [place for place, token in enumerate(tokens) if token == settings.image_token_id]
    if len(places) != len(images):
        raise ImageFaultError(
            f"{len(places)} places for images in the prompt and {len(images)} images; "
            "give one image per place"
        )
    ids: list[int] = []
    spans: list[ImageSpan] = []
    begin = 0
    for place, (grid, digest) in zip(places, images, strict=True):
        ids.extend(tokens[begin:place])
        inside = _inside(grid, settings, encode)
        spans.append(ImageSpan(offset=len(ids), length=len(inside), grid=grid, digest=digest))
        ids.extend(inside)
        begin = place + 1
    ids.extend(tokens[begin:])
    return ids, spans


def _inside(
    grid: Grid, settings: ImageSettings, encode: Callable[[str], Sequence[int]]
) -> list[int]:
    """Return the tokens of one image, marks included."""
    if not settings.tile:
        return [settings.image_token_id] * settings.num_features(grid)
    _, rows, columns = grid
    features = "<image>" * (settings.num_features(grid) // settings.num_rows(grid))
    tiles = [
        "".join(
            f"<fake_token_around_image><row_{row + 1}_col_{column + 1}>{features}"
            for column in range(columns)
        )
        for row in range(rows)
    ]
    whole = f"<fake_token_around_image><global-img>{features}<fake_token_around_image>"
    # In one piece: a tokenizer may join the line ends between tiles to one token.
    return list(encode("".join(f"{row}\n" for row in tiles) + ("\n" if rows else "") + whole))
