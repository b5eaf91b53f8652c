"""Publication over gloo into two real vLLM engines that get the same init info."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from workers.weight_sync.attestation import Attestation, Tolerance
from workers.weight_sync.source import ZeroSource, expected_names
from workers.weight_sync.transport import trainer_endpoint

PROBE = [5, 17, 9, 30, 8, 41, 12, 6, 22, 14]


def test_two_engines_receive_every_publication(gloo_engines, tiny_model):
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    endpoint = trainer_endpoint(
        "gloo",
        source=ZeroSource(model),
        client=gloo_engines,
        run_id="test",
        num_engines=2,
        host="127.0.0.1",
    )
    with pytest.raises(RuntimeError, match="call connect"):
        endpoint.publish(1)
    endpoint.connect()
    judge = Attestation(expected=expected_names(model), tolerance=Tolerance.absolute(1e-5))
    for version in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
            logits = model(torch.tensor([PROBE]), use_cache=False).logits[0]  # [T, V]
        picked = logits[:-1].log_softmax(-1).gather(1, torch.tensor(PROBE[1:])[:, None])
        report = endpoint.publish(version)
        evidence = gloo_engines.each("evidence", PROBE)
        assert [each.engine_id for each in evidence] == [0, 1]
        metrics = judge.check(
            report,
            evidence,
            learner_logprobs=[0.0, *picked[:, 0].tolist()],
            optimizer_stepped=True,
        )
        assert metrics["publication/probe_gap_max"] <= 1e-5
    endpoint.shutdown()
