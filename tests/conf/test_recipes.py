"""The papers' recipes: their numbers, their arithmetic, and the clusters that hold them."""

from itertools import product
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import conf
from conf.compose import compose
from orchestrator.cli.parser import main
from orchestrator.telemetry.counting import counted

ROOT = Path(conf.__file__).parent
EXPERIMENTS = {path.stem: path for path in (ROOT / "experiment").glob("*.yaml")}
RECIPES = sorted(name for name, path in EXPERIMENTS.items() if "base/" in path.read_text())
CLUSTERS = sorted(p.stem for p in (ROOT / "cluster").glob("*.yaml") if "defaults:" in p.read_text())


def test_there_is_a_recipe_for_every_paper_and_budget():
    wanted = {f"rpg_{m}_{k}" for m, k in product(("qwen3_4b", "qwen25_7b"), ("2k", "4k", "8k"))}
    wanted |= {f"erc_{a}_r1_distill_{m}" for a, m in product(("dapo", "gppo"), ("1_5b", "7b"))}
    wanted |= {"cpgd_qwen25_7b", "cpgd_rloo_qwen25_7b", "cpgd_reinforce_pp_qwen25_7b"}
    wanted |= {f"cpgd_{a}qwen25_vl_7b" for a in ("", "grpo_", "rloo_", "reinforce_pp_")}
    wanted |= {"cpgd_grpo_qwen25_7b", "rpg_dapo_qwen3_4b_4k", "rpg_grpo_qwen3_4b_4k"}
    assert wanted <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_dry_without_weights(name, capsys):
    assert main(["train", "--dry-run", f"experiment={name}"]) == 0
    plan = capsys.readouterr().out
    assert "weights by nccl" in plan
    assert "learner: weights" in plan  # memory is known without a file of the model
    assert "AdamW" in plan


def settings(name):
    raw, config = compose([f"experiment={name}"])
    return raw, {
        "step": (config.trainer.prompts_per_step, config.rollout.samples_per_prompt),
        "updates": config.trainer.updates_per_step,
        "lr": config.learner.optimizer.lr,
        "weight_decay": config.learner.optimizer.weight_decay,
        "clip": config.learner.optimizer.max_grad_norm,
        "response": config.rollout.sampling.max_new_tokens,
        "temperature": config.rollout.sampling.temperature,
    }


def setting(step, updates, lr, weight_decay, response):
    return {
        "step": step,
        "updates": updates,
        "lr": lr,
        "weight_decay": weight_decay,
        "clip": 1.0,
        "response": response,
        "temperature": 1.0,
    }


@pytest.mark.parametrize(
    ("prefix", "wanted"),
    [
        ("cpgd_", setting((128, 8), 8, 1e-6, 0.01, 4096)),
        ("erc_", setting((128, 8), 8, 1e-6, 0.1, 16384)),
        ("dapo_r1", setting((128, 8), 8, 1e-6, 0.1, 16384)),
        ("rpg_dapo_qwen3_4b_2k", setting((512, 16), 16, 1e-6, 0.1, 2048)),
        ("rpg_grpo_qwen3_4b_8k", setting((512, 16), 16, 1e-6, 0.1, 8192)),
        ("rpg_qwen3_4b_4k", setting((512, 16), 16, 5e-7, 0.1, 4096)),
        ("rpg_qwen25_7b", {**setting((512, 16), 16, 5e-7, 0.1, 0), "response": None}),
    ],
)
def test_the_papers_numbers(prefix, wanted):
    names = [name for name in RECIPES if name.startswith(prefix)]
    assert names
    for name in names:
        found = settings(name)[1]
        if wanted["response"] is None:
            found["response"] = None
        assert found == wanted, name


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("cpgd_qwen25_7b", "policy_loss.clip_low", 0.2),
        ("cpgd_qwen25_7b", "regularizers.drift.coefficient", 0.01),
        ("cpgd_qwen25_7b", "regularizers.drift.cap", 2.0),
        ("cpgd_qwen25_7b", "advantage.weight_cap", 3.0),
        ("cpgd_grpo_qwen25_7b", "policy_loss.dual_clip", 3.0),
        ("cpgd_grpo_qwen25_7b", "regularizers", {}),
        ("rpg_qwen3_4b_8k", "policy_loss.beta", 1e-4),
        ("rpg_qwen3_4b_8k", "policy_loss.clip_high", 0.28),
        ("rpg_qwen3_4b_8k", "policy_loss.dual_clip", 10.0),
        ("rpg_qwen3_4b_2k", "reward_shaping.overlong.buffer", 512),
        ("rpg_qwen3_4b_2k", "reward_shaping.overlong.max_length", 2048),
        ("rpg_dapo_qwen3_4b_8k", "reward_shaping.overlong.max_length", 8192),
        ("rpg_grpo_qwen3_4b_4k", "regularizers.kl.coefficient", 1e-3),
        ("rpg_grpo_qwen3_4b_4k", "filters", {}),
        ("erc_dapo_r1_distill_7b", "gates.erc.low", 0.05),
        ("erc_dapo_r1_distill_7b", "auxiliaries.correct.coefficient", 0.1),
        ("erc_dapo_r1_distill_7b", "reward_shaping", {}),
        ("erc_gppo_r1_distill_1_5b", "policy_loss.beta_low", 1.0),
        ("dapo_r1_distill_7b", "gates", {}),
        ("gppo_r1_distill_7b", "gates", {}),
    ],
)
def test_the_algorithms_numbers(name, key, value):
    raw, _ = compose([f"experiment={name}"])
    found = OmegaConf.select(raw.algorithm, key)
    assert OmegaConf.is_missing(raw.algorithm, key) is False
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


def test_a_baseline_differs_from_its_method_in_the_method_alone():
    method, baseline = (
        OmegaConf.to_container(compose([f"experiment={name}_r1_distill_7b"])[0])
        for name in ("erc_dapo", "dapo")
    )
    different = {key for key in method if method[key] != baseline[key]}
    assert different == {"run_name", "algorithm"}
    parts = {k for k in method["algorithm"] if method["algorithm"][k] != baseline["algorithm"][k]}
    assert parts == {"name", "gates"}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_from_one_gpu_to_64_nodes_only_the_cluster_changes(cluster, capsys):
    small = "model=qwen25_0_5b"
    assert (
        main(["train", "--dry-run", "experiment=rpg_qwen3_4b_2k", small, f"cluster={cluster}"]) == 0
    )
    _, config = compose(["experiment=rpg_qwen3_4b_2k", small, f"cluster={cluster}"])
    assert config.cluster.name == cluster
    have = config.cluster.num_nodes * config.cluster.gpus_per_node
    asked = config.rollout.num_engines * config.cluster.rollout.num_gpus
    asked += config.learner.num_ranks * (
        config.cluster.learner.num_gpus + config.cluster.reference.num_gpus
    )
    assert asked == pytest.approx(have)  # with a reference not a GPU is idle
    assert f"of {counted(config.cluster.num_nodes, 'node')} x" in capsys.readouterr().out
    assert (config.cluster.address is None) == (config.cluster.num_nodes == 1)


def test_wider_engines_are_fewer():
    for width, engines in ((1, 48), (2, 24), (4, 12), (8, 6)):
        _, config = compose(["cluster=nodes_8", f"rollout.tensor_parallel_size={width}"])
        assert config.rollout.num_engines == engines


def test_72b_runs_where_it_fits_and_nowhere_else(capsys):
    recipe = ["train", "--dry-run", "experiment=cpgd_qwen25_7b", "model=qwen25_72b"]
    assert main([*recipe, "cluster=nodes_16"]) == 0
    assert "24 engines x 4 devices" in capsys.readouterr().out
    assert main([*recipe, "cluster=nodes_4"]) == 2
    error = capsys.readouterr().err
    assert "cluster=nodes_4 can't hold qwen25_72b (72.71 B parameters)" in error
    assert "would fit" in error


def test_paths_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("BALLAST_MODELS", "/shelf")
    monkeypatch.setenv("BALLAST_DATA", "/barn")
    raw, config = compose(["experiment=erc_dapo_r1_distill_7b"])
    assert config.model.path == "/shelf/DeepSeek-R1-Distill-Qwen-7B"
    assert raw.data.build.source == "/barn/KlearReasoner-MathSub-30K"
