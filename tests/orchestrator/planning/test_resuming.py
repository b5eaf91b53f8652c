"""A resumed run keeps its algorithm unless it is told to change it."""

import pytest
from omegaconf import OmegaConf

from conf.compose import compose
from orchestrator.planning.resuming import check_same_algorithm, check_same_model


def composed(folder, *overrides):
    return compose(["experiment=tiny", f"output_dir={folder}", "run_name=a", *overrides])


@pytest.fixture
def saved(tmp_path):
    """The folder of a run with algorithm=dapo and a clip of its own."""
    raw, _ = composed(tmp_path, "algorithm=dapo", "algorithm.policy_loss.clip_high=0.3")
    (tmp_path / "a").mkdir()
    OmegaConf.save(raw, tmp_path / "a" / "config.yaml")
    return tmp_path


def test_the_same_algorithm_goes_on(saved):
    same = ["algorithm=dapo", "algorithm.policy_loss.clip_high=0.3", "resume=auto"]
    check_same_algorithm(*composed(saved, *same, "learner.optimizer.lr=1e-5"))


def test_a_forgotten_override_is_refused_with_both_values(saved):
    with pytest.raises(ValueError, match=r"algorithm.policy_loss.clip_high: 0.3 -> 0.28\. Repeat"):
        check_same_algorithm(*composed(saved, "algorithm=dapo", "resume=auto"))


def test_another_algorithm_is_refused_and_can_be_asked_for(saved):
    with pytest.raises(ValueError, match=r"resume=auto with another .*a/config.yaml: .* more\."):
        check_same_algorithm(*composed(saved, "resume=auto"))
    check_same_algorithm(*composed(saved, "resume=changed"))
    check_same_algorithm(*composed(saved, "resume=never"))
    check_same_algorithm(*composed(saved, "resume=auto", "run_name=b"))  # nothing to go on from


def test_another_adapter_is_another_model(tmp_path):
    lora = ["model/adapter=lora", "resume=auto"]
    saved = tmp_path / "a"
    saved.mkdir()
    raw, config = compose(["experiment=tiny", f"output_dir={tmp_path}", "run_name=a", *lora])
    OmegaConf.save(raw, saved / "config.yaml")
    check_same_model(config)
    _, other = compose(
        ["experiment=tiny", f"output_dir={tmp_path}", "run_name=a", *lora, "model.adapter.alpha=8"]
    )
    with pytest.raises(ValueError, match=r"is a run of model.adapter.alpha=\S+, not of 8"):
        check_same_model(other)
