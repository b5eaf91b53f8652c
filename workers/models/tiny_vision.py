"""Tiny vision-language model with random weights, saved as an ordinary Hugging Face folder.

It is the real architecture in small (Qwen2.5-VL or Idefics3, loadable by transformers and vLLM),
with the character-level tokenizer of `tokenizer`, a chat template for messages with image parts and
the files of an image processor. Runs in the driver, before anything starts, and in tests. Trains
nothing and reads no image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from workers.models.cache import build_once, default_path, without_progress_bars
from workers.models.tokenizer import VOCABULARY, build_tokenizer

ARCHITECTURES = ("qwen2_5_vl", "idefics3")
HEAD_SIZE = 32  # the smallest that vLLM's CPU attention accepts
PATCH_SIZE = 14
TILE_SIZE = 56  # Idefics3: an image is 2 x 2 tiles and one small copy of the whole
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IDEFICS_TOKENS = (
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'PLACEHOLDER' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tiny_vision(
    path: str | Path | None = None,
    *,
    architecture: str = "qwen2_5_vl",
    hidden_size: int = 128,
    num_layers: int = 2,
    vision_layers: int = 2,
    max_position_embeddings: int = 2048,
    tie_word_embeddings: bool = True,
    seed: int = 0,
) -> Path:
    """Build a float32 model, its tokenizer and its image processor; do nothing if all is there.

    An image of 56 x 56 pixels is 4 image tokens of Qwen2.5-VL, and 5 tiles of 4 of Idefics3. The
    weights depend on the arguments and the seed only.

    Args:
        path: the folder to write, one in the cache named after the arguments if None.
        architecture: "qwen2_5_vl" or "idefics3".
        hidden_size: width of the decoder; a multiple of 64.
        num_layers: layers of the decoder.
        vision_layers: layers of the vision tower.
        max_position_embeddings: longest sequence in tokens, prompt and response together.
        tie_word_embeddings: True where the head shares the embedding matrix.
        seed: of the random weights; torch's global generator is left as it was.

    Returns:
        The folder, absolute.

    Raises:
        ValueError: an unknown architecture, an impossible size, or `path` holds another model.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r}: choose {' or '.join(ARCHITECTURES)}")
    if hidden_size < 1 or hidden_size % (2 * HEAD_SIZE):
        raise ValueError(f"hidden_size={hidden_size}: give a multiple of {2 * HEAD_SIZE}")
    if min(num_layers, vision_layers) < 1:
        raise ValueError(f"layers {num_layers} and {vision_layers}: give at least 1 of each")
    recipe: dict[str, Any] = {
        "model": "tiny_vision",
        "architecture": architecture,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "vision_layers": vision_layers,
        "max_position_embeddings": max_position_embeddings,
        "tie_word_embeddings": tie_word_embeddings,
        "vocabulary": "".join(VOCABULARY),
        "seed": seed,
    }
    write = _write_qwen if architecture == "qwen2_5_vl" else _write_idefics
    return build_once(
        path or default_path(recipe, f"tiny-{architecture}"),
        recipe,
        lambda folder: write(recipe, folder),
    )


def _text_sizes(recipe: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    num_heads = recipe["hidden_size"] // HEAD_SIZE
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe["hidden_size"],
        "intermediate_size": 352,
        "num_hidden_layers": recipe["num_layers"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads // 2,
        "max_position_embeddings": recipe["max_position_embeddings"],
        "tie_word_embeddings": recipe["tie_word_embeddings"],
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _write_qwen(recipe: dict[str, Any], folder: Path) -> None:
    tokenizer = build_tokenizer(
        model_max_length=recipe["max_position_embeddings"],
        more=QWEN_TOKENS,
        chat_template=CHAT_TEMPLATE.replace(
            "PLACEHOLDER", "<|vision_start|><|image_pad|><|vision_end|>"
        ),
    )
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS))
    config = Qwen2_5_VLConfig(
        text_config={
            **_text_sizes(recipe, tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": recipe["vision_layers"],
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": PATCH_SIZE,
            "window_size": 56,
            "fullatt_block_indexes": [recipe["vision_layers"] - 1],
            "out_hidden_size": recipe["hidden_size"],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=recipe["tie_word_embeddings"],
    )
    _save(Qwen2_5_VLForConditionalGeneration, config, recipe, tokenizer, folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}
    Qwen2VLImageProcessorPil(patch_size=PATCH_SIZE, size=size).save_pretrained(folder)
    _note_processor(folder, "Qwen2_5_VLProcessor")


def _write_idefics(recipe: dict[str, Any], folder: Path) -> None:
    tokenizer = build_tokenizer(
        model_max_length=recipe["max_position_embeddings"],
        more=IDEFICS_TOKENS,
        chat_template=CHAT_TEMPLATE.replace("PLACEHOLDER", "<image>"),
    )
    config = Idefics3Config(
        text_config={"model_type": "llama", **_text_sizes(recipe, tokenizer)},
        vision_config={
            "num_hidden_layers": recipe["vision_layers"],
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 2,
            "image_size": TILE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=recipe["tie_word_embeddings"],
    )
    _save(Idefics3ForConditionalGeneration, config, recipe, tokenizer, folder)
    Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * TILE_SIZE}, max_image_size={"longest_edge": TILE_SIZE}
    ).save_pretrained(folder)
    tokens_of_tile = (TILE_SIZE // PATCH_SIZE // config.scale_factor) ** 2
    settings = {"processor_class": "Idefics3Processor", "image_seq_len": tokens_of_tile}
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    _note_processor(folder, "Idefics3Processor")


def _save(
    kind: type[PreTrainedModel],
    config: Any,
    recipe: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    with torch.random.fork_rng(devices=[]), without_progress_bars():
        torch.manual_seed(recipe["seed"])
        kind(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _note_processor(folder: Path, name: str) -> None:
    """Name the class of the processor, which an image processor saved by itself leaves out."""
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text()) | {"processor_class": name}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
