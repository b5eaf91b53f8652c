"""Every algorithm YAML composes, builds and agrees with the dataclasses, both ways."""

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from algorithms.algorithm import Algorithm

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
OPTIONS = sorted((path.parent.name, path.stem) for path in (CONF / "algorithm").glob("*/*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(
        name="algorithm_only",
        node={
            "defaults": [{"algorithm": "grpo"}, "_self_"],
            "rollout": {"sampling": {"max_new_tokens": 16}},
        },
    )
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> dict[str, Any]:
    config = compose("algorithm_only", overrides=list(overrides))
    container = OmegaConf.to_container(config.algorithm, resolve=True)
    assert isinstance(container, dict)
    return container


def build(*overrides: str) -> Algorithm:
    algorithm = instantiate(composed(*overrides), _convert_="all")
    assert isinstance(algorithm, Algorithm)
    return algorithm


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a `_target_`, at any depth."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for child in tree.values():
            yield from nodes(child)
    elif isinstance(tree, list):
        for child in tree:
            yield from nodes(child)


def assert_keys_are_fields(tree: dict[str, Any]) -> None:
    for node in nodes(tree):
        fields = {item.name for item in dataclasses.fields(get_class(node["_target_"]))}
        assert set(node) - {"_target_"} == fields, node["_target_"]


@pytest.mark.parametrize("name", NAMES)
def test_yaml_builds_and_lists_every_field(name: str) -> None:
    tree = composed(f"algorithm={name}")
    assert_keys_are_fields(tree)
    algorithm = build(f"algorithm={name}")
    assert algorithm.name == name  # so no two shipped algorithms share a name
    assert "\n" not in repr(algorithm)
    assert repr(algorithm).startswith(f"Algorithm {name}: ")
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_mixes_into_grpo(group: str, option: str) -> None:
    overrides = [f"algorithm/{group}={option}"]
    if option == "gae":
        overrides = ["algorithm=ppo", *overrides]
    assert_keys_are_fields(composed(*overrides))
    build(*overrides)


def test_override_of_a_part_keeps_the_rest() -> None:
    mixed = composed("algorithm=cpgd", "algorithm/advantage=rloo")
    plain = composed("algorithm=cpgd")
    assert mixed["advantage"] == {
        "_target_": "algorithms.advantages.outcome.LeaveOneOut",
        "whiten": "none",
    }
    assert {key: mixed[key] for key in mixed if key != "advantage"} == {
        key: plain[key] for key in plain if key != "advantage"
    }


def test_regularizers_are_added_changed_and_removed_by_key() -> None:
    assert build("~algorithm.regularizers.kl").required_columns == {"old_logprobs"}
    drifted = build("algorithm=cpgd", "algorithm.regularizers.drift.coefficient=0.5")
    assert "coefficient=0.5" in repr(drifted)
    added = build(
        "algorithm=cpgd",
        "+algorithm.regularizers.entropy={_target_: algorithms.regularizers.EntropyBonus}",
    )
    assert set(added.regularizers) == {"drift", "entropy"}
    assert added.entropy_gradient


def test_columns_decide_the_roles() -> None:
    assert build("algorithm=grpo").required_columns == {"old_logprobs", "ref_logprobs"}
    assert build("algorithm=dapo").required_columns == {"old_logprobs"}
    assert build("algorithm=cpgd").required_columns == {"old_logprobs"}
    assert build("algorithm=cpgd").credit_columns == frozenset()
    assert build("algorithm=dapo", "algorithm.bypass=true").required_columns == {"rollout_logprobs"}


@pytest.mark.parametrize("weighting", ["equal", "std", "clip_filter"])
def test_cpgd_weightings_by_override(weighting: str) -> None:
    algorithm = build("algorithm=cpgd", f"algorithm.advantage.weighting={weighting}")
    assert f"weighting='{weighting}'" in repr(algorithm)
    assert algorithm.needs_groups


def test_a_wrong_knob_fails_at_composition() -> None:
    with pytest.raises(Exception, match="weighting='sdt' is unknown"):
        build("algorithm=cpgd", "algorithm.advantage.weighting=sdt")
    with pytest.raises(Exception, match="clip_lo"):
        build("algorithm=cpgd", "algorithm.policy_loss.clip_lo=0.1")
