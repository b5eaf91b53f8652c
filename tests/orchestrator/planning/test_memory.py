"""The arithmetic of GPUs and their memory: against transformers' own count, and by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch.nn import Module
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from conf.compose import ConfigError, compose
from conf.schema import ArchitectureConfig
from orchestrator.planning import architecture, capacity, engine_memory, memory, plan
from orchestrator.planning.architecture import architecture_of, num_parameters
from orchestrator.planning.roles import roles_of
from orchestrator.planning.settings import vllm_settings
from workers.engines.model.attention_kernels import PLAIN_LENGTH
from workers.engines.model.head_rows import default_chunk_rows
from workers.engines.model.lora_settings import LoraSettings
from workers.engines.model.policy_model import PolicyModel

CONF = Path(__file__).parents[3] / "conf"
SIZED = sorted(
    p.stem for p in (CONF / "model").glob("*.yaml") if "architecture:\n" in p.read_text()
)
GIB = 2**30
TOKENS = 384  # of the batch whose activations are counted

SMALL = ArchitectureConfig(
    num_layers=2,
    hidden_size=256,
    intermediate_size=1024,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=512,
    attention_bias=True,
    context=1024,
)


def built(size: ArchitectureConfig) -> Module:
    """A transformers model of these sizes."""
    kind = Qwen3Config if size.qk_norm else Qwen2Config
    config = kind(
        num_hidden_layers=size.num_layers,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        head_dim=size.head_dim,
        vocab_size=size.vocab_size,
        tie_word_embeddings=size.tied_embeddings,
    )
    return AutoModelForCausalLM.from_config(config)


def tower_parameters(size: ArchitectureConfig) -> int:
    """Parameters of Qwen2.5-VL's tower and merger of these sizes."""
    config = Qwen2_5_VLVisionConfig(
        depth=size.tower.num_layers,
        hidden_size=size.tower.hidden_size,
        intermediate_size=size.tower.intermediate_size,
        out_hidden_size=size.hidden_size,
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel(config)
    return sum(p.numel() for p in tower.parameters())


@pytest.mark.parametrize("model", SIZED)
def test_parameters_are_those_that_transformers_counts(model):
    size = compose([f"model={model}"])[1].model.architecture
    with torch.device("meta"):
        one, two = (
            sum(p.numel() for p in built(replace(size, num_layers=layers)).parameters())
            for layers in (1, 2)
        )
        tower = 0 if size.tower is None else tower_parameters(size)
    counted = one + (size.num_layers - 1) * (two - one) + tower
    assert num_parameters(size) == counted
    said = (CONF / "model" / f"{model}.yaml").read_text()
    assert f"{counted / 1e9:.2f} B parameters" in said


@pytest.mark.parametrize(
    ("qk_norm", "autocast", "held", "rank"),
    [
        (True, None, torch.float32, None),
        (False, torch.bfloat16, torch.float32, None),
        (False, None, torch.bfloat16, None),
        (True, None, torch.float32, 16),
        (False, None, torch.bfloat16, 16),
    ],
)
def test_activations_are_those_that_autograd_saves(qk_norm, autocast, held, rank):
    """Bytes saved per layer and token, the difference of two layers and one."""
    size = replace(SMALL, qk_norm=qk_norm, attention_bias=not qk_norm)
    one, two = (saved_bytes(replace(size, num_layers=n), autocast, held, rank) for n in (1, 2))
    measured = (two - one) / TOKENS
    element = (autocast or held).itemsize
    estimate = architecture.layer_bytes_per_token(size, element, held.itemsize, frozen=bool(rank))
    estimate += 7 * element * (rank or 0)  # between A and B
    assert estimate == pytest.approx(measured, rel=0.01)


def test_short_sequences_on_a_cpu_keep_their_scores():
    """8 sequences of 128 tokens: float32 scores of 4 heads, 2 KiB a token and layer."""
    assert memory.SCORED_LENGTH == PLAIN_LENGTH
    _, config = compose(["experiment=tiny", "learner.token_budget=1024"])
    on_cpu = memory.activation_bytes(config, SMALL, trains=True)
    config.cluster.learner.num_gpus = 1
    assert on_cpu - memory.activation_bytes(config, SMALL, trains=True) == 2 * 1024 * 2048


def saved_bytes(
    size: ArchitectureConfig, autocast: torch.dtype | None, held: torch.dtype, rank: int | None
) -> int:
    """Distinct storage that one forward pass keeps for its backward pass, weights aside."""
    adapter = None if rank is None else LoraSettings(rank=rank)
    policy = PolicyModel(built(size).to(held), autocast=autocast, adapter=adapter).to(held)
    policy.freeze()
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        cast_weight = tensor.dim() == 2 and TOKENS not in tensor.shape
        if place not in weights and not cast_weight:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy(
            torch.arange(TOKENS),
            torch.arange(TOKENS),
            torch.tensor([0, TOKENS], dtype=torch.int32),
            torch.arange(TOKENS) > 0,
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_rank_of_7b_by_hand():
    """7,615,616,512 parameters over 4 ranks of ZeRO-3: 4 B of each is 7.09 GiB of every kind."""
    _, config = compose(["experiment=cpgd_qwen25_7b"])
    size = config.model.architecture
    parts = memory.policy_share(config, size, num_ranks=4, trains=True).parts
    quarter = 7_615_616_512 * 4 / 4 / GIB
    assert parts["weights"] / GIB == pytest.approx(quarter)
    assert parts["gradients"] / GIB == pytest.approx(quarter)
    assert parts["master weights"] / GIB == pytest.approx(quarter)
    assert parts["AdamW"] / GIB == pytest.approx(2 * quarter)
    # 28 layer inputs of 3584 float32, and one layer that is recomputed, for 7096 tokens; three
    # chunks of logits, whose rows an 80 GiB GPU limits to 2048.
    layer = 2 * 3584 * 10 + 2 * (4 * 18944 + 7 * 3584)
    head = 3 * 4 * 2048 * 152_064
    assert parts["activations"] == (28 * 3584 * 4 + layer) * 7096 + head
    scores = memory.policy_share(config, size, num_ranks=4, trains=False).parts
    assert "gradients" not in scores
    assert scores["weights"] == parts["weights"]


@pytest.mark.parametrize(
    ("stage", "kept"),  # in units of the parameters' own 4 bytes, on each of 4 ranks
    [
        (0, {"weights": 1, "gradients": 1, "master weights": 0, "AdamW": 2}),
        (1, {"weights": 1, "gradients": 1, "master weights": 1 / 4, "AdamW": 2 / 4}),
        (2, {"weights": 1, "gradients": 1 / 4, "master weights": 1 / 4, "AdamW": 2 / 4}),
        (3, {"weights": 1 / 4, "gradients": 1 / 4, "master weights": 1 / 4, "AdamW": 2 / 4}),
    ],
)
def test_what_each_stage_divides(stage, kept):
    _, config = compose(["experiment=cpgd_qwen25_7b", f"learner.zero_stage={stage}"])
    parts = memory.policy_share(config, SMALL, num_ranks=4, trains=True).parts
    whole = 4 * num_parameters(SMALL)
    assert {name: parts[name] / whole for name in kept} == pytest.approx(kept)


def _gpu_bytes(config) -> int | None:
    gib = config.cluster.gpu_memory_gib
    return None if gib is None else int(gib * memory.GIB)


def test_a_chunk_of_the_head_is_counted_as_it_is_taken():
    parts = []
    for chunk in ("null", "100", "200"):
        _, config = compose(["experiment=cpgd_qwen25_7b", f"learner.head_chunk={chunk}"])
        parts.append(memory.policy_share(config, SMALL, num_ranks=4, trains=True).parts)
    row = 3 * 4 * SMALL.vocab_size  # logits, softmax, gradient in the making
    assert parts[2]["activations"] - parts[1]["activations"] == 100 * row
    rows = (parts[0]["activations"] - parts[1]["activations"]) / row + 100
    assert rows == default_chunk_rows(SMALL.vocab_size, _gpu_bytes(config))


def test_ranks_that_share_a_micro_batch_halve_its_activations():
    kept = []
    for size in (1, 2):
        overrides = ["experiment=cpgd_qwen25_7b", f"learner.sequence_parallel_size={size}"]
        _, config = compose(overrides)
        shares = (
            memory.policy_share(config, SMALL, num_ranks=4, trains=True),
            memory.critic_share(config, SMALL),
        )
        head = memory.head_bytes(SMALL.vocab_size, _gpu_bytes(config), config.learner.head_chunk)
        kept.append([share.parts["activations"] - head for share in shares])
    (learner, critic), (shared, same) = kept
    assert shared == learner / 2
    assert same == critic


def test_offloading_takes_the_optimizer_off_the_gpu():
    _, config = compose(["experiment=cpgd_qwen25_7b", "learner.offload_optimizer=true"])
    parts = memory.policy_share(config, SMALL, num_ranks=4, trains=True).parts
    assert parts["AdamW"] == parts["master weights"] == 0
    assert parts["gradients"] > 0


def test_the_cache_of_an_engine():
    """Qwen2.5-7B: 28 layers x 4 heads x 128 x 2 (key, value) x 2 B = 56 KiB a token."""
    _, config = compose(["experiment=cpgd_qwen25_7b"])
    assert memory.kv_bytes_per_token(config.model.architecture, config) == 56 * 1024
    _, wide = compose(["experiment=cpgd_qwen25_7b", "rollout.tensor_parallel_size=2"])
    assert memory.kv_bytes_per_token(wide.model.architecture, wide) == 28 * 1024
    _, wider = compose(["experiment=cpgd_qwen25_7b", "rollout.tensor_parallel_size=8"])
    assert (
        memory.kv_bytes_per_token(wider.model.architecture, wider) == 14 * 1024
    )  # 1 head at least


def refusal(*overrides):
    raw, config = compose(list(overrides))
    with pytest.raises(ValueError, match=": ") as caught:
        plan.check(config, instantiate(raw.algorithm, _convert_="all"))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_a_model_too_large_is_refused_with_the_sum():
    message = refusal("experiment=cpgd_qwen25_7b", "cluster=gpu_2")
    assert "cluster=gpu_2 can't hold qwen25_7b (7.62 B parameters)" in message
    # 4 x 28.37 (weights, gradients, masters, and AdamW twice), and 4 bytes of 1 B gathered
    assert "weights 28.4 + gradients 28.4 + buckets 0.4 + master weights 28.4" in message
    assert "AdamW 56.7 + gathered 3.7" in message
    assert "on one GPU of 80 GiB" in message
    assert "model.param_dtype=bfloat16 learner.num_ranks=2 would fit" in message


def test_a_cache_of_what_is_left_needs_room_for_one_sequence():
    raw, config = compose(["experiment=cpgd_qwen25_7b"])
    roles = roles_of(config, instantiate(raw.algorithm, _convert_="all"))
    assert config.rollout.kv_cache_gib is None
    # 14.2 GiB of weights, 56 KiB x 7,096 tokens = 0.38 GiB, reserve 4.
    share = memory.engine_share(config, config.model.architecture)
    assert str(share) == "rollout: weights 14.2 + KV cache 0.4 + reserve 4.0 = 18.6 GiB"
    # vLLM takes 0.92 x 80 = 73.6 GiB: 73.6 - 14.2 - 4 = 55.4 GiB / 0.379 = 146 sequences.
    (line,) = engine_memory.describe_cache(config, roles)
    assert line == ("an engine's cache, about 55.4 GiB, holds 146 sequences of the greatest length")


def test_a_reward_model_on_gpus_is_planned_without_its_memory():
    """Its sizes are not the policy's; of an engine that shares with it the share of Ray counts."""
    whole = ["cluster=gpu_8", "rollout.num_engines=3", "cluster.reward_gpus=1"]
    raw, config = compose(["experiment=rpg_qwen3_4b_4k", *whole, "reward.num_workers=1"])
    algorithm = instantiate(raw.algorithm, _convert_="all")
    plan.check(config, algorithm)
    roles = roles_of(config, algorithm)
    described = [line.partition(":")[0] for line in memory.describe(config, roles)]
    assert described == ["rollout", "learner"]
    config.cluster.rollout.num_gpus, config.cluster.reward_gpus = 0.5, 0.5
    assert engine_memory.engine_fraction(config, roles_of(config, algorithm)) == 0.5


def test_the_buffer_of_a_large_embedding_counts_beside_the_reserve():
    """Qwen2.5-7B: 152,064 x 3,584 x 2 = 1,089,994,752 bytes, 16 MB above the reserve's chunk."""
    _, config = compose(["experiment=cpgd_qwen25_7b"])
    model = config.model.architecture
    assert memory.publication_bytes(config, model) == 1_089_994_752 - (1 << 30)
    assert "publication" in memory.share_of(config, model, "learner").parts
    assert "publication" not in memory.share_of(config, model, "reference").parts
    assert "publication" not in memory.share_of(config, model, "critic").parts
    with pytest.raises(ValueError, match="memory of the role 'judge' is not known"):
        memory.share_of(config, model, "judge")
    _, small = compose(["experiment=cpgd_qwen25_7b", "model=qwen25_1_5b"])
    assert memory.publication_bytes(small, small.model.architecture) == 0.0


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=tiny", "rollout.kv_cache_gib=null"],  # on CPUs
        ["cluster=gpu_1", "rollout.kv_cache_gib=null"],  # beside a learner that loads
    ],
)
def test_what_others_fill_at_the_same_time_is_not_measured(overrides):
    with pytest.raises(ConfigError, match=r"rollout.kv_cache_gib=None: .* name a size"):
        compose(overrides)


def test_gpus_decode_by_graphs_and_cpus_do_not():
    for overrides, eager in [
        (["experiment=tiny"], True),
        (["experiment=cpgd_qwen25_7b"], False),
        (["experiment=cpgd_qwen25_7b", "rollout.enforce_eager=true"], True),
        (["experiment=tiny", "rollout.enforce_eager=false"], False),
    ]:
        _, config = compose(overrides)
        settings = vllm_settings(config, "m", engine_id=0, transport="shm")
        assert settings.engine_args()["enforce_eager"] is eager, overrides


def test_the_remedy_is_a_remedy():
    raw, config = compose(["experiment=cpgd_qwen25_7b", "cluster=gpu_8", "learner.num_ranks=4"])
    plan.check(config, instantiate(raw.algorithm, _convert_="all"))


def test_the_reference_counts_where_it_shares_the_gpu():
    algorithm = "algorithm=grpo"
    message = refusal("experiment=cpgd_qwen25_7b", algorithm, "cluster.gpu_memory_gib=60")
    assert "learner: " in message
    assert "reference: " in message
    raw, config = compose(["experiment=cpgd_qwen25_7b", "cluster.gpu_memory_gib=60"])
    plan.check(config, instantiate(raw.algorithm, _convert_="all"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["learner.num_ranks=8"],
            "has 1 node x 8 = 8 GPUs, the run asks for 12: 4 engines x 1 device x 1 + "
            "8 learner ranks x 1",
        ),
        (
            ["algorithm=grpo", "rollout.num_engines=5"],
            "asks for 9: 5 engines x 1 device x 1 + 4 learner ranks x 0.75 + "
            "4 reference ranks x 0.25",
        ),
        (["cluster=nodes_8", "rollout.tensor_parallel_size=16"], "an engine stands on one node"),
        (["rollout.max_model_len=40000"], "exceeds the context of qwen25_7b, 32768 tokens"),
        (
            ["learner.num_ranks=3", "learner.sequence_parallel_size=3"],
            "=3 cannot divide 28 attention heads and 4 key-value heads: choose one of 1, 2, 4, 28",
        ),
        (
            ["cluster=nodes_2", "rollout.transport=shm"],
            "reaches engines on the learner's node only",
        ),
        (
            ["cluster=gpu_1", "rollout.max_engines=2"],
            "rollout.max_engines=2: weights go by ipc, which reaches engines on the learner's GPU",
        ),
        (["rollout.kv_cache_gib=100"], "KV cache 100.0"),
        (["rollout.kv_cache_gib=0.3"], "56 KiB per token x rollout.max_model_len=7096 = 0.38 GiB"),
    ],
)
def test_what_a_cluster_does_not_have_is_refused(overrides, message):
    assert message in refusal("experiment=cpgd_qwen25_7b", *overrides)


def test_the_folder_must_hold_the_named_model(tmp_path):
    record = {
        "num_hidden_layers": 24,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
    }
    (tmp_path / "config.json").write_text(json.dumps(record))
    message = refusal("experiment=cpgd_qwen25_7b", f"model.path={tmp_path}")
    assert "model=qwen25_7b has num_layers=28, but the folder" in message
    (tmp_path / "config.json").write_text(json.dumps({**record, "num_hidden_layers": 28}))
    _, config = compose(["experiment=cpgd_qwen25_7b", "model=hf", f"model.path={tmp_path}"])
    assert architecture_of(config.model).head_dim == 128  # 3584 / 28


def test_an_unknown_model_is_not_refused():
    raw, config = compose(["experiment=tiny", "cluster=gpu_1"])
    algorithm = instantiate(raw.algorithm, _convert_="all")
    assert architecture_of(config.model) is None
    plan.check(config, algorithm)
    # 0.4 for the engine, 0.5 for the learner; cpgd has no reference.
    assert capacity.describe(config, algorithm) == "gpu_1, 0.9 GPUs of 1 node x 1, 80 GiB each"
