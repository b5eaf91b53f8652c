"""Publications of a vision-language model bring what trains, and faults are found by name."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import cloudpickle
import pytest
import torch

from workers.engines.model.policy_model import load_policy_model
from workers.engines.zero.lora_weights import publication_source, published_name
from workers.engines.zero.weights import expected_names
from workers.models.tiny_vision import build_tiny_vision
from workers.weight_sync.attestation import Attestation, AttestationError, Tolerance
from workers.weight_sync.diagnosis import checkpoint_names
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


def test_names_of_tensors_are_mapped_as_vllm_loads_them():
    from vllm.model_executor.models.utils import WeightsMapper

    prefixes = {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.head.",
    }
    stacked = {".q_proj": (".qkv_proj", "q")}
    mapper = WeightsMapper(orig_to_new_prefix=prefixes, orig_to_new_stacked=stacked)
    names = ["lm_head.weight", "model.language_model.q_proj.weight"]
    assert checkpoint_names(SimpleNamespace(hf_to_vllm_mapper=mapper), names) == {
        "language_model.head.weight": names[0],
        "language_model.model.q_proj.weight": names[1],  # not the matrix that it is fused into
    }
    assert checkpoint_names(SimpleNamespace(), ["a"]) == {"a": "a"}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("freeze", [None, []])
def test_a_publication_reaches_the_engine_and_a_stale_decoder_weight_is_named(
    tied, freeze, tmp_path, start_engines
):
    folder = build_tiny_vision(tmp_path / "m", architecture="idefics3", tie_word_embeddings=tied)
    policy = load_policy_model(folder)
    policy.freeze(freeze)
    more = {"engine_kwargs": {"limit_mm_per_prompt": {"image": 1}}, "max_model_len": 512}
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


def one_sequence():
    from workers.data.packing import pack_sequences

    return pack_sequences([PROBE])
