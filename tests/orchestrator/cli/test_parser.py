"""Manners of the command line: help, version, what is required, exit codes."""

import gc
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.cli.parser import build_parser, main

ROOT = Path(__file__).parents[3]


def test_alone_it_prints_its_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == build_parser().format_help()


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ballast {metadata.version('ballast-rl')}\n"


def test_the_help_explains_the_exit_codes():
    codes = build_parser().format_help().split("exit codes:\n")[1]
    assert [line.split()[0] for line in codes.splitlines()[:5]] == ["0", "1", "2", "130", "143"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "the following arguments are required: path\n"),
        (["logs"], "the following arguments are required: job\n"),
        (["trian"], "invalid choice: 'trian' (choose from 'train', 'eval', "),
        (["jobs", "seed=1"], "ballast jobs takes no 'seed=1'"),
        (["train", "--fast"], "unknown option --fast; overrides are written key=value"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_wrong_words_end_with_2_and_say_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_garbage_collector_is_back_after_a_plan_and_after_a_refusal(capsys, tmp_path):
    for override in ("seed=1", "learner.zero_stage=4"):
        arguments = ["train", "experiment=tiny", "dry_run=true", override]
        main([*arguments, f"output_dir={tmp_path}"])
        assert gc.isenabled()
        gc.unfreeze()
    assert "learner.zero_stage=4: must be" in capsys.readouterr().err


def test_overrides_may_stand_on_both_sides_of_an_option(capsys, tmp_path):
    arguments = ["train", "experiment=tiny", "--dry-run", "run_name=mine", "seed=3"]
    assert main([*arguments, f"output_dir={tmp_path}"]) == 0
    assert "run  mine, 200 steps, seed 3" in capsys.readouterr().out


def test_a_dry_run_as_a_module_loads_torch_and_nothing_heavier():
    program = (
        "import sys; from orchestrator.cli.parser import main; code = main(sys.argv[1:]); "
        "print(' '.join({name.split('.')[0] for name in sys.modules})); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "experiment=tiny", "dry_run=true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "torch" in loaded
    assert not loaded & {"ray", "vllm", "deepspeed", "transformers", "pyarrow", "tensorboard"}
