"""A judge on engines of the run's own: refused by name where it can't be, described where it can.

The sizes are those of Llama-3.1-8B, written into a folder without weights.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from algorithms.algorithm import Algorithm
from conf.compose import compose
from conf.schema import EvaluationSetConfig, TrainConfig
from orchestrator.planning import capacity, judges, plan
from orchestrator.planning.doctor import inputs
from orchestrator.planning.settings import check_settings, judge_settings
from workers.engines.judge.settings import JudgeSettings

OWN = {"reward.engine.model": "/models/judge", "reward.engine.kv_cache_gib": 2}
URL = {"reward.scorer.judges.judge.url": "http://x/v1", "reward.scorer.judges.judge.model": "m"}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


@functools.cache
def composed(cluster: str) -> tuple[TrainConfig, Algorithm]:
    raw, config = compose(["experiment=tiny", "reward=judge", f"cluster={cluster}"])
    return config, instantiate(raw.algorithm, _convert_="all")


def configured(values: Mapping[str, Any], cluster: str = "local") -> TrainConfig:
    """Return the tiny run with a judge, with some values by their keys."""
    config = copy.deepcopy(composed(cluster)[0])
    for key, value in values.items():
        *sections, name = key.split(".")
        node: Any = config
        for section in sections:
            node = node[section] if isinstance(node, dict) else getattr(node, section)
        if isinstance(node, dict):
            node[name] = value
        else:
            setattr(node, name, value)
    return config


def check(values: Mapping[str, Any], cluster: str = "local") -> None:
    judges.check(configured(values, cluster))


def refusal(values: Mapping[str, Any], cluster: str = "local") -> str:
    with pytest.raises(ValueError, match="=") as caught:
        check(values, cluster)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_a_judge_with_neither_service_nor_engine_is_refused_with_both_remedies() -> None:
    message = refusal({})
    assert message.startswith("reward.scorer.judges.judge.url=None: no service and no engine")
    assert "reward.scorer.judges.judge.url=http://... and" in message
    assert "reward.engine.model=/path" in message


def test_an_engine_that_no_judge_asks_is_refused() -> None:
    message = refusal(OWN | URL)
    assert "set reward.scorer.judges.judge.url=null, or reward.engine.model=null" in message
    message = refusal(OWN | {"reward.scorer": {"_target_": "my.Scorer"}})
    assert "choose reward=judge, or reward.engine.model=null" in message


def test_judges_are_found_below_other_scorers_and_in_held_out_sets() -> None:
    nested = {"_target_": judges.JUDGE, "prompt": "x", "judges": {"a": {}}}
    weighted = {"_target_": "my.Sum", "scorers": {"mine": nested}}
    assert "reward.scorer.scorers.mine.judges.a.url=None" in refusal({"reward.scorer": weighted})
    sets = {"s": EvaluationSetConfig(path="/x.jsonl", scorer=nested)}
    message = refusal(URL | {"evaluation.sets": sets})
    assert "evaluation.sets.s.scorer.judges.a.url=None" in message
    (judge,) = judges.asked_judges(configured(URL))
    assert (judge.key, judge.url) == ("reward.scorer.judges.judge", "http://x/v1")


def test_a_recording_has_no_judge_to_serve() -> None:
    check({"rollout.replay.folder": "/runs/x"})


def test_the_plan_shows_the_role_its_context_and_its_memory(llama: Path) -> None:
    """8.03 B parameters in bfloat16 are 15.0 GiB, halved 7.5; 128 KiB a token, halved 64."""
    shape = {"tensor_parallel_size": 2, "max_model_len": 16384, "model": str(llama)}
    values = {f"reward.engine.{key}": value for key, value in shape.items()}
    values |= {"rollout.num_engines": 1, "learner.num_ranks": 1}
    config, algorithm = configured(values, "gpu_4"), composed("gpu_4")[1]
    plan.check_launch(config, algorithm)
    text = plan.describe(config, algorithm)
    assert "roles  rollout, reward, judge, learner" in text
    assert (
        f"judge  1 engine x 2 devices, bfloat16, {llama}, calls up to 16384 tokens; tried on the "
        "first rows once it runs" in text
    )
    assert "judge: weights 7.5 + KV cache 1.0 + reserve 4.0 = 12.5 GiB" in text
    assert "4 GPUs of 1 node x 4" in text


def test_too_few_gpus_are_refused_with_the_sum() -> None:
    config = configured({"reward.engine.model": "/models/judge"}, "gpu_2")
    with pytest.raises(ValueError, match="the run asks for 3: ") as caught:
        capacity.check(config, composed("gpu_2")[1])
    assert "1 engine x 1 device x 1 + 1 judge engine x 1 device x 1" in str(caught.value)
    wide = {"reward.engine.model": "/m", "reward.engine.tensor_parallel_size": 4}
    message = refusal(wide, "gpu_2")
    assert message.startswith("reward.engine.tensor_parallel_size=4: an engine stands on one node")


def test_a_judge_has_whole_gpus() -> None:
    config = configured({"cluster.judge.num_gpus": 0.5}, "gpu_2")
    with pytest.raises(ValueError, match=r"cluster.judge.num_gpus=0.5: must be 1, a whole GPU"):
        config.cluster.check()


def test_the_folder_of_the_model_is_absolute() -> None:
    config = configured({"reward.engine.model": "judge"})
    with pytest.raises(ValueError, match="reward.engine.model='judge': must be an absolute path"):
        config.reward.check()


def test_a_judge_too_large_for_its_gpus_is_refused_with_the_sum(llama: Path) -> None:
    message = refusal(
        {
            "cluster.gpu_memory_gib": 16,
            "reward.engine.model": str(llama),
            "reward.engine.max_model_len": 1024,
        },
        "gpu_2",
    )
    assert "judge: weights 15.0 + KV cache 0.1 + reserve 4.0 = 19.1 GiB, on a GPU of 16" in message
    assert "raise reward.engine.tensor_parallel_size" in message


def test_the_width_divides_the_heads(llama: Path) -> None:
    wide = {"reward.engine.model": str(llama), "reward.engine.tensor_parallel_size": 3}
    assert "tensor_parallel_size=3 does not divide the 32 attention heads" in refusal(OWN | wide)


def test_on_cpus_the_cache_has_a_size_that_holds_one_call(llama: Path) -> None:
    assert "kv_cache_gib=None takes what is left" in refusal({"reward.engine.model": "/m"})
    # 32 layers x 2 x 8 heads x 128 x 2 bytes = 128 KiB a token, x 16,384 = 2 GiB
    values = {
        "reward.engine.model": str(llama),
        "reward.engine.dtype": "bfloat16",
        "reward.engine.max_model_len": 16384,
    }
    message = refusal(values | {"reward.engine.kv_cache_gib": 1.9})
    assert "can't hold one call of 16384 tokens, 2.00 GiB" in message
    check(values | {"reward.engine.kv_cache_gib": 2.0})


def test_the_longest_call_fits_into_the_context(llama: Path) -> None:
    """Template of 100 characters 25, prompt 16, response 5, verdict 512: 558 tokens."""
    values = OWN | {"reward.scorer.prompt": "x" * 100, "data.max_prompt_tokens": 16}
    message = refusal(values | {"reward.engine.max_model_len": 557})
    assert "about 558 tokens: template 25 + prompt 16 + response 5 + verdict 512" in message
    check(values | {"reward.engine.max_model_len": 558})
    siblings = {"reward.scorer.together": "scores", "reward.engine.max_model_len": 592}
    assert "about 593 tokens" in refusal(values | siblings)  # 8 responses of 5 tokens
    assert judges.context(configured(values)) == 1372  # 2 x 558 + 256
    (llama / "config.json").write_text(json.dumps(LLAMA | {"max_position_embeddings": 1024}))
    values["reward.engine.model"] = str(llama)
    assert judges.context(configured(values)) == 1024
    assert "has a context of 1024 tokens, and is asked for 2048" in refusal(
        values | {"reward.engine.max_model_len": 2048}
    )


def test_the_settings_of_an_engine_follow_from_the_configuration() -> None:
    values = OWN | {
        "seed": 3,
        "reward.engine.dtype": "float32",
        "reward.engine.max_model_len": 1024,
        "reward.engine.arguments": ["--reasoning-parser", "qwen3"],
    }
    assert judge_settings(configured(values)) == JudgeSettings(
        model_path="/models/judge",
        device="cpu",
        dtype="float32",
        max_model_len=1024,
        kv_cache_memory_bytes=2 << 30,
        threads=2,
        seed=3,
        arguments=("--reasoning-parser", "qwen3"),
    )
    bad = configured(values | {"reward.engine.arguments": ["--port", "80"]})
    with pytest.raises(ValueError, match="^reward: engine.arguments may not set --port"):
        check_settings(bad, composed("local")[1], transport="shm")


def test_a_folder_without_a_model_that_can_chat_is_refused(llama: Path) -> None:
    def problem(path: Path, *arguments: str) -> str:
        given = {"reward.engine.model": str(path), "reward.engine.arguments": list(arguments)}
        (finding,) = inputs.judge(configured(given))
        return finding.text

    assert "no Hugging Face folder (no config.json)" in problem(llama / "nowhere")
    assert "holds no *.safetensors weights" in problem(llama)
    (llama / "model.safetensors").write_bytes(b"")
    assert "holds no tokenizer" in problem(llama)
    (llama / "tokenizer_config.json").write_text("{}")
    assert "its tokenizer has no chat template" in problem(llama)
    assert "chat template" not in problem(llama, "--chat-template", "/t.jinja")
    (llama / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert problem(llama).startswith("model.safetensors: ")  # which is empty
