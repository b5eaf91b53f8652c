"""Parameters that text never reads are left as they were loaded."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.policy_losses.clipped import Reinforce
from workers.data.packing import pack_sequences
from workers.engines.model.policy_model import load_policy_model
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Gemma 3, text beside a vision tower."""
    folder = tmp_path_factory.mktemp("gemma3")
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config={
            "vocab_size": 20,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        mm_tokens_per_image=4,
        image_token_index=19,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    assert AutoConfig.from_pretrained(folder).model_type == "gemma3"
    return folder


def test_weight_decay_leaves_a_vision_tower_alone(gemma3: Path) -> None:
    before = dict(load_policy_model(gemma3).model.state_dict())
    optimizer = OptimizerSettings(lr=0.1, weight_decay=0.5)
    engine = PolicyEngine(ZeroSettings(model=str(gemma3), zero_stage=0, optimizer=optimizer))
    algorithm = Algorithm(
        name="plain",
        advantage=GroupRelative(),
        policy_loss=Reinforce(),
        aggregation=TokenMean(),
    )
    batch = pack_sequences([[5, 6, 7]]).with_columns({"advantages": torch.ones(3)})
    object.__setattr__(batch, "weights", {"policy": torch.ones(1)})
    engine.train([[batch]], algorithm, temperature=1.0)
    after = engine.policy.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    engine.close()
    vision = {name for name in before if "vision_tower" in name or "projector" in name}
    assert len(vision) > 10
    assert changed & vision == set()
    assert any("language_model" in name for name in changed)
