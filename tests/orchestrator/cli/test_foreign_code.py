"""Of the code that a foreign folder names, only this project's and what the user names is run."""

import re

import pytest
from omegaconf import OmegaConf

from conf.compose import compose
from orchestrator.cli.foreign_code import check_code
from orchestrator.cli.parser import main


def config(*overrides):
    raw, _ = compose(["experiment=tiny", *overrides])
    return raw


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=quickstart"],
        ["algorithm=ppo"],
        ["algorithm=grpo", "algorithm/gate=erc", "algorithm/correction=tis"],
        ["reward=math"],
        ["experiment=smollm2_reasoning"],
    ],
)
def test_what_ships_is_trusted(overrides):
    check_code(config(*overrides), [], folder="runs/a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("environment.player._target_", "os.system"),
        ("environment.player._target_", "workers.models.cache.shutil.rmtree"),
        ("environment.player._target_", "workers.nothing.here"),
        ("reward.scorer._target_", "their_package.Scorer"),
        ("algorithm.policy_loss._target_", "builtins.exec"),
        ("data.build._target_", "subprocess.run"),
        ("rollout.engine_kwargs.trust_remote_code", "true"),
    ],
)
def test_foreign_code_is_refused_until_the_user_names_it(key, value):
    raw = config()
    OmegaConf.update(raw, key, value if value != "true" else True, force_add=True)
    with pytest.raises(ValueError, match=re.escape(f"adding: {key}={value}")):
        check_code(raw, ["seed=1"], folder="runs/a")
    check_code(raw, ["seed=1", f"{key}={value}"], folder="runs/a")


def test_a_reward_function_is_code_too(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def reward(**columns):\n    return 1.0\n")
    raw = config("reward=function", f"reward.scorer.path={file}:reward")
    with pytest.raises(ValueError, match=r"adding: reward\.scorer\.path=.*mine\.py:reward$"):
        check_code(raw, [], folder="runs/a")
    check_code(raw, [f"reward.scorer.path={file}:reward"], folder="runs/a")


@pytest.mark.parametrize("member", ["function", "text_game"])
def test_a_program_that_plays_is_code_too(member):
    raw = config(f"environment={member}", "environment.player.path=theirs.play")
    with pytest.raises(ValueError, match=r"adding: environment\.player\.path=theirs\.play$"):
        check_code(raw, [], folder="runs/a")
    check_code(raw, ["environment.player.path=theirs.play"], folder="runs/a")


def test_eval_of_a_foreign_folder_runs_nothing_of_it(tmp_path, capsys):
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.mkdir()
    raw = config()
    raw.environment.player = {"_target_": "shutil.rmtree", "path": str(victim)}
    OmegaConf.save(raw, run / "config.yaml")
    assert main(["eval", str(run)]) == 2
    assert "names code that is not this project's" in capsys.readouterr().err
    assert victim.exists()
