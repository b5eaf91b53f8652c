"""RPG with a reference that is refreshed every two steps and an adaptive beta, on the real stack.

step                    1    2    3    4    5
age of the reference    0    1    0    1    0
its KL                  0    +    0    +    0      exactly 0: the same weights, bit for bit
beta after it          -20% +20% -20% +20%         the target lies between 0 and what 2 shows
"""

import shutil

import pytest

from tests.e2e.command import finish_ballast, step_metrics

BETA, SHARE = 1e-4, 0.2  # 0.2 of the way: the whole limit, as 64 samples are the whole horizon


def train(folder, *overrides):
    """`ballast train` of one rank each, the reference under another ZeRO stage."""
    finish_ballast(
        *("train", "experiment=tiny"),
        *(f"output_dir={folder}", "run_name=rpg", "data.eval_limit=16"),
        *("algorithm=rpg", "algorithm.policy_loss.reference=ref"),
        *("algorithm/reference=refreshed", "algorithm.reference.every_steps=2"),
        *("algorithm/controller=adaptive_kl", "algorithm.controllers.kl.target=1e-9"),
        "algorithm.controllers.kl.coefficient=policy_loss.beta",
        "algorithm.controllers.kl.horizon=64",
        *("reference.zero_stage=3", "trainer.prompts_per_step=8", "trainer.export=false"),
        *("trainer.checkpoint_every=3", *overrides),
        cwd=folder,
    )


def steps(folder):
    return step_metrics(folder / "rpg")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Metrics of four steps, and of the same run resumed after step 3 and taken to step 5."""
    folder = tmp_path_factory.mktemp("following")
    train(folder, "trainer.total_steps=4")
    straight = steps(folder)
    shutil.rmtree(folder / "rpg" / "checkpoints" / "step_000004")
    train(folder, "trainer.total_steps=5", "resume=auto")
    return straight, steps(folder)


def test_the_reference_is_the_policy_after_every_second_step(runs):
    straight, _ = runs
    assert [line["reference/age_steps"] for line in straight] == [0, 1, 0, 1]
    assert [line["reference/refreshed"] for line in straight] == [0, 1, 0, 1]
    kl = [line["reference/kl"] for line in straight]
    assert kl[0] == kl[2] == 0.0
    assert kl[1] > 1e-7
    assert kl[3] > 1e-7
    assert all(line["rollout/sequences"] == 64 for line in straight)


def test_beta_follows_the_kl(runs):
    _, resumed = runs
    down, up = 1 - SHARE, 1 + SHARE
    expected = [BETA, BETA * down, BETA * down * up, BETA * down * up * down]
    expected.append(expected[-1] * up)
    assert [line["coefficient/kl"] for line in resumed] == pytest.approx(expected)


def test_a_resumed_run_has_its_reference_and_its_beta(runs):
    straight, resumed = runs
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 5]
    for name in ("reference/kl", "reference/age_steps", "coefficient/kl", "reward/mean"):
        assert resumed[3][name] == straight[3][name], name
    assert resumed[3]["learner/loss"] == pytest.approx(straight[3]["learner/loss"], abs=1e-7)
    assert resumed[4]["reference/kl"] == 0.0
