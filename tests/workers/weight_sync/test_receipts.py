"""Receipts of a transport that keeps none: every tensor is fingerprinted on its way."""

from types import SimpleNamespace

import torch

from workers.weight_sync.fingerprint import fingerprint
from workers.weight_sync.receipts import ReceiptRecorder


def test_what_is_loaded_is_on_the_receipt_and_a_new_update_begins_an_empty_one():
    loaded, started = [], []
    model = SimpleNamespace(load_weights=lambda weights: loaded.extend(weights))
    engine = SimpleNamespace(model=model, start_weight_update=lambda: started.append(1))
    ReceiptRecorder.attach(engine)

    square = torch.arange(4.0).view(2, 2).t()  # not contiguous
    engine.start_weight_update()
    model.load_weights([("a", square)])
    model.load_weights([("b", torch.ones(3))])
    assert [name for name, _ in loaded] == ["a", "b"]
    assert loaded[0][1] is square
    assert engine.fingerprints() == {
        "a": fingerprint(torch.tensor([0.0, 2.0, 1.0, 3.0])),
        "b": fingerprint(torch.ones(3)),
    }
    assert list(engine.received()) == []

    receipt = engine.fingerprints()
    engine.start_weight_update()
    assert started == [1, 1]
    assert engine.fingerprints() == {}
    assert set(receipt) == {"a", "b"}
