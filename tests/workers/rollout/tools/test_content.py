"""Results of tools with images: through a real tool process to the messages of a rollout."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image

from tests.workers.data.images.folders import file_of, noise
from tests.workers.rollout.tools.test_environment import SETTINGS
from workers.data.images.decoding import ImageFaultError, decode
from workers.rollout.tools.content import as_json, content_of, from_json
from workers.rollout.tools.environment import ToolPlayer
from workers.rollout.tools.pool import ToolPool, ToolResult
from workers.rollout.tools.server import ToolServer
from workers.rollout.tools.toolset import Functions

FILE = file_of(noise(3, 2))
PATHS = [f"tests.workers.rollout.tools.test_content.{name}" for name in ("crop", "paint", "spoil")]


def crop(words: str = "left:") -> list:
    """Show a part of the picture."""
    return [{"type": "text", "text": words}, {"type": "image", "image": FILE}]


def paint(side: int) -> Image.Image:
    """Paint a square."""
    return Image.new("RGB", (side, side), (250, 0, 0))


def spoil() -> list:
    """Show a file that is no picture."""
    return [{"type": "image", "image": b"broken"}]


@pytest.fixture(scope="module")
def pool() -> Iterator[ToolPool]:
    server = ToolServer(
        toolsets={"tools": Functions(paths=PATHS)}, max_output_bytes=8, max_image_bytes=2000
    )
    pool = ToolPool(server, num_processes=1, timeout_s=20.0)
    yield pool
    pool.close()


def call(pool: ToolPool, name: str, **arguments: object) -> ToolResult:
    return asyncio.run(pool.call(name, arguments))


def test_a_tool_returns_a_picture_or_parts_of_text_and_images(pool: ToolPool):
    assert call(pool, "crop") == ToolResult(status="ok", content=("left:", FILE))
    (painted,) = call(pool, "paint", side=2).content
    assert isinstance(painted, bytes)
    assert decode(painted).getpixel((1, 1)) == (250, 0, 0)


def test_text_beside_an_image_is_cut_and_an_image_never_is(pool: ToolPool):
    text, file = call(pool, "crop", words="a long text").content
    assert (text, file) == ("a long t\n[cut: the first 8 of 11 bytes]", FILE)
    server = ToolServer(toolsets={"tools": Functions(paths=PATHS)}, max_image_bytes=9)
    status, reason = server.serve(("crop", {}))
    assert status == "error"
    assert f"images of {len(FILE)} bytes, beyond environment.player.max_image_bytes=9" in reason


def test_a_broken_image_is_an_error_of_the_call():
    server = ToolServer(toolsets={"tools": Functions(paths=PATHS)})
    status, reason = server.serve(("spoil", {}))
    assert status == "error"
    assert reason.startswith("ImageFaultError: image can't be read")


def test_json_that_only_looks_like_an_image_stays_text():
    found = [{"type": "image", "title": "a cat", "address": "https://x/a.png"}]
    assert content_of(found) is None
    assert content_of("text") is content_of({"type": "image", "image": FILE}) is None
    assert content_of([*found, {"type": "image", "image": FILE}]) == ["", FILE]


def test_a_content_comes_back_as_it_was():
    written = as_json(["left:", FILE], max_bytes=len(FILE))
    assert from_json(written) == ("left:", FILE)
    with pytest.raises(ImageFaultError, match="beyond"):
        as_json([FILE], max_bytes=len(FILE) - 1)


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("tool", [[("text", "left:"), ("image", FILE)], "7", "error: no"]),
        (
            "user",
            [
                [
                    *[("text", "left:"), ("image", FILE), ("text", "\n"), ("text", "7")],
                    *[("text", "\n"), ("text", "error: no")],
                ]
            ],
        ),
    ],
)
def test_the_messages_of_a_turn_show_images_in_their_place(role: str, expected: list):
    player = ToolPlayer.__new__(ToolPlayer)
    object.__setattr__(player, "settings", replace(SETTINGS, observe_as=role))
    results = [
        ("crop", ToolResult(status="ok", content=("left:", FILE))),
        ("add", ToolResult(status="ok", text="7")),
        ("add", ToolResult(status="error", text="no")),
    ]
    contents = [message["content"] for message in player._messages(1, results)]
    plain = [
        content if isinstance(content, str) else [(p["type"], p[p["type"]]) for p in content]
        for content in contents
    ]
    assert plain == expected
