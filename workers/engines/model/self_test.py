"""Self-test of a loaded model: packed batches against the model's own forward pass.

transformers has hundreds of families, and a family may do what packed batches do not carry along:
a scale behind its head, an attention of its own, a state that runs on from one sequence into the
next, noise in train mode. So every model is asked once, after it is loaded, on two short sequences,
and a vision-language model on sequences with an image. Runs in every rank of learner, reference and
critic; under ZeRO-3 all ranks in step. Trains nothing.

Legend: N tokens of both sequences.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from workers.data.images.packed import RowImages, identities
from workers.data.images.spans import ImageSpan
from workers.data.packing import PackedBatch, pack_sequences
from workers.data.shared_prefixes import ALONE, SharedPrefixes, share_prefixes
from workers.engines.model.attention import VARLEN_SDPA
from workers.engines.model.packed_model import PackedModel

LENGTHS = (9, 6)
PREFIX = 5  # tokens that the siblings share
#: Greatest mean difference per token that rounding explains: kernels add in another order.
FLOAT32_TOLERANCE = 1e-3
HALF_TOLERANCE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """Mean absolute differences of log-probs (policy) or scaled hidden states (critic).

    Attributes:
        alone: a packed batch of one sequence against the model's own forward pass.
        together: both sequences in one batch against each in a batch of its own.
        training: train mode against eval mode.
        siblings: two that share a prefix against the same two that do not; 0 where none may.
        image: a sequence with an image, packed beside others, against the model's own forward pass;
            0 for a model without images.
        image_siblings: two that share a prefix with an image against the same two that do not.
    """

    alone: float
    together: float
    training: float
    siblings: float
    image: float = 0.0
    image_siblings: float = 0.0


def check_model(module: PackedModel, device: torch.device | str) -> Differences:
    """Compare packed batches with the model's own forward pass; return the differences.

    Everything is computed in the dtype of the weights, without autocast where the attention allows
    it, so that the tolerance is that of float32 for a policy that trains in bf16 as well.

    Raises:
        ValueError: a difference that rounding does not explain, with names and numbers.
    """
    weights = next(module.model.parameters()).dtype
    autocast = module.autocast
    if module.attention == VARLEN_SDPA:
        module.autocast = None
    exact = weights == torch.float32 and module.autocast is None
    try:
        found = _differences(module, device)
    finally:
        module.autocast = autocast
    tolerance = FLOAT32_TOLERANCE if exact else HALF_TOLERANCE
    faults = [
        f"{text} differs by {value:.2g}"
        for text, value in (
            ("a packed batch of one sequence from the model's own forward pass", found.alone),
            ("two sequences in one batch from each alone", found.together),
            ("train mode from eval mode", found.training),
            ("siblings that share a prefix from siblings that do not", found.siblings),
            ("a sequence with an image from the model's own forward pass", found.image),
            ("siblings that share an image from siblings that do not", found.image_siblings),
        )
        if not value <= tolerance
    ]
    if faults:
        raise ValueError(
            f"{type(module.model).__name__} is computed wrongly: {'; '.join(faults)} (mean over "
            f"{sum(LENGTHS)} tokens, allowed is {tolerance:g}, learner.attention="
            f"{module.attention}): packed batches do not support this model, use another one"
        )
    return found


def _differences(module: PackedModel, device: torch.device | str) -> Differences:
    was_training = module.training
    rows = _sequences(module.model.config.get_text_config())
    singles = [pack_sequences([row]).to(device) for row in rows]
    both = pack_sequences(rows).to(device)
    module.eval()
    with torch.no_grad():
        plain = torch.cat([module.plain_outputs(batch.tokens) for batch in singles])  # [N, ...]
        alone = torch.cat([module.packed_outputs(batch) for batch in singles])
        together = module.packed_outputs(both)
        module.train()
        training = module.packed_outputs(both)
        module.eval()
        siblings = 0.0
        if module.shares_prefixes:
            apart = pack_sequences([rows[0], rows[0][:PREFIX] + rows[1]])
            shared = replace(apart, prefixes=_one_group(apart)).to(device)
            siblings = _difference(
                module.packed_outputs(apart.to(device)), module.packed_outputs(shared)
            )
        image, image_siblings = _image_differences(module, rows[1], device)
        module.train(was_training)
    return Differences(
        alone=_difference(plain, alone),
        together=_difference(alone, together),
        training=_difference(together, training),
        siblings=siblings,
        image=image,
        image_siblings=image_siblings,
    )


def _image_differences(
    module: PackedModel, text: list[int], device: torch.device | str
) -> tuple[float, float]:
    """Compare a sequence with an image, and siblings behind the image; 0 without a tower."""
    if module.vision is None:
        return 0.0, 0.0
    layout = module.vision.layout
    settings = layout.settings
    generator = torch.Generator().manual_seed(0)
    shape = (settings.num_rows(layout.sample), *layout.row_shape())
    patches = torch.randint(256, shape, dtype=torch.uint8, generator=generator).numpy()
    length = settings.num_features(layout.sample)
    span = ImageSpan(offset=2, length=length, grid=layout.sample, digest="self-test")
    shown = [*text[:2], *[settings.image_token_id] * length]
    rows = [[*shown, *text[2:]], [*shown, *reversed(text)], text]
    images = RowImages(
        spans=[[span], [span], []], settings=settings, patches_of=lambda digest: patches
    )
    apart = pack_sequences(rows, images)
    packed = module.packed_outputs(apart.to(device))
    one = pack_sequences(rows[:1], replace(images, spans=[[span]])).to(device)
    image = _difference(module.plain_outputs(one.tokens, one.images), packed[: one.num_tokens])
    if not module.shares_prefixes:
        return image, 0.0
    ends = apart.cu_seqlens.numpy().astype(np.int64)  # [S+1]
    read = identities(apart.tokens.numpy(), apart.images)
    shared = replace(apart, prefixes=share_prefixes(read, ends, np.array([0, 0, ALONE])))
    return image, _difference(packed, module.packed_outputs(shared.to(device)))


def _one_group(batch: PackedBatch) -> SharedPrefixes | None:
    """Lay the common prefix of all sequences once."""
    ends = batch.cu_seqlens.numpy().astype(np.int64)  # [S+1]
    return share_prefixes(batch.tokens.numpy(), ends, np.zeros(len(ends) - 1, dtype=np.int64))


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().mean())


def _sequences(config: object) -> list[list[int]]:
    """Draw the sequences: always the same, without ids that mean padding or an image."""
    size: int = config.vocab_size  # type: ignore[attr-defined]
    special = {
        value
        for name, value in vars(config).items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    usable = torch.tensor([number for number in range(min(size, 1024)) if number not in special])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(usable), (sum(LENGTHS),), generator=generator)
    tokens: list[int] = usable[drawn].tolist()
    return [tokens[: LENGTHS[0]], tokens[LENGTHS[0] :]]
