"""Features of images by family: pixels in, one vector per image token out.

A layout calls the tower and the connector of a transformers model by themselves, because the
model's whole forward pass hands the decoder's attention arguments to the tower too. Runs in the
ranks of learner and reference. Holds no weights and keeps no features.

Legend: I images, P patches of all of them, F features, H hidden size of the decoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.data.images.packed import TEXT, PackedImages
from workers.data.images.patches import normalised
from workers.data.images.settings import IDEFICS, QWEN, Grid, ImageSettings


class VisionLayout(ABC):
    """Tower and connector of one family of vision-language models.

    Args:
        model: of transformers, with a language-model head.
        settings: of its pixels.
    """

    #: The smallest image, for a batch that shows none, and one for the self-test.
    smallest: Grid
    sample: Grid

    def __init__(self, model: PreTrainedModel, settings: ImageSettings) -> None:
        self.model: Any = model
        self.settings = settings

    @property
    @abstractmethod
    def parts(self) -> tuple[nn.Module, ...]:
        """Tower and connector."""

    @abstractmethod
    def features(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Compute the features [F, H] of images from their pixels in float32, end to end."""

    @abstractmethod
    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of one row of patches."""

    @abstractmethod
    def own_arguments(self, images: PackedImages) -> dict[str, Tensor]:
        """Return the arguments by which the model's own forward pass takes the same images."""

    def normalised(self, patches: Tensor) -> Tensor:
        """Scale uint8 patches to float32, in the operations of the family's image processor.

        A byte has 256 values: they are computed once per colour and looked up.
        """
        levels = normalised(np.arange(256, dtype=np.uint8)[None].repeat(3, 0)[None], self.settings)
        table = torch.from_numpy(levels[0]).to(patches.device)  # [3, 256]
        colours = patches.reshape(len(patches), 3, -1)
        found = torch.empty(colours.shape, dtype=torch.float32, device=patches.device)
        for colour in range(3):
            index = colours[:, colour].reshape(-1).int()
            found[:, colour] = table[colour].index_select(0, index).view(len(patches), -1)
        return found.view(patches.shape)

    def blank(self, device: torch.device | str) -> Tensor:
        """Return the patches of the smallest image, all alike."""
        rows = self.settings.num_rows(self.smallest)
        return torch.full((rows, *self.row_shape()), 127, dtype=torch.uint8, device=device)


class QwenVision(VisionLayout):
    """Qwen2.5-VL (2502.13923): patches of any grid, merged two by two."""

    smallest = (1, 2, 2)
    sample = (1, 4, 6)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """See `VisionLayout`; the tower contains the merger."""
        return (self.model.model.visual,)

    def features(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """See `VisionLayout`."""
        grid = torch.tensor(grids, dtype=torch.int64, device=patches.device)  # [I, 3]
        found: Tensor = self.model.model.visual(
            patches.to(self.model.model.visual.dtype), grid_thw=grid, return_dict=True
        ).pooler_output
        return found

    def row_shape(self) -> tuple[int, ...]:
        """See `VisionLayout`."""
        tower = self.model.config.vision_config
        return (tower.in_channels * tower.temporal_patch_size * tower.patch_size**2,)

    def own_arguments(self, images: PackedImages) -> dict[str, Tensor]:
        """See `VisionLayout`."""
        shown = images.features != TEXT
        return {
            "pixel_values": self.normalised(images.patches),
            "image_grid_thw": torch.tensor(images.grids, device=images.patches.device),
            "mm_token_type_ids": shown[None].int(),
        }


class IdeficsVision(VisionLayout):
    """Idefics3 (2408.12637): square tiles, each of them an image to the tower."""

    smallest = (1, 0, 0)
    sample = (1, 0, 0)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """See `VisionLayout`."""
        return (self.model.model.vision_model, self.model.model.connector)

    def features(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """See `VisionLayout`; `patches` are tiles [T, 3, side, side]."""
        del grids
        tower, connector = self.parts
        found: Tensor = tower(pixel_values=patches.to(self.model.dtype)).last_hidden_state
        return connector(found).flatten(0, 1)

    def row_shape(self) -> tuple[int, ...]:
        """See `VisionLayout`."""
        return (3, self.settings.tile, self.settings.tile)

    def own_arguments(self, images: PackedImages) -> dict[str, Tensor]:
        """See `VisionLayout`."""
        return {"pixel_values": self.normalised(images.patches)[None]}


LAYOUTS = {QWEN: QwenVision, IDEFICS: IdeficsVision}


def vision_layout(model: PreTrainedModel, settings: ImageSettings) -> VisionLayout:
    """Return the layout of a vision-language model."""
    return LAYOUTS[settings.family](model, settings)
