"""Features of a frozen tower are kept by image, up to a number of bytes."""

from pathlib import Path

import torch

from tests.workers.engines.model.vision.pictures import Rows, png, settings_of
from workers.data.packing import pack_sequences
from workers.engines.model.policy_model import load_policy_model
from workers.engines.model.vision.tower import FeatureStore
from workers.models.tiny_vision import build_tiny_vision

FEATURES = torch.zeros(2, 4)  # 32 bytes


def test_the_longest_unused_features_leave_first() -> None:
    store = FeatureStore(max_bytes=64)
    store.put(("a", "none"), FEATURES)
    store.put(("b", "none"), FEATURES + 1)
    assert store.get(("a", "none")) is FEATURES
    store.put(("c", "none"), FEATURES)
    assert store.get(("b", "none")) is None
    assert store.get(("a", "none")) is not None
    assert store.get(("a", "bfloat16")) is None


def test_features_larger_than_the_room_are_kept_for_the_batch_at_hand() -> None:
    store = FeatureStore(max_bytes=16)
    store.put(("a", "none"), FEATURES)
    assert store.get(("a", "none")) is FEATURES
    store.put(("b", "none"), FEATURES)
    assert store.get(("a", "none")) is None


def test_features_of_another_precision_are_computed_anew(tmp_path: Path) -> None:
    folder = build_tiny_vision(tmp_path / "model")
    rows = Rows(settings_of(folder))
    rows.add([5], png(56, 56, 1), [7, 8])
    batch = pack_sequences(rows.tokens, rows.images)
    policy = load_policy_model(folder).eval()
    policy.freeze()
    assert policy.vision is not None
    with torch.no_grad():
        exact = policy.packed_outputs(batch)
        policy.autocast = torch.bfloat16
        rounded = policy.packed_outputs(batch)
        policy.autocast = None
        assert torch.equal(policy.packed_outputs(batch), exact)
    assert policy.vision.num_runs == 2
    assert 0 < (rounded - exact).abs().max() < 0.1
