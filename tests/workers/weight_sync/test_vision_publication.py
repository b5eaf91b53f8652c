"""Publications of a vision-language model bring what trains, and faults are found by name."""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import torch

from workers.data.images.settings import ImageLimits
from workers.engines.model.lora_settings import LoraSettings, adapted_leaves, linear_names
from workers.engines.model.policy_model import load_policy_model
from workers.engines.zero.lora_weights import publication_source, published_name
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import ZeroSettings
from workers.engines.zero.weights import expected_names
from workers.models.tiny_vision import build_tiny_vision
from workers.weight_sync.attestation import Attestation, AttestationError, Tolerance
from workers.weight_sync.endpoint import Route
from workers.weight_sync.transport import trainer_endpoint

PROBE = [5, 17, 9, 30, 8, 41, 12, 6, 22, 14]
EXACT = 2e-5


def halve_a_decoder_layer(worker):  # runs inside EngineCore
    model = worker.model_runner.get_model()
    layer = dict(model.named_modules())["model.text_model.layers.1.mlp.gate_up_proj"]
    sound = layer.quant_method.apply
    layer.quant_method.apply = lambda module, x, bias: sound(module, x, bias) * 0.5


def source_of(policy):
    return publication_source(policy.model, None, rank=0, world_size=1, dtype=torch.float32)


def test_only_what_trains_is_published(tmp_path):
    policy = load_policy_model(build_tiny_vision(tmp_path / "model"))
    every = expected_names(policy.model)
    policy.freeze()
    names = [meta.name for meta in source_of(policy).metadata()]
    assert len(every) == 56
    assert names == [name for name in every if not name.startswith("model.visual.")]
    assert names == expected_names(policy.model, published_name(policy.model, None))
    policy = load_policy_model(tmp_path / "model")
    policy.freeze([])
    assert [meta.name for meta in source_of(policy).metadata()] == every


def test_a_block_of_which_a_part_trains_is_published_whole(tmp_path):
    policy = load_policy_model(build_tiny_vision(tmp_path / "model"))
    policy.freeze(["model.visual.*", "*.q_proj.*", "*.mlp.*"])
    names = {meta.name for meta in source_of(policy).metadata()}
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in names
    assert "model.language_model.layers.0.mlp.up_proj.weight" not in names


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("freeze", [None, []])
def test_a_publication_reaches_the_engine_and_a_stale_decoder_weight_is_named(
    tied, freeze, tmp_path, start_engines
):
    folder = build_tiny_vision(tmp_path / "m", architecture="idefics3", tie_word_embeddings=tied)
    policy = load_policy_model(folder)
    policy.freeze(freeze)
    more = {"images": ImageLimits(max_per_prompt=1), "max_model_len": 512}
    with start_engines(folder, "shm", 1, **more) as engines:
        endpoint = trainer_endpoint(
            "shm",
            source=source_of(policy),
            client=engines,
            route=Route(run_id="vision", engine_nodes=["here"]),
        )
        endpoint.connect()
        expected = expected_names(policy.model, published_name(policy.model, None))
        judge = Attestation(expected=expected, tolerance=Tolerance.absolute(EXACT))

        def publish(version):
            with torch.no_grad():
                for parameter in policy.model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter) * 0.05)
                own = policy.eval().packed_outputs(one_sequence()).tolist()
            report = endpoint.publish(version)
            metrics = judge.check(
                report,
                engines.evidence(PROBE),
                learner_logprobs=own,
                optimizer_stepped=True,
                diagnose=lambda engine_id: engines.each("diagnose")[engine_id],
            )
            return report, metrics

        version = engines.each("version")[0]
        for number in (1, 2):
            report, metrics = publish(version + number)
            assert set(report.fingerprints) == set(expected)
            assert metrics["publication/shown_in_use_frac"] > 0.2  # norms, biases, embeddings
            assert engines.each("diagnose", report.fingerprints) == [{}]
        cloudpickle.register_pickle_by_value(sys.modules[halve_a_decoder_layer.__module__])
        engine = engines.engines[0]._engine
        engines.submit(engine.collective_rpc(halve_a_decoder_layer)).result(30)
        with pytest.raises(AttestationError) as caught:
            publish(version + 3)
        assert "model.text_model.layers.1.mlp.gate_proj.weight" in caught.value.reasons
        endpoint.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("publish", ["merged", "adapter"])
def test_an_adapter_of_the_decoder_reaches_the_engine(publish, tmp_path, start_engines):
    folder = build_tiny_vision(tmp_path / "m", architecture="idefics3")
    settings = LoraSettings(rank=3, alpha=4, publish=publish)
    policy = load_policy_model(folder, adapter=settings)
    policy.freeze()
    more = {"images": ImageLimits(max_per_prompt=1), "max_model_len": 512}
    if publish == "adapter":
        layers = adapted_leaves("all-linear", linear_names(folder))
        more |= {"adapter_rank": 3, "adapter_layers": layers}
    with start_engines(folder, "shm", 1, **more) as engines:
        source = publication_source(
            policy.model, settings, rank=0, world_size=1, dtype=torch.float32
        )
        route = Route(run_id="vision", engine_nodes=["here"])
        endpoint = trainer_endpoint("shm", source=source, client=engines, route=route)
        endpoint.connect()
        expected = expected_names(policy.model, published_name(policy.model, settings))
        assert not [name for name in expected if "vision" in name or "connector" in name]
        judge = Attestation(expected=expected, tolerance=Tolerance.absolute(5e-5))
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            own = policy.eval().packed_outputs(one_sequence()).tolist()
        version = engines.each("version")[0] + 1
        judge.check(
            endpoint.publish(version),
            engines.evidence(PROBE),
            learner_logprobs=own,
            optimizer_stepped=True,
        )
        endpoint.shutdown()


@pytest.mark.slow
def test_an_engine_computes_an_export_as_the_learner_does(tmp_path, start_engines):
    folder = build_tiny_vision(tmp_path / "m", architecture="idefics3")
    trained = PolicyEngine(ZeroSettings(model=str(folder), optimizer=None, exports=True))
    with torch.no_grad():
        for parameter in trained.policy.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        own = trained.policy.packed_outputs(one_sequence())
    trained.export_hf(tmp_path / "final")
    trained.close()
    more = {"images": ImageLimits(max_per_prompt=1), "max_model_len": 512}
    with start_engines(tmp_path / "final", "shm", 1, **more) as engines:
        found = engines.each("prompt_logprobs", PROBE)[0]
    torch.testing.assert_close(torch.tensor(found)[1:], own[1:], atol=EXACT, rtol=0)


def one_sequence():
    from workers.data.packing import pack_sequences

    return pack_sequences([PROBE])
