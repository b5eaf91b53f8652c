"""Prompts with images: rows, places, token ids, and what is refused, with its reason."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.workers.data.images.folders import file_of, noise
from workers.data.images.decoding import ImageFaultError
from workers.data.images.prompt_images import with_places
from workers.data.images.settings import ImageLimits, read_image_settings
from workers.data.prompts import PromptEncoder, PromptSet
from workers.models.tiny import build_tiny
from workers.models.tiny_vision import build_tiny_vision

SMALL = file_of(noise(56, 56))
LIMITS = ImageLimits(max_per_prompt=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("models")
    return {
        "qwen": build_tiny_vision(parent / "qwen"),
        "idefics": build_tiny_vision(parent / "idefics", architecture="idefics3"),
        "text": build_tiny(parent / "text"),
    }


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, PromptEncoder]:
    return {name: PromptEncoder(path, 64, images=LIMITS) for name, path in folders.items()}


def encode(encoder: PromptEncoder, prompt: Any, files: list[bytes]) -> tuple[str, list[int], Any]:
    """Return the text of the ids, the places of the images, and the fault."""
    tokens, images, fault = encoder.encode_shown(prompt, encoder.load(files) if files else ())
    return encoder.decode(tokens), [span.offset for span in images.spans], fault


def chat(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


PAD = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
IN_PARTS = [
    {"type": "text", "text": "a", "image": None},
    {"type": "image", "text": None, "image": None},
    {"type": "text", "text": "b", "image": None},
]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a<image>b", f"a{PAD}b"),
        (chat("a<image>b"), f"<|im_start|>user\na{PAD}b<|im_end|>\n<|im_start|>assistant\n"),
        (chat(IN_PARTS), f"<|im_start|>user\na{PAD}b<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_text_messages_and_parts_show_an_image_alike(
    encoders: dict[str, PromptEncoder], prompt: Any, text: str
) -> None:
    found, offsets, fault = encode(encoders["qwen"], prompt, [SMALL])
    assert (found, fault) == (text, None)
    assert len(offsets) == 1


@pytest.mark.parametrize("prompt", ["<image>a", chat("<image>a"), chat(IN_PARTS[1:])])
def test_an_image_of_idefics_is_its_tiles_and_the_whole(
    encoders: dict[str, PromptEncoder], prompt: Any
) -> None:
    found, offsets, fault = encode(encoders["idefics"], prompt, [file_of(noise(100, 100))])
    assert fault is None
    assert [found.count(mark) for mark in ("<row_2_col_2>", "<global-img>", "<image>")] == [
        1,
        1,
        20,
    ]
    assert len(offsets) == 1


@pytest.mark.parametrize(
    ("prompt", "files", "fault"),
    [
        ("a", 1, "0 places for images in the prompt and 1 images; give one image per place"),
        ("<image>a", 0, "1 places for images in the prompt and 0 images"),
        ("<image><image>", 1, "2 places for images in the prompt and 1 images"),
        (chat(IN_PARTS), 2, "1 places for images in the prompt and 2 images"),
        ("<|image_pad|><image>", 1, "2 places for images in the prompt and 1 images"),
        ("<image>" + "a" * 60, 1, "prompt of 66 tokens, limit 64: 4 are of images; lower data."),
        ("a" * 65, 0, "prompt of 65 tokens, limit 64"),
        (chat(["<image>"]), 1, "message 0 with a part that is no mapping"),
    ],
)
def test_a_prompt_that_does_not_fit_its_images_is_refused_with_the_reason(
    encoders: dict[str, PromptEncoder], prompt: Any, files: int, fault: str
) -> None:
    _, _, found = encode(encoders["qwen"], prompt, [SMALL] * files)
    assert str(found).startswith(fault)


def test_text_alone_has_the_ids_that_it_has_without_images(
    folders: dict[str, Path], encoders: dict[str, PromptEncoder]
) -> None:
    plain = PromptEncoder(folders["qwen"], 64)
    assert encoders["qwen"].encode("2+3=") == plain.encode("2+3=")
    assert encoders["qwen"].encode("2+3=")[1] is None


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ([SMALL] * 4, r"prompt with 4 images, limit 3; raise data\.images\.max_per_prompt"),
        ([SMALL, b"broken"], r"image 1: image can't be read \(UnidentifiedImageError"),
        ([file_of(Image.new("RGB", (2, 500)))], "image 0: image of 2 x 500 pixels: one side is"),
    ],
)
def test_images_that_can_not_be_used_are_named(
    encoders: dict[str, PromptEncoder], files: list[bytes], fault: str
) -> None:
    with pytest.raises(ImageFaultError, match=fault):
        encoders["qwen"].load(files)


def test_a_text_model_takes_no_images(encoders: dict[str, PromptEncoder]) -> None:
    with pytest.raises(ImageFaultError, match="1 images for a model that takes none"):
        encoders["text"].load([SMALL])
    assert encode(encoders["text"], chat(IN_PARTS), [])[2] == (
        "message with an image for a model that takes none"
    )


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("column", "images"),
    [
        (pa.array(["a.png", "file:///b.png", None]), [("HERE/a.png",), ("file:///b.png",), ()]),
        (pa.array([b"x", b"y", None]), [(b"x",), (b"y",), ()]),
        (
            pa.array([{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "a"}, None], STRUCT),
            [(b"x",), ("HERE/a",), ()],
        ),
        (
            pa.array([[{"bytes": b"x"}, {"bytes": b"y"}], [], None], pa.list_(STRUCT)),
            [(b"x", b"y"), (), ()],
        ),
        (pa.array([["/a", "b"], ["c"], None]), [("/a", "HERE/b"), ("HERE/c",), ()]),
    ],
)
def test_an_image_column_holds_paths_or_bytes_one_or_several(
    tmp_path: Path, column: pa.Array, images: list[tuple[str | bytes, ...]]
) -> None:
    table = pa.table({"prompt": ["p"] * 3, "ground_truth": ["t"] * 3, "shown": column})
    pq.write_table(table, tmp_path / "train.parquet")
    prompts = PromptSet(
        tmp_path / "train.parquet",
        prompt_column="prompt",
        ground_truth_column="ground_truth",
        image_column="shown",
    )
    here = str(tmp_path)
    wanted = [
        tuple(one.replace("HERE", here) if isinstance(one, str) else one for one in row)
        for row in images
    ]
    assert [prompts[row].images for row in range(3)] == wanted
    assert prompts[0].columns == {}  # image bytes are no column of the reward


def test_an_image_column_that_is_not_there_or_holds_numbers_is_named(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["p"], "ground_truth": ["t"], "shown": [7]})
    pq.write_table(table, tmp_path / "train.parquet")
    names = {"prompt_column": "prompt", "ground_truth_column": "ground_truth"}
    with pytest.raises(ValueError, match=r"no column 'images' \(data\.image_column\)"):
        PromptSet(tmp_path / "train.parquet", **names, image_column="images")
    with pytest.raises(ValueError, match="the image column holds a int: '7'; give paths, bytes"):
        PromptSet(tmp_path / "train.parquet", **names, image_column="shown")[0]


def test_a_reward_sees_the_text_around_the_images() -> None:
    assert PromptEncoder.text(chat(IN_PARTS)) == "a<image>b"
    assert PromptEncoder.text("a<image>b") == "a<image>b"


def test_a_template_gets_parts_without_the_keys_of_others(
    folders: dict[str, Path],
) -> None:
    settings = read_image_settings(folders["qwen"], max_pixels=None)
    assert settings is not None
    assert with_places(chat(IN_PARTS), settings) == chat(
        [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    )
    assert with_places(chat("plain"), settings) == chat("plain")
