"""`ballast train --multirun`: the combinations, their folders, their processes."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.cli.multirun import PlannedRun, RunProcesses, plan_runs
from orchestrator.cli.parser import main
from orchestrator.stop import EXIT_CODE


def test_every_combination_has_a_folder_that_names_its_choices(tmp_path):
    swept = ["experiment=tiny", "algorithm=grpo,dapo", "seed=range(1,3)", f"output_dir={tmp_path}"]
    runs = plan_runs(swept, None)
    assert [run.folder for run in runs] == [
        tmp_path / "tiny" / name
        for name in (
            "algorithm-grpo_seed-1",
            "algorithm-grpo_seed-2",
            "algorithm-dapo_seed-1",
            "algorithm-dapo_seed-2",
        )
    ]
    assert runs[2].overrides == (
        "experiment=tiny",
        f"output_dir={tmp_path}",
        "algorithm=dapo",
        "seed=1",
        "run_name=algorithm-dapo_seed-1",
        f"output_dir='{tmp_path / 'tiny'}'",
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=tiny"], "needs an override with several values"),
        (["algorithm=grpo,nothing"], "nothing"),
        (["experiment=tiny", "rollout.num_engines=1,0"], "rollout.num_engines"),
        (["experiment=tiny", "seed=1,1"], "would be written to seed-1"),
        (["experiment=tiny", "seed=1,("], "--multirun"),
    ],
)
def test_a_combination_that_cannot_run_is_named_before_any_starts(overrides, message, capsys):
    assert main(["train", "--multirun", *overrides]) == 2
    assert message in capsys.readouterr().err


PROGRAM = """
import pathlib, sys, time
folder, seconds, code = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True)
(folder / "began").write_text(str(time.time()))
time.sleep(seconds)
(folder / "ended").write_text(str(time.time()))
sys.exit(code)
"""


def planned(tmp_path, *programs):
    return [
        PlannedRun(
            folder=tmp_path / str(number),
            overrides=(str(tmp_path / str(number)), str(seconds), str(code)),
        )
        for number, (seconds, code) in enumerate(programs)
    ]


def test_one_run_follows_the_other_and_a_failed_one_ends_no_other(tmp_path):
    runs = planned(tmp_path, (0, 1), (0, 0))
    assert RunProcesses([sys.executable, "-c", PROGRAM], 1).run(runs) == [1, 0]
    ended, began = (float((tmp_path / name).read_text()) for name in ("0/ended", "1/began"))
    assert ended <= began


def test_two_go_side_by_side_with_a_log_each(tmp_path):
    runs = planned(tmp_path, (1.0, 0), (1.0, 0))
    assert RunProcesses([sys.executable, "-c", PROGRAM], 2).run(runs) == [0, 0]
    ended, began = (float((tmp_path / name).read_text()) for name in ("0/ended", "1/began"))
    assert began < ended
    assert (tmp_path / "1.driver.log").exists()


def test_a_stop_is_passed_on_and_begins_no_other_run(tmp_path):
    runs = planned(tmp_path, (60, 0), (0, 0))

    def stop():
        while not (Path(runs[0].folder) / "began").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    codes = RunProcesses([sys.executable, "-c", PROGRAM], 1).run(runs)
    thread.join()
    assert codes == [128 + signal.SIGTERM, EXIT_CODE]
    assert not (tmp_path / "1").exists()
