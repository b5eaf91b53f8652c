"""Images in a real vLLM: ids, features and log-probs are those of transformers' own forward."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.workers.data.images.folders import file_of, noise
from workers.data.images import ImageLimits, PromptImages, normalised
from workers.data.prompts import PromptEncoder
from workers.data.requests import Sampling
from workers.engines.vllm import image_only
from workers.engines.vllm.engine import VLLMEngine, VLLMSettings, engine_env
from workers.engines.vllm.images import engine_input
from workers.models.tiny_vision import build_tiny_vision

LIMITS = ImageLimits(max_pixels=64 * 28 * 28, max_per_prompt=3)
SMALL, WIDE, LARGE = (
    file_of(noise(56, 56, seed=1)),
    file_of(noise(150, 60, seed=2)),
    file_of(noise(400, 300, seed=3)),
)
PROMPTS = {
    "no image": ("2+3=", ()),
    "one image": ("<image>colour?", (SMALL,)),
    "two images": ("first <image> then <image> differ?", (SMALL, WIDE)),
    "adjacent images": ("<image><image>equal?", (WIDE, WIDE)),
    "longer than a chunk": ("a word before <image> and then <image>?", (LARGE, LARGE)),
}
#: At most 64 tokens are read at once; and the cache of pictures is on, which is off in a run.
IN_PARTS = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "mm_processor_cache_gb": 1}
EXACT = {"atol": 2e-5, "rtol": 0}
SAMPLING = Sampling(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return grown(build_tiny_vision(tmp_path_factory.mktemp("models") / "tiny", seed=3))


def grown(folder):
    """Make weights so large that a wrong position or pixel matters."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def encoder(folder):
    return PromptEncoder(folder, 512, images=LIMITS)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def start(folder, loop):
    settings = VLLMSettings(
        model_path=str(folder),
        kv_cache_memory_bytes=64 << 20,
        max_model_len=512,
        images=LIMITS,
        engine_kwargs=IN_PARTS,
    )
    with pytest.MonkeyPatch.context() as patch:
        for key, value in engine_env(settings, 1).items():
            patch.setitem(os.environ, key, value)
        engine = VLLMEngine(settings)
        loop.run_until_complete(engine.start(version=4))
        yield engine
        loop.run_until_complete(engine.shutdown())


@pytest.fixture(scope="module")
def engine(folder, loop) -> Iterator[VLLMEngine]:
    yield from start(folder, loop)


def encoded(encoder, name) -> tuple[list[int], PromptImages]:
    text, files = PROMPTS[name]
    tokens, images, fault = encoder.encode_shown(text, encoder.load(files) if files else ())
    assert fault is None
    return tokens, images


def draw(engine, loop, tokens, images, name, **changes):
    sampling = replace(SAMPLING, **changes)
    return loop.run_until_complete(
        engine.generate(tokens, request_id=name, sampling=sampling, seed=5, images=images)
    )


@torch.no_grad()
def logprobs(model, tokens, images: PromptImages, **how):
    """Log-probs of transformers' forward of the whole model, without any code of ours."""
    inputs = dict(how)
    if images.spans:
        pixels = [normalised(image.patches, images.settings) for image in images.loaded]
        shown = torch.zeros(1, len(tokens), dtype=torch.long)
        for span in images.spans:
            shown[0, span.offset : span.offset + span.length] = 1
        inputs |= {
            "pixel_values": torch.cat([torch.from_numpy(values) for values in pixels]),
            "image_grid_thw": torch.tensor([span.grid for span in images.spans]),
            "mm_token_type_ids": shown,
        }
    logits = model(torch.tensor([tokens]), use_cache=False, **inputs).logits[0]
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def without_image_tokens(sample, images) -> bool:
    """Such tokens the policy may sample; transformers' own forward refuses them."""
    return not images.spans or images.settings.image_token_id not in sample.tokens


@pytest.mark.parametrize("name", PROMPTS)
def test_logprobs_of_sampled_tokens_are_those_of_transformers(
    engine, loop, encoder, reference, name
):
    tokens, images = encoded(encoder, name)
    sample = draw(engine, loop, tokens, images, name)
    assert without_image_tokens(sample, images)
    expected = logprobs(reference, tokens + sample.tokens, images)[len(tokens) - 1 :]
    torch.testing.assert_close(torch.tensor(sample.logprobs), expected, **EXACT)
    assert (len(tokens) > 64) == (name == "longer than a chunk")


def test_positions_of_one_axis_would_be_noticed(engine, loop, encoder, reference):
    tokens, images = encoded(encoder, "two images")
    sample = draw(engine, loop, tokens, images, "flat")
    whole = tokens + sample.tokens
    flat = torch.arange(len(whole)).expand(3, 1, -1)
    wrong = logprobs(reference, whole, images, position_ids=flat)[len(tokens) - 1 :]
    assert (torch.tensor(sample.logprobs) - wrong).abs().max() > 0.1


def test_prompt_logprobs_see_the_image(engine, loop, encoder, reference):
    tokens, images = encoded(encoder, "two images")
    found = loop.run_until_complete(engine.prompt_logprobs(tokens, images=images))
    expected = logprobs(reference, tokens, images)
    torch.testing.assert_close(torch.tensor(found[1:]), expected, **EXACT)


def test_another_image_behind_the_same_text_equals_a_cleared_cache(engine, loop, encoder):
    text = "the same long text before every image of this test: <image>?"
    answers = []
    for file in (WIDE, LARGE):
        images = encoder.load([file])
        answers.append(encoder.encode_shown(text, images)[:2])
    first, cached = (draw(engine, loop, *one, f"cached{i}") for i, one in enumerate(answers))
    loop.run_until_complete(engine.reset_prefix_cache())
    fresh = draw(engine, loop, *answers[1], "fresh")
    assert (fresh.tokens, fresh.logprobs) == (cached.tokens, cached.logprobs)
    assert first.logprobs != cached.logprobs


def test_a_seen_image_is_answered_after_the_caches_were_cleared(engine, loop, encoder, reference):
    """As a publication clears them, once between two requests and once in the middle of one."""
    tokens, images = encoded(encoder, "one image")

    async def clear() -> None:
        await engine.pause()
        await engine.resume()

    async def in_the_middle():
        sampling = replace(SAMPLING, max_tokens=64)
        drawing = asyncio.create_task(
            engine.generate(tokens, request_id="middle", sampling=sampling, seed=8, images=images)
        )
        await asyncio.sleep(0.05)
        assert not drawing.done()
        await clear()
        return await drawing

    before = draw(engine, loop, tokens, images, "before")
    loop.run_until_complete(clear())
    after = draw(engine, loop, tokens, images, "after")
    assert (after.tokens, after.finish_reason) == (before.tokens, "length")
    middle = loop.run_until_complete(in_the_middle())
    assert len(middle.tokens) == 64
    clean = middle.tokens[: next_image_token(middle.tokens, images)]
    expected = logprobs(reference, tokens + clean, images)[len(tokens) - 1 :]
    torch.testing.assert_close(torch.tensor(middle.logprobs[: len(clean)]), expected, **EXACT)


def next_image_token(tokens, images) -> int:
    token = images.settings.image_token_id
    return tokens.index(token) if token in tokens else len(tokens)


@torch.no_grad()
def idefics_logprobs(model, tokens, images: PromptImages):
    pixels = [normalised(image.patches, images.settings) for image in images.loaded]
    values = torch.cat([torch.from_numpy(one) for one in pixels])[None] if pixels else None
    logits = model(torch.tensor([tokens]), pixel_values=values, use_cache=False).logits[0]
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


@pytest.mark.slow
def test_idefics_agrees_with_transformers_too(tmp_path, loop):
    folder = grown(build_tiny_vision(tmp_path / "tiny", architecture="idefics3", seed=3))
    reference = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    encoder = PromptEncoder(folder, 512, images=LIMITS)
    for engine in start(folder, loop):
        for name in PROMPTS:
            tokens, images = encoded(encoder, name)
            sample = draw(engine, loop, tokens, images, name)
            assert without_image_tokens(sample, images)
            expected = idefics_logprobs(reference, tokens + sample.tokens, images)
            found = torch.tensor(sample.logprobs)
            torch.testing.assert_close(found, expected[len(tokens) - 1 :], **EXACT)


def test_a_picture_given_to_vllm_itself_is_lost_behind_a_publication(engine, loop, encoder):
    """The reason for rendered input; where vLLM mends it, this test says so."""
    from PIL import Image
    from vllm import SamplingParams

    picture = Image.new("RGB", (56, 56), (9, 99, 199))
    tokens, images = encoded(encoder, "one image")
    raw = {"prompt_token_ids": [*tokens[:1], *tokens[4:]], "multi_modal_data": {"image": picture}}
    assert raw["prompt_token_ids"].count(images.settings.image_token_id) == 1

    async def ask(name):
        last = None
        params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
        async for output in engine._live().generate(raw, params, name):
            last = output
        return last.outputs[0].token_ids

    async def run():
        await ask("raw1")
        await engine.pause()
        await engine.resume()
        return await ask("raw2")

    assert len(loop.run_until_complete(run())) == 0


def test_vllm_takes_the_fields_that_are_rendered(encoder):
    """Contract with the installed vLLM: its own processor would name the same fields."""
    from vllm.model_executor.models.qwen2_vl import _create_qwen2vl_field_factory
    from vllm.multimodal.inputs import MultiModalKwargsItems

    from workers.engines.vllm.images import _pixels

    tokens, images = encoded(encoder, "two images")
    rendered = engine_input(tokens, images)
    data = _pixels(images, images.settings)
    theirs = MultiModalKwargsItems.from_hf_inputs(data, _create_qwen2vl_field_factory(2)(data))
    for ours, their in zip(rendered["mm_kwargs"]["image"], theirs["image"], strict=True):
        assert ours.keys() == their.keys()
        for name in ours:
            assert torch.equal(ours[name].data, their[name].data)
            assert ours[name].field == their[name].field


def test_a_model_without_videos_stands_in_where_torchvision_is_absent():
    import importlib.util

    from vllm import ModelRegistry

    image_only.register_image_only()
    found = ModelRegistry.models["Qwen2_5_VLForConditionalGeneration"]
    expected = importlib.util.find_spec("torchvision") is None
    assert (found.module_name == "workers.engines.vllm.image_only_model") == expected
