"""Engines of two tensor-parallel workers on a CPU: sampled from, published to, attested, killed."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import cloudpickle
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from workers.data.requests import Sampling
from workers.engines.zero.weights import ZeroSource, expected_names
from workers.weight_sync.attestation import Attestation, AttestationError, Tolerance
from workers.weight_sync.endpoint import Route
from workers.weight_sync.transport import trainer_endpoint
from workers.worker_group import EngineDiedError

PROBE = [5, 17, 9, 30, 8, 41, 12, 6, 22, 14]
EXACT = Tolerance.absolute(1e-5)  # float32; the workers add their parts in another order
DEATH_S = 60  # vLLM gives a worker's siblings some seconds to end by themselves


@pytest.fixture(scope="module")
def wide_shm(tiny_model, start_engines) -> Iterator[Any]:
    """One engine on shared memory."""
    with start_engines(tiny_model, "shm", 1, tensor_parallel_size=2) as engines:
        yield engines


@pytest.fixture(scope="module")
def wide_gloo(tiny_model, start_engines) -> Iterator[Any]:
    """One engine on gloo."""
    with start_engines(tiny_model, "gloo", 1, tensor_parallel_size=2) as engines:
        yield engines


@pytest.fixture
def model(tiny_model):
    torch.manual_seed(4)
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@torch.no_grad()
def logprobs(model, tokens):
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]  # [T, V]
    picked = logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])  # [T - 1, 1]
    return [0.0, *picked[:, 0].tolist()]


def move(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def endpoint_of(name, engines, model):
    route = Route(
        run_id="wide",
        engine_nodes=["there"],
        node="here",
        workers_per_engine=2,
        host="127.0.0.1",
        timeout_s=60.0,
    )
    return trainer_endpoint(name, source=ZeroSource(model), client=engines, route=route)


def in_workers(engines, function):
    cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    return engines.submit(engines.engines[0]._engine.collective_rpc(function)).result(60)


def spoil_what_rank_1_received(worker):  # runs inside vLLM's workers
    if worker.rank == 1:
        worker.weight_transfer_engine._buffer = worker.weight_transfer_engine._buffer.clone()
        worker.weight_transfer_engine._buffer[0] ^= 1


def keep_weights_unpacked(worker):  # runs inside vLLM's workers
    """As on a GPU: layers compute with the parameter that shows their weights."""
    import torch
    from vllm.model_executor.layers.linear import LinearBase

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, LinearBase):
            module._cpu_skip_gemm_dispatch = True  # vLLM's own, for layers it reads by itself
            shape = sum(module.output_partition_sizes), module.input_size
            if hasattr(module, "input_size_per_partition"):
                shape = shape[0], module.input_size_per_partition
            module.weight = torch.nn.Parameter(torch.zeros(shape), requires_grad=False)


def change_one_number_of_rank_1(worker):  # runs inside vLLM's workers
    if worker.rank == 1:
        layer = worker.model_runner.get_model().model.layers[1].mlp.down_proj
        layer.weight.data[0, 0] += 2.0**-20


def describe_process(worker):  # runs inside vLLM's workers
    import os

    return worker.rank, os.getpid(), os.getppid()


@pytest.mark.parametrize("name", ["shm", "gloo"])
def test_two_workers_sample_from_what_is_published(request, model, name):
    engines = request.getfixturevalue(f"wide_{name}")
    assert [rank for rank, *_ in in_workers(engines, describe_process)] == [0, 1]
    endpoint = endpoint_of(name, engines, model)
    endpoint.connect()
    judge = Attestation(expected=expected_names(model), tolerance=EXACT)
    for version in (1, 2):
        move(model)
        report = endpoint.publish(version)
        judge.check(
            report,
            engines.evidence(PROBE),
            learner_logprobs=logprobs(model, PROBE),
            optimizer_stepped=True,
        )
    request = {"request_id": "after", "sampling": Sampling(max_tokens=12), "seed": 3}
    (sample,) = engines.each("generate", PROBE, **request)
    expected = logprobs(model, PROBE + sample.tokens)[len(PROBE) :]
    torch.testing.assert_close(sample.logprobs, expected, atol=1e-5, rtol=0)
    assert set(sample.weight_versions) == {2}
    endpoint.shutdown()


def test_a_worker_that_received_other_bytes_is_named(wide_shm, model):
    engines = wide_shm
    endpoint = endpoint_of("shm", engines, model)
    endpoint.connect()
    endpoint.publish(3)
    in_workers(engines, spoil_what_rank_1_received)
    with pytest.raises(RuntimeError, match="worker 1 of engine 0 received other weights"):
        engines.evidence(PROBE)
    endpoint.publish(4)
    engines.evidence(PROBE)
    endpoint.shutdown()


def test_a_tensor_not_sent_stops_the_run_with_its_name(wide_shm, model):
    omitted = "model.layers.0.self_attn.k_proj.weight"

    class OmittingSource(ZeroSource):
        def shards(self):
            return (shard for shard in super().shards() if shard.name != omitted)

    engines = wide_shm
    endpoint = endpoint_of("shm", engines, model)
    endpoint.source = OmittingSource(model)
    endpoint.connect()
    report = endpoint.publish(5)
    judge = Attestation(expected=expected_names(model), tolerance=EXACT)
    with pytest.raises(AttestationError, match=f"{omitted}: was not sent"):
        judge.check(
            report,
            engines.evidence(PROBE),
            learner_logprobs=logprobs(model, PROBE),
            optimizer_stepped=True,
        )
    endpoint.shutdown()


def test_weights_that_are_not_in_use_are_named_though_all_arrived(wide_shm, model):
    """A difference that no probe sees, in one of two workers; all layouts of a split tensor."""
    engines = wide_shm
    in_workers(engines, keep_weights_unpacked)
    endpoint = endpoint_of("shm", engines, model)
    endpoint.connect()
    judge = Attestation(expected=expected_names(model), tolerance=EXACT)

    def check(report):
        return judge.check(
            report,
            engines.evidence(PROBE),
            learner_logprobs=logprobs(model, PROBE),
            optimizer_stepped=False,
        )

    for version in (6, 7):
        move(model)
        report = endpoint.publish(version)
        assert check(report)["publication/shown_in_use_frac"] == 1.0
    in_workers(engines, change_one_number_of_rank_1)
    name = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(AttestationError) as caught:
        check(report)
    assert caught.value.reasons == {name: "arrived, but engine 0 computes with other weights"}
    assert caught.value.faults == []  # of the probe
    endpoint.shutdown()


def ended(process_id):
    try:
        return psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def all_end(process_ids, seconds=DEATH_S):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(map(ended, process_ids)):
        time.sleep(0.2)
    return all(map(ended, process_ids))


@pytest.mark.parametrize(("name", "victim"), [("shm", "a worker"), ("gloo", "the core")])
def test_what_dies_takes_the_engine_with_it_and_leaves_no_process(request, name, victim):
    """The last tests of the two engines: a waiting request is answered, and nothing stays."""
    engines = request.getfixturevalue(f"wide_{name}")
    found = in_workers(engines, describe_process)
    workers, core = [process for _, process, _ in found], found[0][2]
    endless = Sampling(max_tokens=400, ignore_eos=True)
    waiting = engines.submit(
        engines.engines[0].generate(PROBE, request_id="last", sampling=endless, seed=1)
    )
    psutil.Process(workers[1] if victim == "a worker" else core).send_signal(signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="engine 0 is gone"):
        waiting.result(DEATH_S)
    with pytest.raises(EngineDiedError, match="engine 0 is gone"):
        engines.engines[0].check_health()
    assert all_end([*workers, core])
