"""Calls into vLLM that only a GPU takes, held against the installed sources."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from conf.tables.transports import TRANSPORTS
from workers.engines.zero.weights import ZeroSource
from workers.weight_sync.endpoint import Route
from workers.weight_sync.transport import trainer_endpoint

pytest.importorskip("vllm")
from vllm.distributed.device_communicators import pynccl, pynccl_wrapper
from vllm.distributed.weight_transfer import ipc_engine, nccl_common, nccl_engine, packed_tensor
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.worker.gpu_worker import Worker

from workers.weight_sync.extension import WeightSyncExtension


def accepts(function: Any, *args: Any, **kwargs: Any) -> None:
    """Fail where a call with these arguments would."""
    inspect.signature(function).bind(*args, **kwargs)


ENGINE: Any = object()  # `self`


@pytest.mark.parametrize(
    ("method", "args", "kwargs"),
    [
        ("sleep", (2,), {}),
        ("wake_up", (["weights"],), {}),
        ("collective_rpc", ("attempt",), {"args": ("update_weights", {})}),
        ("start_weight_update", (), {}),
        ("finish_weight_update", ("7",), {}),
        ("update_weight_version", ("7",), {}),
        ("get_weight_version", (), {}),
        ("resume_generation", (), {}),
        ("reset_prefix_cache", (), {}),
        ("abort", (["request"],), {}),
        ("shutdown", (), {"timeout": 10.0}),
    ],
)
def test_what_the_rollout_worker_calls_of_an_engine(
    method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    accepts(getattr(AsyncLLM, method), ENGINE, *args, **kwargs)


def test_running_requests_are_frozen_in_the_scheduler() -> None:
    accepts(AsyncMPClient.pause_scheduler_async, ENGINE, mode="keep", clear_cache=True)


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("sleep", (2,)),
        ("wake_up", (["kv_cache"],)),
        ("init_weight_transfer_engine", ({},)),
        ("start_weight_update", ()),
        ("update_weights", ({},)),
        ("finish_weight_update", ()),
    ],
)
def test_what_a_worker_on_a_gpu_is_asked(method: str, args: tuple[Any, ...]) -> None:
    accepts(getattr(Worker, method), ENGINE, *args)


def test_the_extension_replaces_nothing_of_a_worker_on_a_gpu() -> None:
    """vLLM refuses an extension that does, when the worker starts."""
    own = {name for name in vars(WeightSyncExtension) if not name.startswith("__")}
    assert own & set(dir(Worker)) == set()
    for name in ("_weight_update_active", "weight_transfer_engine", "model_runner"):
        assert f"self.{name}" in inspect.getsource(Worker), name


@pytest.mark.parametrize("row", TRANSPORTS, ids=lambda row: row.name)
def test_a_receiver_is_joined_left_and_joined_again(row: Any) -> None:
    receiver = resolve_obj_by_qualname(row.receiver)
    accepts(receiver.init_transfer_engine, ENGINE, object())
    accepts(receiver.shutdown, ENGINE)
    accepts(receiver, object(), object(), torch.device("cpu"), nn.Linear(1, 1))


# ---- nccl ----


class Library:
    """libnccl, as far as the id of a communicator: 128 bytes, other ones every time."""

    made = 0

    def __init__(self, library_path: str | None = None) -> None:
        pass

    def ncclGetRawVersion(self) -> int:
        return 22700

    def ncclGetUniqueId(self) -> Any:
        type(self).made += 1
        found = pynccl_wrapper.ncclUniqueId()
        for place in range(128):
            found.internal[place] = (self.made * 7 + place) % 256 - 128
        return found

    unique_id_from_bytes = pynccl_wrapper.NCCLLibrary.unique_id_from_bytes


class Engines:
    """Engines that keep what they are told, as it would travel."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.told.append(json.loads(json.dumps(init_info)))


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bytes]]:
    """vLLM's own NCCL code over a library that connects nothing; who joined what."""
    joined: list[tuple[int, int, bytes]] = []
    monkeypatch.setattr(pynccl_wrapper, "NCCLLibrary", Library)
    monkeypatch.setattr(pynccl, "NCCLLibrary", Library)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)

    def join(self: Any, device: Any) -> None:
        joined.append((self.rank, self.world_size, bytes(self.unique_id.internal)))

    monkeypatch.setattr(pynccl.PyNcclCommunicator, "_init_comm", join)
    monkeypatch.setattr(pynccl.PyNcclCommunicator, "destroy", lambda self: None)
    return joined


def test_every_worker_of_every_engine_joins_the_id_of_this_connection(
    nccl: list[tuple[int, int, bytes]],
) -> None:
    """Two engines of two workers; ranks are shifted as `VLLMWeights` does."""
    engines: Any = Engines()
    route = Route(run_id="run", engine_nodes=["a", "b"], workers_per_engine=2)
    source = ZeroSource(nn.Linear(4, 4))
    endpoint = trainer_endpoint("nccl", source=source, client=engines, route=route)
    endpoint.connect()
    (told,) = engines.told
    assert not {"master_address", "master_port"} & told.keys()  # nobody listens on a port of ours
    for place in range(2):
        own = told | {"rank_offset": told["rank_offset"] + 2 * place}
        for worker in range(2):
            parallel: Any = SimpleNamespace(data_parallel_index=0, world_size=2, rank=worker)
            info = nccl_common.NCCLWeightTransferInitInfo(**own)
            nccl_common.worker_init_process_group(info, parallel)
    assert [rank for rank, _, _ in nccl] == [0, 1, 2, 3, 4]
    assert {size for _, size, _ in nccl} == {5}
    assert len({identity for _, _, identity in nccl}) == 1
    endpoint.connect()  # again, after an engine was lost: nothing of the first is used
    assert engines.told[1]["nccl_unique_id_b64"] != told["nccl_unique_id_b64"]
    endpoint.shutdown()


def test_two_trainers_of_a_node_can_not_be_confused(nccl: list[tuple[int, int, bytes]]) -> None:
    told = []
    for _ in range(2):
        engines: Any = Engines()
        route = Route(run_id="run", engine_nodes=["a"])
        source = ZeroSource(nn.Linear(4, 4))
        trainer_endpoint("nccl", source=source, client=engines, route=route).connect()
        told.append(engines.told[0]["nccl_unique_id_b64"])
    assert told[0] != told[1]


def test_a_rank_that_only_gathers_joins_nothing(nccl: list[tuple[int, int, bytes]]) -> None:
    source = ZeroSource(nn.Linear(4, 4), rank=1, world_size=2)
    route = Route(run_id="run", engine_nodes=["a"])
    trainer_endpoint("nccl", source=source, client=None, route=route).connect()
    assert nccl == []


def test_both_ends_of_nccl_agree_on_how_tensors_are_packed(
    nccl: list[tuple[int, int, bytes]],
) -> None:
    engines: Any = Engines()
    route = Route(run_id="run", engine_nodes=["a"])
    source = ZeroSource(nn.Linear(4, 4))
    endpoint: Any = trainer_endpoint("nccl", source=source, client=engines, route=route)
    endpoint.connect()
    sender = endpoint._engine
    assert isinstance(sender, nccl_engine.NCCLTrainerWeightTransferEngine)
    told = nccl_common.NCCLWeightTransferInitInfo(**engines.told[0])
    assert told.packed
    assert sender.packed
    assert told.packed_buffer_size_bytes == sender.packed_buffer_size_bytes
    assert told.packed_num_buffers == sender.packed_num_buffers


# ---- ipc ----


def test_the_ends_of_ipc() -> None:
    info = ipc_engine.IPCTrainerInitInfo(packed=True, rank=0, packed_buffer_size_bytes=1 << 30)
    accepts(
        ipc_engine.IPCTrainerWeightTransferEngine.trainer_init,
        info,
        client=object(),
        source=object(),
    )
    accepts(
        packed_tensor.packed_ipc_producer,
        iterator=iter(()),
        gpu_uuid="uuid",
        post_iter_func=lambda item: item[1],
        buffer_size_bytes=1 << 30,
    )
    assert packed_tensor.DEFAULT_PACKED_BUFFER_SIZE_BYTES == 1 << 30  # counted as reserve
    update = ipc_engine.IPCWeightTransferUpdateInfo(
        names=["a"], dtype_names=["bfloat16"], shapes=[[1]], ipc_handles={}, tensor_sizes=[2]
    )
    assert update.ipc_handles == {}


def test_vllm_still_packs_experts_only_when_they_are_first_loaded() -> None:
    """Were it to pack a reload as well, the mend would pack twice."""
    source = inspect.getsource(UnquantizedFusedMoEMethod._setup_kernel)
    condition, _, guarded = source.partition("if not is_weight_update:")
    assert "is_weight_update = self.moe_kernel is not None" in condition
    assert "fused_experts.process_weights_after_loading(layer)" in guarded
    assert "fused_experts" not in condition
