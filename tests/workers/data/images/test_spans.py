import re
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.workers.data.images.folders import file_of, idefics_folder, noise, qwen_folder
from workers.data.images.decoding import ImageFaultError, decode
from workers.data.images.patches import patches_of
from workers.data.images.settings import ImageSettings, read_image_settings
from workers.data.images.spans import ImageSpan, expand

MARKS = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
SPECIAL = [
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *MARKS,
]
WORDS = ["a", "b", "\n\n", "\n", "<unk>"]


def settings_of(folder: Path) -> ImageSettings:
    settings = read_image_settings(folder, max_pixels=None)
    assert settings is not None
    return settings


def no_text(text: str) -> list[int]:
    raise AssertionError(f"{text!r} was encoded")


def idefics_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of letters that joins two line ends to one token; `<image>` is 7."""
    names = [*WORDS, "x", "y", *SPECIAL]
    backend = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", additional_special_tokens=SPECIAL
    )


def test_one_placeholder_becomes_all_tokens_of_its_image(tmp_path: Path) -> None:
    ids, spans = expand(
        [1, 7, 2, 7, 7, 3],
        [((1, 4, 4), "a"), ((1, 2, 4), "b"), ((1, 2, 2), "a")],
        settings_of(qwen_folder(tmp_path)),
        no_text,
    )
    assert ids == [1, 7, 7, 7, 7, 2, 7, 7, 7, 3]
    assert spans == [
        ImageSpan(offset=1, length=4, grid=(1, 4, 4), digest="a"),
        ImageSpan(offset=6, length=2, grid=(1, 2, 4), digest="b"),
        ImageSpan(offset=8, length=1, grid=(1, 2, 2), digest="a"),
    ]


@pytest.mark.parametrize(
    ("tokens", "grids", "counts"),
    [([1, 7, 7], 1, (2, 1)), ([1], 1, (0, 1)), ([7], 0, (1, 0)), ([7] * 4, 1, (4, 1))],
)
def test_places_and_images_must_match(
    tmp_path: Path, tokens: list[int], grids: int, counts: tuple[int, int]
) -> None:
    reason = f"{counts[0]} places for images in the prompt and {counts[1]} images"
    with pytest.raises(ImageFaultError, match=re.escape(reason)):
        expand(tokens, [((1, 4, 4), "a")] * grids, settings_of(qwen_folder(tmp_path)), no_text)


@pytest.mark.parametrize("size", [(30, 30), (300, 200), (90, 300)])
def test_ids_of_idefics_equal_those_of_its_processor(tmp_path: Path, size: tuple[int, int]) -> None:
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    settings = settings_of(idefics_folder(tmp_path))
    tokenizer = idefics_tokenizer()
    file = file_of(noise(*size))
    _, grid = patches_of(file, settings)
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil.from_pretrained(str(tmp_path)), tokenizer, image_seq_len=4
    )
    theirs = processor(images=[decode(file)], text="a<image>b\n", return_tensors="np")
    ids, (span,) = expand(
        tokenizer("a<image>b\n")["input_ids"],
        [(grid, "")],
        settings,
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
    )
    assert ids == theirs["input_ids"][0].tolist()
    inside = ids[span.offset : span.offset + span.length]
    assert inside.count(7) == settings.num_features(grid)
