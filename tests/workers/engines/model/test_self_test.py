"""Families that packed batches compute as transformers does, and families that are refused."""

import re
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "families"))
from families import tiny_model  # noqa: E402

from workers.engines.model.critic_model import CriticModel  # noqa: E402
from workers.engines.model.policy_model import PolicyModel  # noqa: E402
from workers.engines.model.self_test import check_model  # noqa: E402
from workers.engines.zero.critic_engine import CriticEngine  # noqa: E402
from workers.engines.zero.policy_engine import PolicyEngine  # noqa: E402
from workers.engines.zero.settings import ZeroSettings  # noqa: E402

GUIDE = HERE.parents[3] / "workers/engines/model/README.md"
ROW = re.compile(r"^\| `(\w+)` \| (\S+) \|$", re.MULTILINE)
# Family -> mean difference per token that the guide names.
TABLE = {family: float(figure) for family, figure in ROW.findall(GUIDE.read_text())}
KEPT = "keeps its attention {} where learner.attention \\(varlen_sdpa\\) was set"
REFUSED = {
    "bloom": KEPT.format("eager"),
    "codegen": KEPT.format("eager"),
    "doge": "does not compute attention_mask",
    "falcon": KEPT.format("sdpa"),
    "gpt_oss": "takes no attention but its own, not learner.attention",
    "gptj": KEPT.format("eager"),
    "llama4_text": "chunked_attention, attention_chunk_size=8192",
    "mpt": KEPT.format("eager"),
    "nemotron": "does not pass them on, and learner.attention=varlen_sdpa needs them",
    "qwen3_next": "layers that packed batches do not support: linear_attention",
    "recurrent_gemma": "computed wrongly: two sequences in one batch from each alone differs by",
    "stablelm": "does not pass them on, and learner.attention=varlen_sdpa needs them",
    "xglm": KEPT.format("eager"),
}


def test_the_guide_names_many_families_and_no_refused_one() -> None:
    assert len(TABLE) >= 50
    assert not REFUSED.keys() & TABLE.keys()
    assert all(f"`{family}`" in GUIDE.read_text() for family in REFUSED)


@pytest.mark.parametrize("family", sorted(TABLE))
def test_a_family_is_computed_as_transformers_does(family: str) -> None:
    found = check_model(PolicyModel(tiny_model(family)), "cpu")
    largest = max(found.alone, found.together, found.siblings)
    assert largest <= 1e-5
    assert largest <= max(2e-6, 5 * TABLE[family])  # rounding is another one on another CPU
    assert found.training == 0.0


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_that_packed_batches_do_not_support_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[family]):
        check_model(PolicyModel(tiny_model(family)), "cpu")


def test_a_window_that_only_a_mask_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="sliding_window=5"):
        PolicyModel(tiny_model("phimoe", sliding_window=5))


def test_a_critic_is_compared_by_its_hidden_states() -> None:
    backbone = tiny_model("gemma2").get_decoder()
    found = check_model(CriticModel(backbone), "cpu")
    assert max(found.alone, found.together, found.siblings) < 1e-5
    assert found.training == 0.0


def test_a_wrong_way_to_share_a_prefix_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def before(self, trained, prefixes):
        return trained - 1 if prefixes is None else prefixes.places[trained]

    monkeypatch.setattr(PolicyModel, "before", before)
    message = r"wrongly: siblings that share a prefix from siblings that do not differs by \d"
    with pytest.raises(ValueError, match=message):
        check_model(PolicyModel(tiny_model("llama")), "cpu")


def test_logits_with_another_scale_are_refused_with_the_number() -> None:
    policy = PolicyModel(tiny_model("cohere"))
    policy.model.get_output_embeddings().scale = 1.0
    message = (
        "CohereForCausalLM is computed wrongly: a packed batch of one sequence from the model's own"
    )
    with pytest.raises(ValueError, match=message):
        check_model(policy, "cpu")


def test_noise_in_train_mode_is_refused() -> None:
    policy = PolicyModel(tiny_model("llama"))

    def blur(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * 1.1 if policy.training else output

    policy.model.model.embed_tokens.register_forward_hook(blur)
    policy.model.model.layers[0].mlp.register_forward_hook(blur)
    with pytest.raises(ValueError, match=r"wrongly: train mode from eval mode differs by 0\.\d+"):
        check_model(policy, "cpu")


def test_mode_autocast_and_attention_are_what_they_were() -> None:
    policy = PolicyModel(tiny_model("qwen3"), autocast=torch.bfloat16).train()
    assert check_model(policy, "cpu").alone < 1e-5  # in float32
    assert policy.training
    assert policy.autocast is torch.bfloat16
    assert policy.model.config._attn_implementation == "varlen_sdpa"


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("engine", [PolicyEngine, CriticEngine])
def test_an_engine_refuses_the_model_before_it_trains(
    tmp_path: Path, stage: int, engine: type
) -> None:
    tiny_model("recurrent_gemma").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="two sequences in one batch from each alone differs by"):
        engine(ZeroSettings(model=str(tmp_path), zero_stage=stage))
