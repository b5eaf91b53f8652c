"""What a submission sends, and what it refuses to send; how a log is followed over losses."""

import os
import shlex
from typing import ClassVar

import pytest
from ray.job_submission import JobStatus

from conf.compose import compose
from orchestrator.cli.jobs.client import ClusterError
from orchestrator.cli.jobs.following import Follower, LostError, OutputClosedError
from orchestrator.cli.jobs.submission import load_secrets, make_request
from orchestrator.cli.parser import main

OVERRIDES = ["experiment=tiny", "output_dir=/shared/runs", "rollout.sampling.stop=['\\n', ' ']"]


def made(overrides=OVERRIDES, **more):
    arguments = {"working_dir": None, "wheel": None, "config_dir": None, **more}
    return make_request(compose(overrides)[1], overrides, **arguments)


def test_the_command_is_train_with_the_same_overrides():
    job = made()
    words = shlex.split(job.entrypoint)
    assert words[:5] == ["exec", "python", "-m", "orchestrator.cli", "train"]
    assert words[5:] == [*OVERRIDES, "cluster.address=auto"]
    sent, here = (compose(words)[1].rollout for words in (words[5:], OVERRIDES))
    assert sent.sampling.stop == here.sampling.stop  # quoting survives a shell
    assert job.metadata == {"run_name": "tiny", "output_dir": "/shared/runs"}
    assert "working_dir" not in job.runtime_env


def test_a_folder_and_a_wheel_are_sent(tmp_path):
    (tmp_path / "my_conf").mkdir()
    wheel = tmp_path / "ballast_rl-0.1.0-py3-none-any.whl"
    wheel.touch()
    job = made(working_dir=tmp_path, wheel=wheel, config_dir=str(tmp_path / "my_conf"))
    assert job.runtime_env["working_dir"] == str(tmp_path)
    assert {".git", ".venv", "runs"} <= set(job.runtime_env["excludes"])
    assert job.runtime_env["py_modules"] == [str(wheel)]
    assert "train --config-dir my_conf experiment=tiny" in job.entrypoint


def test_variables_by_name_and_by_value(monkeypatch):
    monkeypatch.setenv("COLOUR", "green")
    sent = made(env=["COLOUR", "SIZE=3"]).runtime_env["env_vars"]
    assert (sent["COLOUR"], sent["SIZE"]) == ("green", "3")


def test_a_secret_is_sent_by_name_only(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    job = made(secrets=["WANDB_API_KEY"])
    assert job.runtime_env["env_vars"]["BALLAST_SECRETS"] == "WANDB_API_KEY"
    assert "hunter2" not in repr(job)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"overrides": ["experiment=tiny"]}, "output_dir=runs: a job's own folder is lost"),
        ({"env": ["WANDB_API_KEY=hunter2"]}, "--env WANDB_API_KEY would show its value"),
        ({"env": ["NOT_SET_ANYWHERE"]}, "--env NOT_SET_ANYWHERE: is not set here"),
        ({"env": ["two words=1"]}, "--env 'two words'"),
        ({"secrets": ["KEY=hunter2"]}, "--secret 'KEY': give the name alone"),
        ({"config_dir": "/elsewhere"}, "is not inside --working-dir"),
    ],
)
def test_what_can_not_be_sent_is_named_and_nothing_leaks(more, message):
    with pytest.raises(ValueError, match=": |would|inside") as caught:
        made(**more)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_missing_folder_or_wheel(tmp_path):
    with pytest.raises(ValueError, match="--working-dir .*nowhere does not exist"):
        made(working_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--wheel .*none.whl does not exist"):
        made(wheel=tmp_path / "none.whl")


def test_secrets_on_the_cluster(monkeypatch, tmp_path):
    monkeypatch.setenv("BALLAST_SECRETS", "FROM_ENV,FROM_FILE")
    monkeypatch.setenv("BALLAST_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("FROM_ENV", "a")
    monkeypatch.delenv("FROM_FILE", raising=False)
    with pytest.raises(ValueError, match=r"secret FROM_FILE is unset: .* write it to .*FROM_FILE"):
        load_secrets()
    (tmp_path / "FROM_FILE").write_text("b\n")
    load_secrets()
    assert os.environ.pop("FROM_FILE") == "b"


def test_a_cluster_that_is_not_there(capsys):
    arguments = ["submit", "--address", "http://127.0.0.1:9", *OVERRIDES]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "no Ray cluster answers at http://127.0.0.1:9" in error
    assert len(error.strip().splitlines()) == 1


def test_a_mistake_is_found_before_the_cluster_is_asked(capsys):
    arguments = ["submit", "--address", "http://127.0.0.1:9", "experiment=tiny", "a.b=1"]
    assert main(arguments) == 2
    assert "unknown key" in capsys.readouterr().err


class Details:
    def __init__(self, status, code=0):
        self.status, self.driver_exit_code, self.message = status, code, ""


class Flaky:
    """A job server whose connections break: every attempt sends the log from its start."""

    def __init__(self, attempts, status=JobStatus.SUCCEEDED, code=0):
        self.attempts, self.details, self.log = list(attempts), Details(status, code), ""

    async def tail_job_logs(self, job_id):
        chunks, ends_well = self.attempts.pop(0)
        self.log = "".join(chunks)
        for chunk in chunks:
            yield chunk
        if not ends_well:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job_id):
        return self.details

    def get_job_logs(self, job_id):
        return self.log


def followed(server, **more):
    text = []
    return Follower(lambda: server, "job", text.append, **more).follow(), "".join(text)


def test_a_dropped_connection_prints_nothing_twice():
    server = Flaky(
        [
            (["run folder  /shared/runs/a\n", "step 1\n"], False),
            (["run fol"], False),  # shorter than what was printed
            (["run folder  /shared/runs/a\nst", "ep 1\nstep 2\n"], True),
        ]
    )
    ending, text = followed(server)
    assert text == "run folder  /shared/runs/a\nstep 1\nstep 2\n"
    assert (ending.status, ending.exit_code) == ("SUCCEEDED", 0)
    assert ending.run_dir == "/shared/runs/a"


@pytest.mark.parametrize(
    ("status", "code", "shown"),
    [
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 143),
    ],
)
def test_the_exit_code_is_the_runs(status, code, shown):
    assert followed(Flaky([(["x\n"], True)], status, code))[0].exit_code == shown


def test_patience_ends():
    with pytest.raises(LostError, match=r"lost the cluster .* ballast logs job --follow"):
        followed(Flaky([([], False)] * 3), max_outage_s=0.0)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Request failed with status code 404: Job job does not exist."),
        RuntimeError("a mistake of ours"),
        ValueError("not JSON"),
        TypeError("unexpected"),
        FileNotFoundError("no such file"),
    ],
)
def test_what_is_no_lost_connection_is_not_swallowed(error):
    class Broken(Flaky):
        async def tail_job_logs(self, job_id):
            raise error
            yield

    with pytest.raises(type(error), match=str(error)):
        followed(Broken([]), max_outage_s=5.0)


def test_a_server_that_breaks_for_a_moment_is_asked_again():
    class Broken(Flaky):
        errors: ClassVar = [
            RuntimeError("Request failed with status code 503: no head"),
            RuntimeError("WebSocket connection closed unexpectedly with close code 1006"),
            TimeoutError(),
            ClusterError("no Ray cluster answers"),
        ]

        async def tail_job_logs(self, job_id):
            if self.errors:
                raise self.errors.pop()
            async for text in super().tail_job_logs(job_id):
                yield text

    assert followed(Broken([(["step 1\n"], True)]))[1] == "step 1\n"


def test_an_output_that_is_closed_ends_the_following():
    def closed(text):
        raise BrokenPipeError("Broken pipe")

    with pytest.raises(OutputClosedError, match="the log can't be written: Broken pipe"):
        Follower(lambda: Flaky([(["step 1\n"], True)]), "job", closed).follow()


@pytest.mark.parametrize("words", [[], ["some-job", "--all"]])
def test_stop_wants_one_job_or_all(words, capsys):
    assert main(["stop", *words]) == 2
    assert "name one job, as ballast jobs does, or give --all" in capsys.readouterr().err
