"""A rank makes the pixels of recorded rows again: once per image, and never other pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.workers.data.images.folders import file_of, noise, qwen_folder
from tests.workers.data.images.test_columns import siblings
from workers.data.images.patches import digest_of, patches_of
from workers.data.images.rows import ImageReader
from workers.data.images.settings import ImageSettings, read_image_settings
from workers.data.images.spans import ImageSpan
from workers.data.trajectory import to_record_batch

FILE = file_of(noise(60, 60))


@pytest.fixture
def settings(tmp_path: Path) -> ImageSettings:
    found = read_image_settings(qwen_folder(tmp_path), max_pixels=None)
    assert found is not None
    return found


def table(settings: ImageSettings, *files: bytes) -> pa.Table:
    rows = []
    for file in files:
        grid = patches_of(file, settings)[1]
        span = ImageSpan(offset=0, length=4, grid=grid, digest=digest_of(file, settings))
        rows += [replace(row, images=[span]) for row in siblings(2, file)]
    return pa.Table.from_batches([to_record_batch(rows[:2]), to_record_batch(rows[2:])])


def test_pixels_are_made_from_the_recorded_file_once(settings: ImageSettings) -> None:
    other = file_of(noise(90, 60, seed=1))
    reader = ImageReader(settings)
    images = reader.of_table(table(settings, FILE, other))
    assert images is not None
    digest = digest_of(other, settings)
    assert [shown[0].digest == digest for shown in images.spans] == [False, False, True, True]
    assert np.array_equal(images.patches_of(digest), patches_of(other, settings)[0])
    again = reader.of_table(table(settings, FILE, other))
    assert again is not None
    assert again.patches_of(digest) is images.patches_of(digest)


def test_other_pixel_settings_than_recorded_are_refused(settings: ImageSettings) -> None:
    recorded = table(settings, FILE)
    images = ImageReader(replace(settings, max_pixels=4000)).of_table(recorded)
    assert images is not None
    with pytest.raises(ValueError, match=r"other pixel settings; set data\.images\.max_pixels"):
        images.patches_of(digest_of(FILE, settings))


def test_a_text_model_refuses_rows_with_images(settings: ImageSettings) -> None:
    with pytest.raises(ValueError, match="a row shows an image, and the model takes none"):
        ImageReader(None).of_table(table(settings, FILE))


def test_rows_without_images_need_no_reader() -> None:
    bare = replace(siblings(1, b"")[0], images=(), image_files=())
    assert ImageReader(None).of_table(pa.Table.from_batches([to_record_batch([bare])])) is None
    assert ImageReader(None).of_table(pa.table({"tokens": [[1]]})) is None
