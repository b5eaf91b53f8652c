"""A token's position does not depend on what is packed beside it."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from families import tiny_model

from workers.data.packing import pack_sequences
from workers.engines.model.policy_model import PolicyModel

SHORT = [5, 9, 3, 17, 4, 8]
LONG = [7, 11, 30, 22, 6, 41, 19, 33, 8, 12, 50, 44]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 4.0, 8.0, 16.0],
}
SETTINGS = {
    "rope_parameters": LONGROPE,
    "original_max_position_embeddings": 8,
    "sliding_window": None,
}


def phi3(**changes: object) -> PolicyModel:
    model = tiny_model("phi3", **SETTINGS)
    return PolicyModel(model, **changes).eval()


def logprobs(policy: PolicyModel, rows: list[list[int]]) -> torch.Tensor:
    batch = pack_sequences(rows)
    with torch.no_grad():
        return policy.packed_outputs(batch)


def own(rows: list[int]) -> torch.Tensor:
    """Log-probs by transformers, which takes the long factors from 9 tokens on."""
    model = tiny_model("phi3", **SETTINGS)
    with torch.no_grad():
        log_p = model(torch.tensor([rows]), use_cache=False).logits[0, :-1].log_softmax(-1)
    return log_p.gather(1, torch.tensor(rows[1:])[:, None])[:, 0]


def test_a_longrope_model_scores_a_sequence_as_it_does_beside_a_longer_one() -> None:
    policy = phi3()
    beside = logprobs(policy, [SHORT, LONG])
    torch.testing.assert_close(beside[:6], logprobs(policy, [SHORT]), rtol=0, atol=1e-5)
    torch.testing.assert_close(beside[7:], own(LONG), rtol=0, atol=1e-5)


def test_the_longest_sequence_of_the_run_chooses_the_factors() -> None:
    short = logprobs(phi3(longest=8), [SHORT])
    torch.testing.assert_close(short[1:], own(SHORT), rtol=0, atol=1e-5)
    assert (short - logprobs(phi3(longest=9), [SHORT])).abs().max() > 1e-3


def test_dynamic_frequencies_are_refused() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model("llama", rope_parameters=dynamic)
    with pytest.raises(ValueError, match="rope_type=dynamic: the positions of a token depend"):
        PolicyModel(model)
