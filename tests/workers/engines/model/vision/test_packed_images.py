"""Rows with images in one packed batch are computed as transformers computes each by itself."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tests.workers.engines.model.vision.pictures import Rows, mixed_rows, png, settings_of
from workers.data.images.packed import identities
from workers.data.packing import PackedBatch, pack_sequences
from workers.data.shared_prefixes import share_prefixes
from workers.engines.model.policy_model import PolicyModel, load_policy_model
from workers.models.tiny_vision import build_tiny_vision

FAMILIES = ("qwen2_5_vl", "idefics3")
WEIGHT = 4.0  # tiny random weights made large, so that a wrong place would show


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision-language model with large weights."""
    path = tmp_path_factory.mktemp(request.param)
    built = build_tiny_vision(path / "built", architecture=request.param, tie_word_embeddings=False)
    model = AutoModelForImageTextToText.from_pretrained(built, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(WEIGHT)
    for file in built.iterdir():
        if file.suffix != ".safetensors":
            (path / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(path)
    return path


def own_logprobs(folder: Path, rows: Rows) -> tuple[Any, list[Tensor]]:
    """Log-probs of every row by transformers' own forward pass, one row at a time.

    A sampled image token is text: what precedes it is given as ids, and the token's own embedding
    is put in by hand, because the whole model refuses it.
    """
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation("eager")
    found = []
    for number, tokens in enumerate(rows.tokens):
        ids = torch.tensor(tokens)[None]
        spans = rows.spans[number]
        embedded = model.get_input_embeddings()(ids)
        pixels: dict[str, Any] = {}
        where = np.zeros(len(tokens), dtype=bool)
        for span in spans:
            where[span.offset : span.offset + span.length] = True
        if spans:
            features = []
            for span in spans:
                patches = rows.patches[span.digest]
                mean, std = np.array(rows.settings.mean), np.array(rows.settings.std)
                scaled = patches.reshape(len(patches), 3, -1) / 255
                values = ((scaled - mean[:, None]) / std[:, None]).reshape(patches.shape)
                pixel_values = torch.tensor(values, dtype=torch.float32)
                if rows.settings.family == "idefics3":
                    out = model.model.get_image_features(pixel_values[None]).pooler_output
                    features.append(out.flatten(0, 1))
                else:
                    out = model.model.get_image_features(pixel_values, torch.tensor([span.grid]))
                    features += list(out.pooler_output)
            embedded = embedded.clone()
            embedded[0, torch.from_numpy(where)] = torch.cat(features)
        if rows.settings.family == "qwen2_5_vl" and spans:
            kinds = torch.from_numpy(where)[None].int()
            grids = torch.tensor([span.grid for span in spans])
            pixels["position_ids"], _ = model.model.get_rope_index(ids, kinds, grids)
        hidden = model.get_decoder()(inputs_embeds=embedded, use_cache=False, **pixels)
        logits = model.lm_head(hidden.last_hidden_state[0])
        logp = logits[:-1].log_softmax(-1)
        found.append(logp.gather(1, ids[0, 1:, None])[:, 0])
    return model, found


def logprobs(policy: PolicyModel, batch: PackedBatch) -> list[Tensor]:
    """Log-probs of every row but of its first token."""
    flat = policy.packed_outputs(batch)
    ends = batch.cu_seqlens.tolist()
    return [flat[begin + 1 : end] for begin, end in pairwise(ends)]


def shared(batch: PackedBatch, groups: list[int]) -> PackedBatch:
    """The batch with common prefixes of each group laid once."""
    ends = batch.cu_seqlens.numpy().astype(np.int64)
    read = identities(batch.tokens.numpy(), batch.images)
    return replace(batch, prefixes=share_prefixes(read, ends, np.asarray(groups)))


GROUPS = [0, 1, 2, 3, 1, 1, 4]


@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_packed_rows_and_gradients_equal_each_row_by_itself(
    folder: Path, sharing: bool, frozen: bool
) -> None:
    rows = mixed_rows(settings_of(folder))
    model, wanted = own_logprobs(folder, rows)
    policy = load_policy_model(folder)
    policy.freeze(None if frozen else [])
    batch = pack_sequences(rows.tokens, rows.images)
    if sharing:
        batch = shared(batch, GROUPS)
        assert batch.prefixes is not None
        assert batch.num_computed < batch.num_tokens - 4  # the siblings' picture is there once
    found = logprobs(policy, batch)
    for own, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
    torch.cat(wanted).square().sum().backward()
    torch.cat(found).square().sum().backward()
    theirs = dict(model.named_parameters())
    worst, trained = 0.0, 0
    for name, parameter in policy.model.named_parameters():
        if frozen and name.startswith(("model.visual", "model.vision_model", "model.connector")):
            assert parameter.grad is None, name
            continue
        reference = theirs[name].grad
        assert parameter.grad is not None, name
        if reference.norm() > 1e-4:  # the bias of keys has no gradient but rounding
            relative = (parameter.grad - reference).norm() / reference.norm()
            worst, trained = max(worst, float(relative)), trained + 1
    assert worst < 1e-5
    assert trained > (20 if frozen else 40)


def test_a_feature_at_another_place_would_show(folder: Path) -> None:
    rows = mixed_rows(settings_of(folder))
    policy = load_policy_model(folder).eval()
    batch = pack_sequences(rows.tokens, rows.images)
    assert batch.images is not None
    turned = replace(batch.images, features=batch.images.features.roll(1))
    with torch.no_grad():
        right = policy.packed_outputs(batch)
        wrong = policy.packed_outputs(replace(batch, images=turned))
    assert (right - wrong).abs().max() > 0.05


def test_positions_of_one_axis_would_show(tmp_path: Path) -> None:
    folder = build_tiny_vision(tmp_path / "model")
    rows = Rows(settings_of(folder))
    rows.add([5, 6], png(140, 112, 4), [7, 8, 9, 10, 11])
    policy = load_policy_model(folder).eval()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(WEIGHT)
        batch = pack_sequences(rows.tokens, rows.images)
        assert batch.images is not None
        flat = replace(batch, images=replace(batch.images, positions=None))
        gap = (policy.packed_outputs(batch) - policy.packed_outputs(flat))[-4:].abs().max()
    assert gap > 0.05


def test_siblings_with_other_pictures_share_no_more_than_the_text_before(folder: Path) -> None:
    settings = settings_of(folder)
    rows = Rows(settings)
    rows.add([5, 6], png(56, 56, 1), [7])
    rows.add([5, 6], png(56, 56, 2), [7])
    batch = shared(pack_sequences(rows.tokens, rows.images), [0, 0])
    assert batch.prefixes is not None
    assert batch.num_tokens - batch.num_computed == 2


def test_a_frozen_tower_computes_every_picture_once(folder: Path) -> None:
    rows = mixed_rows(settings_of(folder))
    policy = load_policy_model(folder)
    policy.freeze()
    assert policy.vision is not None
    for _ in range(3):
        policy.packed_outputs(pack_sequences(rows.tokens, rows.images))
        policy.packed_outputs(pack_sequences(rows.tokens[:1]))
    assert policy.vision.num_runs == 3  # small, wide, tall


def test_a_batch_without_a_picture_reaches_a_tower_that_trains(folder: Path) -> None:
    policy = load_policy_model(folder)
    policy.freeze([])
    policy.packed_outputs(pack_sequences([[5, 6, 7]])).sum().backward()
    tower = [p for n, p in policy.model.named_parameters() if n.startswith("model.vis")]
    assert len(tower) > 20
    assert all(p.grad is not None and float(p.grad.abs().max()) == 0.0 for p in tower)


def test_a_language_model_refuses_pictures(folder: Path, tmp_path: Path) -> None:
    from workers.models.tiny import build_tiny

    rows = mixed_rows(settings_of(folder))
    policy = load_policy_model(build_tiny(tmp_path / "text"))
    with pytest.raises(ValueError, match="LlamaForCausalLM takes no images"):
        policy.packed_outputs(pack_sequences(rows.tokens, rows.images))
