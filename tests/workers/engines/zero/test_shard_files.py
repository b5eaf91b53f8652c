"""A parameter in pieces of several ranks' files, read back across the borders of the files."""

import pytest
import torch

from workers.engines.zero.shard_files import ShardReader, piece_key, write_shard


def write(path, offset, values):
    """One rank's piece of the weight `w`, which begins at element `offset`."""
    tensors = {piece_key("weight", "w"): torch.tensor(values, dtype=torch.float32)}
    metadata = {"offsets": {"w": offset}, "kinds": ["weight"], "scalars": {"w": {"step": 3.0}}}
    return write_shard(path, tensors, metadata)


@pytest.fixture
def two(tmp_path):
    paths = [tmp_path / "rank_0", tmp_path / "rank_1"]
    write(paths[0], 0, [0, 1, 2])
    write(paths[1], 3, [3, 4])
    return paths


def test_a_slice_is_read_across_two_files(two):
    reader, out = ShardReader(two), torch.full((3,), -1.0)
    reader.read("weight", "w", 1, out)
    assert out.tolist() == [1, 2, 3]
    assert reader.kinds() == {"weight"}
    assert reader.scalars() == {"w": {"step": 3.0}}
    assert reader.metadata(1)["offsets"] == {"w": 3}
    assert reader.metadata(2) is None


def test_elements_that_no_file_holds_are_named(two):
    reader = ShardReader(two[:1])
    with pytest.raises(ValueError, match="holds 2 of elements 1 to 4 of weight of w; a rank's"):
        reader.read("weight", "w", 1, torch.zeros(3))


def test_a_cut_file_is_named_with_its_path(two):
    two[1].write_bytes(two[1].read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"rank_1 can't be read .*; restore that file"):
        ShardReader(two)


def test_the_record_is_of_what_stands_on_disk(tmp_path):
    record = write(tmp_path / "rank_0", 0, [1, 2])
    assert record.num_bytes == (tmp_path / "rank_0").stat().st_size


def test_only_float32_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"w is torch\.bfloat16: only float32"):
        write_shard(tmp_path / "rank_0", {"w": torch.zeros(2, dtype=torch.bfloat16)}, {})
