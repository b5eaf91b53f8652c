"""Every command of the README and of the guides runs, and the table of refusals is true.

Quick commands run here, in this process. For every other one a table names the test that runs it.
"""

import contextlib
import io
import itertools
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.compose import compose
from orchestrator.cli.parser import build_parser, main
from orchestrator.planning.sources import prompt_sets
from workers.reward.base import RewardSample
from workers.reward.scorers.function import Function

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from guides import GUIDES, README, ROOT, fences, inline  # noqa: E402

OWN_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
OWN_MODULE = re.compile(r"```python\n# (my_\w+\.py),[^\n]*\n(.*?)```", re.DOTALL)

# Commands that take minutes, a cluster or another program -> the test that runs them, or as much of
# them as a test can: no test measures, builds an image, or has a Slurm or a Kubernetes of its own.
JOBS = "tests/orchestrator/cli/jobs/test_cluster.py"
ELSEWHERE = {
    "make quickstart": f"{JOBS}::test_the_quickstart",
    "make test": (
        "tests/house/test_setup.py::test_continuous_integration_runs_what_the_readme_names"
    ),
    "make setup *": "tests/house/test_setup.py::test_a_finished_environment_is_left_alone",
    "make bench*": "tests/house/test_guide_commands.py::test_a_benchmark_knows_its_options",
    "make chaos *": "tests/chaos/test_chaos.py::test_a_real_run_survives_two_faults",
    "ballast train experiment=tiny run_name=saved": (
        "tests/e2e/test_runs.py::test_a_run_says_what_it_did"
    ),
    "ballast train experiment=tiny run_name=saved resume=auto": (
        "tests/e2e/test_runs.py::test_resume_goes_on_from_the_last_checkpoint"
    ),
    "ballast train experiment=tiny algorithm=grpo run_name=first": (
        "tests/e2e/test_replay.py::test_replay_reproduces_the_run"
    ),
    "ballast train experiment=tiny_vision": (
        "tests/e2e/test_tiny_vision.py::test_colours_are_learned_from_pixels"
    ),
    "ballast train experiment=tiny_vision data=counting *": (
        "tests/e2e/test_tiny_vision.py::test_squares_are_counted"
    ),
    "ballast train experiment=tiny_tools": (
        "tests/e2e/test_tools.py::test_a_policy_calls_the_calculator_and_only_its_own_tokens_train"
    ),
    "ballast train * rollout=replay *": (
        "tests/e2e/test_replay.py::test_two_algorithms_train_on_identical_batches"
    ),
    "ballast train * trainer=rollout_only *": (
        "tests/e2e/test_replay.py"
        "::test_rollouts_alone_are_recorded_once_across_a_kill_and_train_afterwards"
    ),
    "ballast train * rollout.max_engines=16": (
        "tests/orchestrator/cli/jobs/test_elastic.py"
        "::test_a_node_that_joins_gets_an_engine_and_the_run_survives_its_end"
    ),
    "ballast eval *": "tests/e2e/test_runs.py::test_eval_scores_a_checkpoint_and_an_export_alike",
    "ballast data experiment=rpg_qwen3_4b_4k": (
        "tests/workers/tasks/test_local_copy.py::test_the_recipes_data_group_reads_the_copy"
    ),
    "ballast diff *": (
        "tests/orchestrator/cli/test_comparison.py::test_diff_tells_scripts_by_its_exit_code"
    ),
    "ballast compare *": (
        "tests/orchestrator/cli/test_comparison.py::test_compare_prints_a_row_for_every_run"
    ),
    "ballast train --multirun *": (
        "tests/e2e/test_multirun.py::test_two_runs_by_one_command_and_their_table"
    ),
    "ballast watch runs/*": (
        "tests/orchestrator/cli/test_watching.py::test_a_running_run_is_shown_until_its_last_step"
    ),
    "ballast watch --address *": (
        f"{JOBS}::test_a_killed_follower_is_replaced_and_a_stopped_run_resumes"
    ),
    "ballast train * tracking.prometheus=true *": (
        "tests/orchestrator/telemetry/test_gauges.py"
        "::test_prometheus_finds_the_last_step_on_the_port_of_the_node"
    ),
    "ballast report *": "tests/orchestrator/cli/test_report.py::test_one_run_and_two_runs",
    "ballast scale --engines *": (
        "tests/e2e/test_scaling.py::test_one_engine_two_engines_one_engine"
    ),
    "ballast scale --address *": (
        "tests/orchestrator/cli/jobs/test_elastic.py"
        "::test_a_node_that_joins_gets_an_engine_and_the_run_survives_its_end"
    ),
    "ballast submit *": f"{JOBS}::test_a_killed_follower_is_replaced_and_a_stopped_run_resumes",
    "ballast stop *": f"{JOBS}::test_a_killed_follower_is_replaced_and_a_stopped_run_resumes",
    "ballast jobs *": f"{JOBS}::test_submitted_followed_and_done_on_both_nodes",
    "ballast logs *": f"{JOBS}::test_a_killed_follower_is_replaced_and_a_stopped_run_resumes",
    "deploy/local/st*.sh*": f"{JOBS}::test_submitted_followed_and_done_on_both_nodes",
    "sbatch *": "tests/deploy/test_slurm.py::test_a_run_from_the_first_node_to_the_end",
    "kubectl apply *": (
        "tests/deploy/test_kuberay.py::test_core_objects_and_pods_follow_kubernetes_schemas"
    ),
    "ballast train * learner.profile.steps=*": (
        "tests/e2e/test_runs.py::test_ranks_that_share_their_micro_batches_train_as_one"
    ),
    "python -m pytest tests/gpu *": "tests/gpu/test_head.py::test_equals_plain_logits",
    "docker *": "tests/docker/test_dockerfile.py::test_hadolint_finds_nothing",
}
QUICK = {"check-algorithm", "data", "doctor", "metrics", "model", "rehearse"}
FEATURES = {
    "async": ["schedule=async"],
    "LoRA": ["model/adapter=lora"],
    "sequence parallel": ["learner.num_ranks=2", "learner.sequence_parallel_size=2"],
    "critic": ["algorithm=ppo", "algorithm.advantage.kl_coefficient=0.02"],
    "moving reference": ["algorithm/reference=refreshed"],
    "replay": ["rollout=replay", "rollout.replay.folder=runs/first"],
    "colocation": ["cluster.colocated=true", "rollout.num_engines=${learner.num_ranks}"],
    "wide engines": ["rollout.tensor_parallel_size=2"],
}


class Command(NamedTuple):
    """One command of a guide, and what the guide says that it prints."""

    guide: str
    text: str
    shown: str = ""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def commands_of(guide: Path) -> Iterator[Command]:
    name = str(guide.relative_to(ROOT))
    for language, block in fences(guide):
        block = block.replace("\\\n", " ")
        if language == "bash":
            for line in block.splitlines():
                if words := shlex.split(line, comments=True):
                    yield Command(name, shlex.join(words))
        if language == "console":
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, _, shown = part.partition("\n")
                yield Command(name, shlex.join(shlex.split(line, comments=True)), shown.strip())


COMMANDS = {(c.text, c.shown): c for guide in GUIDES for c in commands_of(guide)}.values()


def plain(command: Command) -> str:
    return " ".join(command.words)


def elsewhere(command: Command) -> list[str]:
    return [pattern for pattern in ELSEWHERE if fnmatchcase(plain(command), pattern)]


def is_quick(command: Command) -> bool:
    words = command.words
    if words[0] != "ballast" or elsewhere(command):
        return False
    return words[1] in QUICK or {"--help", "--dry-run", "dry_run=true"} & set(words) != set()


def is_benchmark(command: Command) -> bool:
    return plain(command).startswith("python tests/bench/")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder, with the files that the guides show."""
    text = "\n".join(guide.read_text() for guide in GUIDES)
    own = dict(OWN_FILE.findall(text) + OWN_MODULE.findall(text))  # of two, that of the guide
    for name, content in own.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    return tmp_path


def ballast(*words: str) -> tuple[int, str]:
    """Exit code of a command in this process, and what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue()


def test_what_goes_together_and_what_is_refused(desk: Path) -> None:
    table = README.read_text().split("## What goes together")[1].split("\n\n")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    cells = {(row[0], name): row[k] for row in rows[2:] for k, name in enumerate(rows[0]) if k}
    assert rows[0][1:] == [row[0] for row in rows[2:]] == list(FEATURES)
    for first, second in itertools.combinations(FEATURES, 2):
        chosen = [*FEATURES[first], *FEATURES[second]]
        base = [] if "critic" in (first, second) else ["algorithm=grpo"]
        code, printed = ballast("train", "experiment=tiny", *base, *chosen, "dry_run=true")
        said = cells[first, second]
        assert said == cells[second, first], (first, second)
        assert code == (2 if said == "no" else 0), (first, second, said, printed)
        assert said in ("yes", "no", "-")


@pytest.mark.parametrize("command", filter(is_quick, COMMANDS), ids=plain)
def test_a_quick_command_runs_and_prints_what_is_shown(command: Command, desk: Path) -> None:
    code, printed = ballast(*command.words[1:])
    refused = command.shown.startswith("ballast ")
    allowed = {2} if refused else {0, 1} if command.words[1] == "doctor" else {0}
    assert code in allowed, printed
    parts = [re.escape(" ".join(part.split())) for part in command.shown.split("...")]
    assert re.search(r".*".join(parts), " ".join(printed.split())), printed


@pytest.mark.parametrize("command", filter(is_benchmark, COMMANDS), ids=plain)
def test_a_benchmark_knows_its_options(command: Command, monkeypatch, capsys) -> None:
    script, *options = command.words[1:]
    monkeypatch.setattr(sys, "argv", [script, *options, "--help"])
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert [word for word in options if word.startswith("--") and word not in printed] == []


def test_every_test_that_runs_a_command_exists() -> None:
    for path, name in (test.split("::") for test in ELSEWHERE.values()):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_every_other_command_names_the_test_that_runs_it(desk: Path) -> None:
    others = [c for c in COMMANDS if not is_quick(c) and not is_benchmark(c)]
    assert [c for c in others if not elsewhere(c)] == []
    used = {pattern for command in others for pattern in elsewhere(command)}
    assert set(ELSEWHERE) - used == set(), "rows that no guide needs"
    for command in others:  # what a run asks for is at least planned here
        words = command.words
        swept = "--multirun" in words
        if words[:2] in (["ballast", "train"], ["ballast", "submit"]) and not swept:
            overrides = [word for word in words[2:] if re.match(r"[\w.+~/]+=", word)]
            code, printed = ballast("train", *overrides, "dry_run=true")
            assert code == 0, (command, printed)


def test_commands_and_targets_named_in_the_text_exist() -> None:
    parser = next(a for a in build_parser()._actions if a.choices)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    words = [word for guide in GUIDES for word in inline(guide)]
    assert set(re.findall(r"\bballast ([a-z-]+)", "\n".join(words))) <= set(parser.choices)
    assert {m[1] for w in words if (m := re.match(r"make ([a-z-]+)", w))} <= set(targets)


def test_the_data_and_the_reward_of_the_guides_are_taken(desk: Path) -> None:
    _, config = compose(["experiment=mine"], config_dir=str(desk / "my_conf"))
    for path in (config.data.train_path, config.data.eval_path):
        pq.write_table(pa.table({"question": ["2+3="], "answer": ["5"]}), path)
    train, heldout = prompt_sets(config.data)
    assert heldout is not None
    assert (train[0].prompt, train[0].ground_truth, heldout[0].prompt) == ("2+3=", "5", "2+3=")
    score = Function(path=config.reward.scorer["path"])
    result = score(RewardSample(prompt="2+3=", response="5\n", ground_truth="5"))
    assert result == {"reward": 1.0, "exact": 1.0}
