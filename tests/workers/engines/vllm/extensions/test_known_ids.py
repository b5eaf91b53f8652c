"""Ids that no text has: an engine never samples one, and its log-probs are those of the learner."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from workers.data.packing import pack_sequences
from workers.data.requests import Sampling
from workers.engines.vllm.settings import MASK_CLASS, VLLMSettings, engine_env
from workers.models.tiny import build_tiny
from workers.models.vocabulary import known_ids


def test_the_mask_leaves_nothing_beyond_the_known_ids() -> None:
    from workers.engines.vllm.extensions.known_ids import KnownIds

    config = SimpleNamespace(additional_config={"known_ids": 3})
    mask = KnownIds(config, torch.device("cpu"), False)
    masked = mask.apply(torch.tensor([[0.0, 1.0, 2.0, 9.0, 9.0]]))
    assert masked.softmax(-1)[0, 3:].tolist() == [0.0, 0.0]
    assert int(masked.argmax()) == 2
    assert not mask.is_argmax_invariant()


def test_the_mask_stands_beside_what_the_user_passes_to_vllm() -> None:
    own = {"logits_processors": ["my.module:Processor"], "additional_config": {"mine": 1}}
    arguments = VLLMSettings(model_path="m", known_ids=64, engine_kwargs=own).engine_args()
    assert arguments["logits_processors"] == [MASK_CLASS, "my.module:Processor"]
    assert arguments["additional_config"] == {"mine": 1, "known_ids": 64}
    assert "logits_processors" not in VLLMSettings(model_path="m").engine_args()


@pytest.mark.slow
def test_an_engine_samples_known_ids_with_the_learners_logprobs(tmp_path: Path) -> None:
    from workers.engines.vllm.engine import VLLMEngine
    from workers.engines.zero.policy_engine import PolicyEngine
    from workers.engines.zero.settings import ZeroSettings

    folder = build_tiny(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(128, mean_resizing=False)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.02)
    model.save_pretrained(folder)
    known = known_ids(folder)
    assert known is not None
    settings = VLLMSettings(model_path=str(folder), kv_cache_memory_bytes=64 << 20, known_ids=known)
    prompt = [5, 17, 9, 30, 8, 41]

    async def sample() -> list:
        engine = VLLMEngine(settings)
        await engine.start(version=0)
        sampling = Sampling(temperature=1.0, max_tokens=12)
        found = await asyncio.gather(
            *(
                engine.generate(prompt, request_id=f"r/{seed}", sampling=sampling, seed=seed)
                for seed in range(16)
            )
        )
        await engine.shutdown()
        return found

    with pytest.MonkeyPatch.context() as patch:
        for key, value in engine_env(settings, 1).items():
            patch.setitem(os.environ, key, value)
        samples = asyncio.run(sample())
    learner = PolicyEngine(ZeroSettings(model=str(folder), optimizer=None, known_ids=known))
    for one in samples:
        assert max(one.tokens) < known
        batch = pack_sequences([[*prompt, *one.tokens]])
        scored = learner.compute_logprobs([batch], temperature=1.0).logprobs[0]
        gap = torch.tensor(one.logprobs) - torch.from_numpy(scored[len(prompt) :])
        assert gap.abs().max() < 1e-5
    learner.close()
