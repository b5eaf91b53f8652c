"""Make the pixels of recorded rows again from the files beside them, each image once.

Runs in the ranks of learner and reference. The pixels of a step's images are kept until the next
step, for its passes and for siblings. Decodes nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workers.data.images.columns import as_spans
from workers.data.images.packed import RowImages
from workers.data.images.patches import digest_of, patches_of
from workers.data.images.settings import ImageSettings
from workers.data.images.spans import ImageSpan

FileOf = Callable[[int, int], bytes]  # number of a row, number of its image -> bytes of the file


class ImageReader:
    """Reader of the images of rows.

    Args:
        settings: of the model; None for a model that takes no images.
    """

    def __init__(self, settings: ImageSettings | None) -> None:
        self._settings = settings
        self._patches: dict[str, npt.NDArray[np.uint8]] = {}

    def of_table(self, table: pa.Table) -> RowImages | None:
        """Return the images of all rows of a step's trajectories; None where no row shows one.

        Raises:
            ValueError: a model that takes no images.
        """
        if "images" not in table.column_names:
            return None
        files = table.column("image_files")
        spans = [as_spans(value) for value in table.column("images").to_pylist()]
        return self.of_spans(spans, lambda row, number: files[row][number].as_py())

    def of_spans(self, spans: Sequence[Sequence[ImageSpan]], file_of: FileOf) -> RowImages | None:
        """Return the images of rows, whose files are read when their pixels are asked for.

        Args:
            spans: images of each row.
            file_of: reads the file of an image of a row.

        Raises:
            ValueError: a model that takes no images.
        """
        settings = self._settings
        places = {
            span.digest: (row, number)
            for row, shown in enumerate(spans)
            for number, span in enumerate(shown)
        }
        if not places:
            return None
        if settings is None:
            raise ValueError(
                "a row shows an image, and the model takes none: train a vision-language model, "
                "or record the rows again without data.image_column"
            )
        self._patches = {name: self._patches[name] for name in places if name in self._patches}
        kept = self._patches

        def pixels_of(digest: str) -> npt.NDArray[np.uint8]:
            if digest not in kept:
                file = file_of(*places[digest])
                if digest_of(file, settings) != digest:
                    raise ValueError(
                        f"image {digest[:12]} was recorded with other pixel settings; set "
                        "data.images.max_pixels and model.path to those of the run that recorded it"
                    )
                kept[digest] = patches_of(file, settings)[0]
            return kept[digest]

        return RowImages(spans=spans, settings=settings, patches_of=pixels_of)
