"""Make the request for a job: the command, its runtime environment, and the names of its secrets.

A secret's value is never sent. The cluster has the value (an environment variable of its nodes, or
a file below $BALLAST_SECRETS_DIR), the job names the secret, and `train` refuses to start without
its value: a value that is not in the request can't be in a log, a manifest or the dashboard. The
request is made on the user's machine and sent by `commands.py`; secrets are loaded in the driver.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.schema import TrainConfig

SECRETS_VARIABLE = "BALLAST_SECRETS"
SECRETS_DIR_VARIABLE = "BALLAST_SECRETS_DIR"
DEFAULT_SECRETS_DIR = "/run/secrets"
# Ray waits this long between its request to stop and its kill: a step and a checkpoint fit in it.
STOP_WAIT_S = 3600
LEFT_OUT = [".git", ".venv", "runs", "**/__pycache__"]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """Request for one job, with the arguments of Ray's `submit_job`."""

    entrypoint: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str]


def make_request(
    config: TrainConfig,
    overrides: Sequence[str],
    *,
    working_dir: Path | None,
    wheel: Path | None,
    config_dir: str | None,
    env: Sequence[str] = (),
    secrets: Sequence[str] = (),
) -> JobRequest:
    """Make the request for a job that trains `config` on the cluster.

    Args:
        config: checked here already, so that a mistake costs no submission.
        overrides: arguments of `ballast train`; the cluster's own address is added.
        working_dir: a folder to be sent, in which the command runs; modules in it can be imported.
        wheel: of this project, for a cluster that has its requirements and not the project.
        config_dir: of the user's own groups, inside `working_dir`.
        env: NAME=VALUE, or NAME for its value here.
        secrets: names that the cluster must know.

    Raises:
        ValueError: an argument can't be sent; the message names it and the remedy.
    """
    if not Path(config.output_dir).is_absolute():
        raise ValueError(
            f"output_dir={config.output_dir}: a job's own folder is lost with the job; give a "
            "folder that every node sees, such as output_dir=/shared/runs"
        )
    for path, what in ((working_dir, "--working-dir"), (wheel, "--wheel")):
        if path is not None and not path.exists():
            raise ValueError(f"{what} {path} does not exist")
    command = ["python", "-m", "orchestrator.cli", "train"]
    if config_dir is not None:
        command += ["--config-dir", _inside(config_dir, working_dir)]
    command += [*overrides, "cluster.address=auto"]
    runtime_env: dict[str, Any] = {"env_vars": _env_vars(env, secrets)}
    if working_dir is not None:
        runtime_env |= {"working_dir": str(working_dir.absolute()), "excludes": LEFT_OUT}
    if wheel is not None:
        runtime_env["py_modules"] = [str(wheel.absolute())]
    return JobRequest(
        # Without `exec` a shell would stand between Ray's signals and the run.
        entrypoint="exec " + shlex.join(command),
        runtime_env=runtime_env,
        metadata={"run_name": config.run_name, "output_dir": config.output_dir},
    )


def _inside(config_dir: str, working_dir: Path | None) -> str:
    folder = Path(config_dir).absolute()
    if working_dir is None or not folder.is_relative_to(working_dir.absolute()):
        raise ValueError(
            f"--config-dir {config_dir} is not inside --working-dir, so it would not be sent; "
            "give a --working-dir that holds it"
        )
    return str(folder.relative_to(working_dir.absolute()))


def _env_vars(env: Sequence[str], secrets: Sequence[str]) -> dict[str, str]:
    found = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    for entry in env:
        name, given, value = entry.partition("=")
        if not NAME.fullmatch(name):
            raise ValueError(f"--env {name!r}: give NAME=VALUE, or NAME for its value here")
        if SECRET_NAME.search(name):
            raise ValueError(
                f"--env {name} would show its value in the dashboard; give the cluster the secret "
                f"and name it: --secret {name}"
            )
        if not given and name not in os.environ:
            raise ValueError(f"--env {name}: is not set here; set it, or give {name}=VALUE")
        found[name] = value if given else os.environ[name]
    for name in secrets:
        if not NAME.fullmatch(name):
            shown = name.partition("=")[0]
            raise ValueError(f"--secret {shown!r}: give the name alone, the cluster has the value")
    if secrets:
        found[SECRETS_VARIABLE] = ",".join(secrets)
    return found


def load_secrets() -> None:
    """Put the named secrets into this process's environment, on the cluster, before training.

    Raises:
        ValueError: a secret is neither set nor a file; the message names the first such secret.
    """
    names = [name for name in os.environ.get(SECRETS_VARIABLE, "").split(",") if name]
    folder = Path(os.environ.get(SECRETS_DIR_VARIABLE, DEFAULT_SECRETS_DIR))
    for name in names:
        if os.environ.get(name):
            continue
        file = folder / name
        if not file.is_file():
            raise ValueError(
                f"secret {name} is unset: set the environment variable on the cluster's nodes "
                f"(Kubernetes: envFrom a Secret), or write it to {file}"
            )
        os.environ[name] = file.read_text().strip()
