"""Publication over gloo into two real vLLM engines that get the same init info."""

import gc
import os
import signal
import sys
import time

import cloudpickle
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from workers.engines.zero.weights import ZeroSource, expected_names
from workers.weight_sync.attestation import Attestation, Tolerance
from workers.weight_sync.broadcast import TRAINER, holders
from workers.weight_sync.endpoint import Route
from workers.weight_sync.transport import trainer_endpoint
from workers.worker_group import EngineDiedError

PROBE = [5, 17, 9, 30, 8, 41, 12, 6, 22, 14]
APART = ["there", "elsewhere"]


@pytest.fixture(scope="module")
def model(tiny_model):
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def endpoint_of(client, source, engine_nodes, timeout_s=60.0):
    return trainer_endpoint(
        "gloo",
        source=source,
        client=client,
        route=Route(
            run_id="test",
            node="here",
            engine_nodes=engine_nodes,
            host="127.0.0.1",
            timeout_s=timeout_s,
        ),
    )


def moved(model):
    """The model after a step, and what it now says of the probe."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        logits = model(torch.tensor([PROBE]), use_cache=False).logits[0]  # [T, V]
    picked = logits[:-1].log_softmax(-1).gather(1, torch.tensor(PROBE[1:])[:, None])
    return [0.0, *picked[:, 0].tolist()]


@pytest.mark.parametrize(
    ("engine_nodes", "members"),
    [
        (APART, [TRAINER, 0, 1]),
        (["there", "there"], [TRAINER, 0]),
        (["there", "here"], [TRAINER, 0]),
        (["here", "here"], [TRAINER]),
    ],
    ids=["two nodes", "one other node", "one beside the trainer", "both beside the trainer"],
)
def test_two_engines_receive_every_publication(gloo_engines, model, engine_nodes, members):
    assert sorted({TRAINER, *holders("here", engine_nodes)}) == members  # who uses the network
    endpoint = endpoint_of(gloo_engines, ZeroSource(model), engine_nodes)
    with pytest.raises(RuntimeError, match="call connect"):
        endpoint.publish(1)
    endpoint.connect()
    judge = Attestation(expected=expected_names(model), tolerance=Tolerance.absolute(1e-5))
    for version in (1, 2):
        own = moved(model)
        report = endpoint.publish(version)
        evidence = gloo_engines.evidence(PROBE)
        assert [each.engine_id for each in evidence] == [0, 1]
        metrics = judge.check(report, evidence, learner_logprobs=own, optimizer_stepped=True)
        assert metrics["publication/probe_gap_max"] <= 1e-5
    assert report.copy_bytes_per_s > report.num_bytes / report.seconds["total"]
    endpoint.shutdown()


def descriptors():
    """Open files of this process and of the engines below it."""
    gc.collect()
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {process.pid: process.num_fds() for process in processes}


def test_twenty_connections_leave_no_descriptor_open(gloo_engines, model):
    def connect_and_publish(version):
        endpoint = endpoint_of(gloo_engines, ZeroSource(model), APART)
        endpoint.connect()
        endpoint.publish(version)
        endpoint.shutdown()

    connect_and_publish(100)
    before = descriptors()
    for version in range(101, 121):
        connect_and_publish(version)
    assert descriptors() == before


class KillingSource(ZeroSource):
    """Ends an engine's process between two tensors."""

    victim = 0

    def __iter__(self):
        self.num_read = 0
        for number, item in enumerate(super().__iter__()):
            if number == 3:
                os.kill(self.victim, signal.SIGKILL)
                while psutil.pid_exists(self.victim):
                    time.sleep(0.01)
            self.num_read += 1
            yield item


class Alone:
    """A client to one of the engines; it gives the engine place 0."""

    def __init__(self, engines, number):
        self._engines, self._engine = engines, engines.engines[number]

    def init_weight_transfer_engine(self, init_info):
        self._ask(self._engine.init_weight_transfer_engine(init_info, 0))

    def start_weight_update(self):
        self._ask(self._engine.start_weight_update())

    def update_weights(self, update_info):
        self._ask(self._engine.update_weights(update_info))

    def finish_weight_update(self, weight_version=None):
        self._ask(self._engine.finish_weight_update(weight_version))

    def _ask(self, call):
        self._engines.submit(call).result(60)


def process_id(worker):  # runs inside EngineCore
    import os

    return os.getpid()


@pytest.mark.parametrize(
    ("engine_nodes", "victim"),
    [
        (["there", "there"], 0),
        pytest.param(APART, 0, marks=pytest.mark.slow),
        pytest.param(APART, 1, marks=pytest.mark.slow),
    ],
)
def test_an_engine_that_dies_in_a_publication_leaves_the_other_usable(
    tiny_model, start_engines, model, engine_nodes, victim
):
    """The one that dies is a holder; the other reads the lost copy, or receives by itself.

    Where the second of two holders dies, the first receives and loads all before anybody knows.
    """
    other = 1 - victim
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with start_engines(tiny_model, "gloo", 2) as engines:
        source = KillingSource(model)
        asked = engines.engines[victim]._engine.collective_rpc(process_id)
        (source.victim,) = engines.submit(asked).result(60)
        endpoint = endpoint_of(engines, source, engine_nodes)
        endpoint.connect()
        moved(model)
        with pytest.raises((RuntimeError, EngineDiedError)):
            endpoint.publish(1)
        assert source.num_read == len(list(ZeroSource(model)))  # other ranks gather with it
        endpoint.shutdown()
        rest = endpoint_of(Alone(engines, other), ZeroSource(model), [engine_nodes[other]])
        rest.connect()
        own = moved(model)
        report = rest.publish(2)
        evidence = engines.evidence(PROBE, lost=victim)
        judge = Attestation(expected=expected_names(model), tolerance=Tolerance.absolute(1e-5))
        judge.check(report, evidence, learner_logprobs=own, optimizer_stepped=True)
        rest.shutdown()


def die(worker):  # runs inside EngineCore
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_call_to_an_engine_that_dies_in_it_is_answered_at_once(tiny_model, start_engines):
    """vLLM itself leaves such a call pending; the limit would be 300 s."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with start_engines(tiny_model, "shm", 1) as engines:
        (engine,) = engines.engines

        async def ask():
            async with engine._bounded("a question"):
                await engine._engine.collective_rpc(die)

        began = time.monotonic()
        with pytest.raises(EngineDiedError, match="engine 0 is gone"):
            engines.submit(ask()).result(60)
        assert time.monotonic() - began < 60
        engines.each("start")  # again, as after a death in a job; the old one's end is its own
        assert engines.each("version") == [0]
