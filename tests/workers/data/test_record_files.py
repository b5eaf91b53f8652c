"""What is read back is all that was written, however large."""

import numpy as np
import pyarrow as pa
import pytest

from workers.data.record_files import whole_batch
from workers.data.trajectory import SCHEMA

HALF = 1_200_000_000  # two are more than 2^31


def long_list():
    """One row whose list is so long that a second one overflows small offsets."""
    return pa.LargeListArray.from_arrays(pa.array([0, HALF], pa.int64()), pa.nulls(HALF))


def long_text():
    """One row of 1.2 GB of text, of pages that are never touched."""
    offsets = pa.py_buffer(np.array([0, HALF], dtype=np.int32))
    return pa.StringArray.from_buffers(1, offsets, pa.py_buffer(np.zeros(HALF, dtype=np.uint8)))


def test_the_schema_addresses_more_than_two_to_the_31_tokens_and_bytes():
    for name in ("tokens", "loss_mask", "rollout_logprobs", "weight_versions"):
        assert pa.types.is_large_list(SCHEMA.field(name).type)
    assert pa.types.is_large_string(SCHEMA.field("response_text").type)


def test_all_rows_come_back_beyond_what_small_offsets_can_address():
    table = pa.table({"tokens": pa.chunked_array([long_list(), long_list()])})
    batch = whole_batch(table)
    assert batch.num_rows == 2
    assert len(batch["tokens"].values) == 2 * HALF


def test_rows_that_do_not_fit_one_batch_are_an_error_and_never_cut():
    table = pa.table({"text": pa.chunked_array([long_text(), long_text()])})
    with pytest.raises(ValueError, match=r"2 rows hold more than one record batch can address"):
        whole_batch(table)


def test_an_empty_table_is_an_empty_batch():
    assert whole_batch(SCHEMA.empty_table()).num_rows == 0
