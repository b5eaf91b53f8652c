"""Publication into one real vLLM engine through shared memory, whole and broken on purpose."""

from __future__ import annotations

import gc
import sys
import time

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

PROBE = [5, 17, 9, 30, 8, 41, 12, 6, 22, 14]
EXACT = 1e-5


class OmittingSource(ZeroSource):
    """A source that forgets one tensor."""

    omitted = "model.layers.1.mlp.down_proj.weight"

    def shards(self):
        return (shard for shard in super().shards() if shard.name != self.omitted)


def leave_heads_stale(worker):  # runs inside EngineCore
    from workers.weight_sync import receivers

    worker.sound_refresh = receivers.refresh_heads
    receivers.refresh_heads = lambda model: None


def refresh_heads_again(worker):  # runs inside EngineCore
    from workers.weight_sync import receivers

    receivers.refresh_heads = worker.sound_refresh


def halve_a_norm(worker):  # runs inside EngineCore
    worker.model_runner.get_model().model.norm.weight.data.mul_(0.5)


@pytest.fixture
def model(tiny_model):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture
def publish(shm_engine, model):
    """Publishes the model as it is; judges the result."""
    state = {"version": shm_engine.each("version")[0]}
    endpoint = trainer_endpoint(
        "shm",
        source=ZeroSource(model),
        client=shm_engine,
        route=Route(run_id="test", engine_nodes=["here"]),
    )
    endpoint.connect()
    judge = Attestation(expected=expected_names(model), tolerance=Tolerance.absolute(EXACT))

    def run(endpoint=endpoint, optimizer_stepped=True):
        state["version"] += 1
        report = endpoint.publish(state["version"])
        metrics = judge.check(
            report,
            shm_engine.evidence(PROBE),
            learner_logprobs=logprobs(model, PROBE),
            optimizer_stepped=optimizer_stepped,
            diagnose=lambda engine_id: shm_engine.each("diagnose")[engine_id],
        )
        return report, metrics

    yield run
    endpoint.shutdown()


def move(model, scale=0.02):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)


@torch.no_grad()
def logprobs(model, tokens):
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]  # [T, V]
    picked = logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])  # [T - 1, 1]
    return [0.0, *picked[:, 0].tolist()]


def in_core(engines, function):
    cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    engine = engines.engines[0]._engine
    engines.submit(engine.collective_rpc(function)).result(30)


def test_every_publication_reaches_the_samples_and_the_tied_head(publish, model, shm_engine):
    assert model.config.tie_word_embeddings
    for _ in range(3):  # both buffers, and the first again
        move(model)
        report, metrics = publish()
        assert metrics["publication/probe_gap_max"] <= EXACT
        assert metrics["publication/unchanged_tensors"] == 0
    assert report.num_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert report.copy_bytes_per_s > report.num_bytes / report.seconds["total"]
    assert set(report.seconds) == {"stage", "barrier", "start", "update", "finish", "total"}
    assert shm_engine.each("diagnose", report.fingerprints) == [{}]
    request = {"request_id": "after", "sampling": Sampling(max_tokens=12), "seed": 3}
    (sample,) = shm_engine.each("generate", PROBE, **request)
    expected = logprobs(model, PROBE + sample.tokens)[len(PROBE) :]
    torch.testing.assert_close(sample.logprobs, expected, atol=EXACT, rtol=0)
    assert set(sample.weight_versions) == {report.version}


def test_publishing_equal_weights_again_changes_nothing(publish, model):
    first, _ = publish()
    second, metrics = publish(optimizer_stepped=False)
    assert second.fingerprints == first.fingerprints
    assert metrics["publication/unchanged_tensors"] == len(first.names)
    with pytest.raises(AttestationError, match="no tensor changed"):
        publish(optimizer_stepped=True)


def test_a_tensor_not_sent_stops_the_run_with_its_name(publish, model, shm_engine):
    move(model)
    broken = trainer_endpoint(
        "shm",
        source=OmittingSource(model),
        client=shm_engine,
        route=Route(run_id="broken", engine_nodes=["here"]),
    )
    broken.connect()
    with pytest.raises(AttestationError) as caught:
        publish(endpoint=broken)
    assert caught.value.reasons[OmittingSource.omitted] == "was not sent"
    assert OmittingSource.omitted in str(caught.value)
    broken.shutdown()


def test_a_stale_tied_head_stops_the_run_with_its_name(publish, model, shm_engine):
    publish()
    in_core(shm_engine, leave_heads_stale)
    try:
        move(model)
        with pytest.raises(AttestationError) as caught:
            publish()
    finally:
        in_core(shm_engine, refresh_heads_again)
    assert list(caught.value.reasons) == ["model.embed_tokens.weight"]
    assert "tied head lm_head" in caught.value.reasons["model.embed_tokens.weight"]


def test_a_live_weight_that_was_overwritten_is_named(publish, shm_engine):
    publish()
    in_core(shm_engine, halve_a_norm)
    assert list(shm_engine.each("diagnose")[0]) == ["model.norm.weight"]


def test_tokens_carry_the_version_that_sampled_them(publish, model, shm_engine):
    before, _ = publish()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    sampling = Sampling(max_tokens=400, ignore_eos=True)
    running = shm_engine.submit(
        shm_engine.engines[0].generate(PROBE, request_id="long", sampling=sampling, seed=7)
    )
    time.sleep(0.3)
    move(model)
    after, _ = publish()
    sample = running.result(60)
    versions = sample.weight_versions
    assert sorted(set(versions)) == [before.version, after.version]
    assert versions == sorted(versions)
    switch = versions.index(after.version)
    tokens = PROBE + sample.tokens
    new_policy = logprobs(model, tokens)[len(PROBE) :]
    for name, parameter in model.named_parameters():
        parameter.data.copy_(old[name])
    old_policy = logprobs(model, tokens)[len(PROBE) :]
    close = {"atol": EXACT, "rtol": 0}
    torch.testing.assert_close(sample.logprobs[:switch], old_policy[:switch], **close)
    torch.testing.assert_close(sample.logprobs[switch:], new_policy[switch:], **close)


def test_two_runs_of_one_name_share_nothing(model, shm_engine):
    first, second = (
        trainer_endpoint(
            "shm",
            source=ZeroSource(model),
            client=shm_engine,
            route=Route(run_id="same", engine_nodes=["here"]),
        )
        for _ in range(2)
    )
    first.connect()
    second.connect()
    assert not set(first.init_info()["paths"]) & set(second.init_info()["paths"])
    first.shutdown()
    second.publish(1)
    second.shutdown()
    with pytest.raises(RuntimeError, match="call connect"):
        second.publish(2)


def descriptors():
    """Open files of this process and of the engines below it."""
    gc.collect()
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {process.pid: process.num_fds() for process in processes}


def test_twenty_connections_leave_no_descriptor_open(model, shm_engine):
    def connect_and_publish(version):
        endpoint = trainer_endpoint(
            "shm",
            source=ZeroSource(model),
            client=shm_engine,
            route=Route(run_id="again", engine_nodes=["here"]),
        )
        endpoint.connect()
        endpoint.publish(version)
        endpoint.shutdown()

    connect_and_publish(100)
    before = descriptors()
    for version in range(101, 121):
        connect_and_publish(version)
    assert descriptors() == before


def test_an_unreachable_buffer_is_an_error_with_the_remedy(shm_engine, model):
    endpoint = trainer_endpoint(
        "shm",
        source=ZeroSource(model),
        client=shm_engine,
        route=Route(run_id="gone", engine_nodes=["here"]),
    )
    endpoint.connect()
    info = endpoint.init_info()
    endpoint.shutdown()
    with pytest.raises(Exception, match="gloo or nccl"):
        shm_engine.init_weight_transfer_engine(info)


def test_an_unknown_transport_names_the_known_ones(model):
    with pytest.raises(ValueError, match=r"'rdma'.*ipc, nccl, shm, gloo"):
        trainer_endpoint(
            "rdma",
            source=ZeroSource(model),
            client=None,
            route=Route(run_id="x", engine_nodes=["here"]),
        )


def test_stale_keys_and_values_are_kept_for_running_responses_only(
    tiny_model, start_engines, model
):
    settings = {"recompute_kv": False, "enable_prefix_caching": False}
    with start_engines(tiny_model, "shm", 1, **settings) as engines:
        endpoint = trainer_endpoint(
            "shm",
            source=ZeroSource(model),
            client=engines,
            route=Route(run_id="stale", engine_nodes=["here"]),
        )
        endpoint.connect()
        endpoint.publish(1)
        sampling = Sampling(max_tokens=400, ignore_eos=True)
        running = engines.submit(
            engines.engines[0].generate(PROBE, request_id="long", sampling=sampling, seed=7)
        )
        time.sleep(0.3)
        move(model)
        endpoint.publish(2)
        sample = running.result(60)
        assert sorted(set(sample.weight_versions)) == [1, 2]
        switch = sample.weight_versions.index(2)
        own = torch.tensor(logprobs(model, PROBE + sample.tokens)[len(PROBE) :])
        gaps = (torch.tensor(sample.logprobs) - own).abs()[switch:]
        assert gaps.max() > 100 * EXACT  # the context is still as the old weights read it
        (evidence,) = engines.evidence(PROBE)
        close = {"atol": EXACT, "rtol": 0}
        torch.testing.assert_close(evidence.probe_logprobs, logprobs(model, PROBE), **close)
        endpoint.shutdown()
