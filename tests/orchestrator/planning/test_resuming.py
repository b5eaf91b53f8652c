"""A resumed run keeps its algorithm unless it is told to change it."""

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from conf.compose import compose
from orchestrator.planning.resuming import (
    check_same_algorithm,
    check_same_model,
    check_same_rate,
)


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


@pytest.fixture
def cosine(tmp_path):
    """The folder of a finished run of 10 steps under a cosine, and the overrides that made it."""
    made = ["learner.optimizer.schedule=cosine", "learner.optimizer.lr=1e-3"]
    raw, _ = composed(tmp_path, *made, "trainer.total_steps=10")
    (tmp_path / "a" / "checkpoints" / "step_000010").mkdir(parents=True)
    OmegaConf.save(raw, tmp_path / "a" / "config.yaml")
    return tmp_path, made


def rate_checked(folder, *overrides):
    raw, config = composed(folder, *overrides)
    check_same_rate(config, instantiate(raw.algorithm, _convert_="all"))


def test_a_longer_cosine_is_refused_with_both_rates(cosine):
    folder, made = cosine
    with pytest.raises(ValueError, match=r"rate of 0.0005 in step 11, and the run was at 0 "):
        rate_checked(folder, *made, "trainer.total_steps=20", "resume=auto")
    rate_checked(folder, *made, "trainer.total_steps=20", "resume=changed")
    rate_checked(folder, *made, "trainer.total_steps=10", "resume=auto")


def test_a_longer_constant_goes_on(tmp_path):
    raw, _ = composed(tmp_path, "trainer.total_steps=10")
    (tmp_path / "a" / "checkpoints" / "step_000010").mkdir(parents=True)
    OmegaConf.save(raw, tmp_path / "a" / "config.yaml")
    rate_checked(tmp_path, "trainer.total_steps=20", "resume=auto")
    with pytest.raises(ValueError, match=r"rate of 0.002 in step 11, and the run was at 0.001"):
        rate_checked(tmp_path, "learner.optimizer.lr=2e-3", "resume=auto")


def test_a_schedule_counts_the_updates_that_the_run_took(tmp_path):
    linear = ["learner.optimizer.schedule=linear", "trainer.total_steps=10"]
    raw, _ = composed(tmp_path, *linear, "trainer.updates_per_step=2")
    (tmp_path / "a" / "checkpoints" / "step_000005").mkdir(parents=True)
    OmegaConf.save(raw, tmp_path / "a" / "config.yaml")
    rate_checked(tmp_path, *linear, "trainer.updates_per_step=2", "resume=auto")
    # 10 of 20 updates were taken, half of 1e-3; of the 10 updates of one a step, none is left.
    with pytest.raises(ValueError, match=r"rate of 0 in step 6, and the run was at 0.0005"):
        rate_checked(tmp_path, *linear, "trainer.updates_per_step=1", "resume=auto")
