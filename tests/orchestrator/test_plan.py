"""The dry run: the arithmetic of a step and what configuration and algorithm must agree on."""

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator import plan


def planned(*overrides):
    """What `ballast train --dry-run` prints, without leading blanks."""
    raw, config = compose(["experiment=tiny", *overrides])
    algorithm = instantiate(raw.algorithm, _convert_="all")
    plan.check(config, algorithm)
    lines = plan.describe(config, algorithm).splitlines()
    return dict(line.strip().split("  ", 1) for line in lines)


def test_the_updates_of_every_pass_are_counted():
    rows = planned("trainer.updates_per_step=4", "trainer.epochs_per_step=2", "learner.num_ranks=2")
    assert rows["step"].startswith("32 prompts x 8 samples = 256 sequences")
    assert "256 / 4 = 64 sequences per optimizer update, about 32 on each of 2" in rows["updates"]
    assert rows["updates"].endswith("2 x 4 = 8 updates a step")
    assert "actor" in rows["roles"]


def test_one_pass_of_one_update_needs_no_actor():
    assert "actor" not in planned()["roles"]
    assert "actor" in planned("trainer.epochs_per_step=2")["roles"]


@pytest.mark.parametrize(
    ("overrides", "roles"),
    [
        (["algorithm=rpg"], "rollout, reward, learner"),
        (["algorithm=rpg", "algorithm.policy_loss.reference=ref"], "rollout, reward, learner, ref"),
        (["algorithm=grpo"], "rollout, reward, learner, reference"),
        (
            [
                "algorithm=grpo",
                "algorithm/reference=refreshed",
                "algorithm.reference.every_steps=1",
            ],
            "rollout, reward, learner",
        ),
    ],
)
def test_the_rule_decides_whether_a_reference_runs(overrides, roles):
    assert planned(*overrides)["roles"].startswith(roles)
    assert ("reference" in planned(*overrides)["roles"]) == ("ref" in roles)
