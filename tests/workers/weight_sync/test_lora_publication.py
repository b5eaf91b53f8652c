"""LoRA into a real vLLM engine: merged into its weights, and by itself beside them."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from workers.data.requests import Sampling
from workers.engines.model.lora_settings import LoraSettings
from workers.engines.vllm.settings import VLLMSettings
from workers.engines.zero.lora_weights import publication_source, published_name
from workers.engines.zero.weights import expected_names
from workers.weight_sync.attestation import Attestation, AttestationError, Tolerance
from workers.weight_sync.endpoint import Route
from workers.weight_sync.transport import trainer_endpoint

PROBE = [5, 17, 9, 30, 8, 41, 12, 6, 22, 14]
EXACT = 1e-5
# Over hundreds of positions x W + x A B and x (W + A B) round apart: 1.1e-5 was seen.
ROUNDED = 5e-5


class Learner:
    """A model with a peft adapter and its way to an engine, judged after every publication."""

    def __init__(self, folder, engines, publish, targets):
        self.engines = engines
        self.version = engines.each("version")[0]
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = LoraConfig(r=3, lora_alpha=4, target_modules=targets)
        self.peft = get_peft_model(base, config)
        settings = LoraSettings(rank=3, alpha=4, publish=publish)
        inner = self.peft.base_model.model
        source = publication_source(inner, settings, rank=0, world_size=1, dtype=torch.float32)
        self.endpoint = trainer_endpoint(
            "shm", source=source, client=engines, route=Route(run_id="lora", engine_nodes=["here"])
        )
        self.endpoint.connect()
        expected = expected_names(inner, published_name(inner, settings))
        self.judge = Attestation(expected=expected, tolerance=Tolerance.absolute(EXACT))

    def train(self):
        """As a step would: A, and B which starts at zero, move."""
        with torch.no_grad():
            for parameter in self.peft.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)

    def publish(self, stepped=True):
        self.version += 1
        report = self.endpoint.publish(self.version)
        metrics = self.judge.check(
            report,
            self.engines.evidence(PROBE),
            learner_logprobs=logprobs(self.peft, PROBE),
            optimizer_stepped=stepped,
        )
        return report, metrics

    def merged(self):
        """The full model that this policy is, by peft alone."""
        return copy.deepcopy(self.peft).merge_and_unload()


@torch.no_grad()
def logprobs(model, tokens):
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]  # [T, V]
    picked = logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])  # [T - 1, 1]
    return [0.0, *picked[:, 0].tolist()]


def close(got, want, atol=EXACT):
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), atol=atol, rtol=0)


def check_that_samples_follow(learner):
    """Probe and generation before and after a step are those of the full merged models."""
    engines = learner.engines
    learner.publish(stepped=False)
    before = engines.each("prompt_logprobs", PROBE)[0]
    for _ in range(3):  # both buffers of the transport, and the first again
        learner.train()
        report, metrics = learner.publish()
        full = learner.merged()
        (probe,) = engines.each("prompt_logprobs", PROBE)
        close(probe, logprobs(full, PROBE))
        assert max(abs(a - b) for a, b in zip(probe, before, strict=True)) > 0.01
        request = {"request_id": "after", "sampling": Sampling(max_tokens=12), "seed": 3}
        (sample,) = engines.each("generate", PROBE, **request)
        close(sample.logprobs, logprobs(full, PROBE + sample.tokens)[len(PROBE) :])
        assert set(sample.weight_versions) == {report.version}
        before = probe
    return report, metrics


def test_a_merged_adapter_samples_as_the_merged_model(tiny_model, shm_engine):
    torch.manual_seed(0)
    learner = Learner(tiny_model, shm_engine, "merged", ["q_proj", "v_proj", "down_proj"])
    base = {n: p.clone() for n, p in learner.peft.named_parameters() if not p.requires_grad}
    report, metrics = check_that_samples_follow(learner)
    for name, parameter in learner.peft.named_parameters():
        assert name not in base or torch.equal(parameter, base[name])  # merged on the way only
    # An engine's q, k and v are one matrix, its gate and up another: siblings come along.
    blocks = [f"model.layers.{i}.{block}" for i in (0, 1) for block in ("self_attn", "mlp")]
    names = [
        f"{block}.{leaf}_proj.weight"
        for block in blocks
        for leaf in (("q", "k", "v", "o") if "attn" in block else ("gate", "up", "down"))
    ]
    assert list(report.names) == names
    assert metrics["publication/unchanged_tensors"] == 2 * 4  # k, o, gate and up of two layers
    assert shm_engine.each("diagnose", report.fingerprints) == [{}]
    learner.endpoint.shutdown()


def test_an_adapter_by_itself_samples_as_the_merged_model(tiny_model, adapter_engine):
    torch.manual_seed(0)
    learner = Learner(tiny_model, adapter_engine, "adapter", "all-linear")
    report, metrics = check_that_samples_follow(learner)
    assert len(report.names) == 2 * 7 * 2  # A and B of seven matrices in two layers
    assert report.names[0] == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    trained = sum(p.numel() for p in learner.peft.parameters() if p.requires_grad)
    assert report.num_bytes == 4 * trained
    assert metrics["publication/unchanged_tensors"] == 0
    # In mid-generation: a token carries the version whose adapter sampled it.
    sampling = Sampling(max_tokens=300, ignore_eos=True)
    engine = adapter_engine.engines[0]
    running = adapter_engine.submit(
        engine.generate(PROBE, request_id="long", sampling=sampling, seed=7)
    )
    time.sleep(0.3)
    old, switched_at = learner.merged(), report.version + 1
    learner.train()
    learner.publish()
    sample = running.result(60)
    assert sorted(set(sample.weight_versions)) == [report.version, switched_at]
    switch = sample.weight_versions.index(switched_at)
    tokens = PROBE + sample.tokens
    under_old = logprobs(old, tokens)[len(PROBE) :]
    under_new = logprobs(learner.merged(), tokens)[len(PROBE) :]
    close(sample.logprobs[:switch], under_old[:switch], atol=ROUNDED)
    close(sample.logprobs[switch:], under_new[switch:], atol=ROUNDED)
    apart = [abs(a - b) for a, b in zip(under_old[switch:], under_new[switch:], strict=True)]
    assert max(apart) > 1000 * ROUNDED  # the old adapter would not have passed for the new one
    learner.endpoint.shutdown()


def test_an_adapter_that_did_not_arrive_is_named(tiny_model, adapter_engine):
    learner = Learner(tiny_model, adapter_engine, "adapter", ["o_proj"])
    learner.publish(stepped=False)
    shards = learner.endpoint.source.shards
    forgotten = "base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight"
    learner.endpoint.source.shards = lambda: (s for s in shards() if s.name != forgotten)
    learner.train()
    with pytest.raises(AttestationError) as caught:
        learner.publish()
    assert caught.value.reasons[forgotten] == "was not sent"
    learner.endpoint.shutdown()


def test_ranks_that_the_engine_has_no_room_for():
    layers = ("q_proj", "o_proj")
    args = VLLMSettings(model_path="m", adapter_rank=3, adapter_layers=layers).engine_args()
    assert (args["enable_lora"], args["max_loras"], args["max_lora_rank"]) == (True, 1, 8)
    assert args["lora_target_modules"] == ["q_proj", "o_proj"]
    assert "enable_lora" not in VLLMSettings(model_path="m").engine_args()
    with pytest.raises(ValueError, match="adapter_rank=513: vLLM applies adapters up to rank 512"):
        VLLMSettings(model_path="m", adapter_rank=513, adapter_layers=layers)
    with pytest.raises(ValueError, match="adapter_rank=8 needs adapter_layers"):
        VLLMSettings(model_path="m", adapter_rank=8)
