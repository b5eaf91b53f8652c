"""A run whose engine has two tensor-parallel workers, inside a rollout worker of Ray."""

import json
import subprocess
import sys

import pyarrow.parquet as pq


def test_two_steps_with_an_engine_of_two_workers(tmp_path):
    command = [
        *(sys.executable, "-m", "orchestrator.cli", "train", "experiment=tiny"),
        *("rollout.tensor_parallel_size=2", "trainer.total_steps=2", f"output_dir={tmp_path}"),
        *("run_name=wide", "trainer.prompts_per_step=4", "data.eval_limit=4"),
        *("trainer.checkpoint_every=2", "trainer.export=false"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 engine x 2 devices" in done.stdout
    run = tmp_path / "wide"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "time/step_s" in line]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert line["publication/probe_gap_max"] <= 1e-4
        assert line["mismatch/abs_max"] <= 1e-4  # learner and engine on what was sampled
        assert 0 < line["publication/shown_in_use_frac"] < 1  # linear layers are packed on a CPU
    second = pq.read_table(run / "rollouts" / "step_000002.parquet")
    drawn = {v for row in second.column("weight_versions").to_pylist() for v in row if v >= 0}
    assert drawn == {1}  # every token that was sampled; prompts have no version
