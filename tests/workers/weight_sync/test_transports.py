"""Every row of the table of transports has two ends that exist and fit."""

import inspect
from importlib import import_module

import pytest
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from conf.tables.transports import TRANSPORTS
from workers.weight_sync.endpoint import TrainerEndpoint

every_row = pytest.mark.parametrize("row", TRANSPORTS, ids=lambda row: row.name)


def loaded(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@every_row
def test_the_trainers_end_goes_by_the_rows_name(row):
    endpoint = loaded(row.endpoint)
    assert issubclass(endpoint, TrainerEndpoint)
    assert not inspect.isabstract(endpoint)
    assert endpoint.name == row.name
    assert list(inspect.signature(endpoint).parameters) == ["source", "client", "route"]


@every_row
def test_the_engines_end_is_one_of_vllms_kind(row):
    receiver = loaded(row.receiver)
    assert issubclass(receiver, WeightTransferEngine)
    assert not inspect.isabstract(receiver)
    own = WeightTransferEngineFactory._registry.get(row.name)
    assert own is None or own() is receiver  # what vLLM registers itself is what the row names
