"""Limits of time that contradict each other are refused with both keys, before anything starts."""

import pytest

from conf.compose import ConfigError, compose
from conf.schema.environment import EnvironmentConfig


def tools(time_s, **toolsets):
    return {"_target_": "ToolEnvironment", "time_s": time_s, "toolsets": toolsets}


@pytest.mark.parametrize(
    ("time_s", "limit_s", "message"),
    [
        (None, 10.0, r"^environment.player.time_s=10.0: .* cluster.timeouts.environment_s=10.0,"),
        (5.0, 600.0, r"^environment.player.time_s=10.0: .* environment.time_s=5.0,"),
        (8.0, 9.0, r"^environment.player.time_s=10.0: .* environment.time_s=8.0,"),
    ],
)
def test_a_call_that_may_outlast_its_environment_is_refused(time_s, limit_s, message):
    config = EnvironmentConfig(player=tools(10.0), time_s=time_s)
    with pytest.raises(ValueError, match=message):
        config.check_calls(limit_s)


def test_a_program_that_may_outlast_its_call_is_refused():
    python = {"_target_": "PythonInterpreter", "limits": {"wall_s": 12.0}}
    config = EnvironmentConfig(player=tools(10.0, python=python, search=None))
    with pytest.raises(
        ValueError,
        match=r"toolsets.python.limits.wall_s=12.0: must be below environment.player.time_s=10.0,",
    ):
        config.check_calls(600.0)


def test_the_section_of_a_source_is_named():
    config = EnvironmentConfig(player=tools(10.0), time_s=5.0)
    with pytest.raises(ValueError, match=r"^data.sources.a.environment.player.time_s=10.0: "):
        config.check_calls(600.0, "data.sources.a.environment")


def test_limits_that_fit_and_players_without_calls_pass():
    python = {"_target_": "PythonInterpreter", "limits": {"wall_s": 4.0}}
    EnvironmentConfig(player=tools(10.0, python=python), time_s=60.0).check_calls(600.0)
    EnvironmentConfig(player={"_target_": "my.Game", "time_s": 900.0}).check_calls(600.0)
    EnvironmentConfig().check_calls(600.0)


def test_a_whole_run_with_such_limits_is_refused_when_it_is_planned():
    with pytest.raises(ConfigError, match="environment.player.time_s=10.0: .* lower it, or raise"):
        compose(["experiment=tiny_tools", "cluster.timeouts.environment_s=5"])
