"""Embeddings of packed batches with images: features stand where the spans say.

A tower that the run freezes computes every image once, and keeps its features for later batches and
passes. A tower that trains, or whose weights ZeRO-3 has divided, is run by every micro-batch, also
by one without an image (on a blank one, times zero): all ranks then take part in the same
collectives. Runs in the ranks of learner and reference. Decides neither what is frozen nor which
rows are computed together.

Legend: n computed tokens, F features of a batch's images, H hidden size.
"""

from collections import OrderedDict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.data.images.packed import TEXT, PackedImages
from workers.data.shared_prefixes import SharedPrefixes
from workers.engines.model.vision.layouts import VisionLayout
from workers.engines.model.vision.names import KEPT_BYTES


class FeatureStore:
    """Features of images by digest, of which the longest unused leave when there are too many."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._kept: OrderedDict[tuple[str, str], Tensor] = OrderedDict()

    def get(self, key: tuple[str, str]) -> Tensor | None:
        """Return the features [f, H] of an image, or None."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: tuple[str, str], features: Tensor) -> None:
        """Keep the features [f, H] of an image."""
        self._kept[key] = features
        self._num_bytes += features.nbytes
        while self._num_bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._num_bytes -= dropped.nbytes


class VisionTower:
    """Tower of a vision-language model, as packed batches use it.

    Args:
        layout: of the family.

    Attributes:
        fixed: True where the run changes no weight of the tower: features are kept.
        divided: True where ranks hold parts of the tower's weights (ZeRO-3).
        num_runs: images that the tower has computed.
    """

    def __init__(self, layout: VisionLayout) -> None:
        self.layout = layout
        self.fixed, self.divided = False, False
        self.num_runs = 0
        self._store = FeatureStore()

    def set_modes(self) -> None:
        """Keep a tower that does not train from being recomputed by a backward pass."""
        if self.fixed:
            for part in self.layout.parts:
                for module in part.modules():
                    module.training = False

    def embeddings(
        self,
        model: PreTrainedModel,
        tokens: Tensor,  # [n] int64
        images: PackedImages | None,
        prefixes: SharedPrefixes | None,
    ) -> Tensor:
        """Return what the decoder reads [n, H]: embeddings of tokens, features of images."""
        embedded: Tensor = model.get_input_embeddings()(tokens)
        if images is None:
            if self.divided or (torch.is_grad_enabled() and not self.fixed):
                embedded = embedded + 0.0 * self._computed_blank(tokens.device).sum()
            return embedded
        features = self._features(images).to(embedded.dtype)  # [F, H]
        index = images.features if prefixes is None else images.features[prefixes.computed]
        # Not `embedded[index != TEXT] = ...`: to pick by a mask, the host waits for the device.
        stands = features[index.clamp(min=0)]  # [n, H]
        return torch.where((index == TEXT)[:, None], embedded, stands)

    def _features(self, images: PackedImages) -> Tensor:
        if not self.fixed or self.divided:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed):
                return self._computed(images.patches, images.grids)
        settings, device = self.layout.settings, images.patches.device
        # Features of another precision are others.
        precision = str(torch.get_autocast_dtype(device.type))
        if not torch.is_autocast_enabled(device.type):
            precision = "none"
        rows = images.patches.split([settings.num_rows(grid) for grid in images.grids])
        found = [self._store.get((digest, precision)) for digest in images.digests]
        new = [number for number, features in enumerate(found) if features is None]
        if new:
            grids = [images.grids[number] for number in new]
            with torch.no_grad():
                computed = self._computed(torch.cat([rows[number] for number in new]), grids)
            sizes = [settings.num_features(grid) for grid in grids]
            for number, features in zip(new, computed.split(sizes), strict=True):
                found[number] = features
                self._store.put((images.digests[number], precision), features.clone())
        return torch.cat([features for features in found if features is not None])

    def _computed(self, patches: Tensor, grids: tuple[tuple[int, int, int], ...] | list) -> Tensor:
        self.num_runs += len(grids)
        return self.layout.features(self.layout.normalised(patches), grids)

    def _computed_blank(self, device: torch.device) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed):
            return self.layout.features(
                self.layout.normalised(self.layout.blank(device)), [self.layout.smallest]
            )
