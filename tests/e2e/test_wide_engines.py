"""A run whose engine has two tensor-parallel workers, inside a rollout worker of Ray."""

import pyarrow.parquet as pq

from tests.e2e.command import finish_ballast, step_metrics


def test_two_steps_with_an_engine_of_two_workers(tmp_path):
    output = finish_ballast(
        *("train", "experiment=tiny"),
        *("rollout.tensor_parallel_size=2", "trainer.total_steps=2", f"output_dir={tmp_path}"),
        *("run_name=wide", "trainer.prompts_per_step=4", "data.eval_limit=4"),
        *("trainer.checkpoint_every=2", "trainer.export=false"),
        cwd=tmp_path,
        timeout_s=500,
    )
    assert "1 engine x 2 devices" in output
    run = tmp_path / "wide"
    steps = step_metrics(run)
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert line["publication/probe_gap_max"] <= 1e-4
        assert line["mismatch/abs_max"] <= 1e-4  # learner and engine on what was sampled
        assert 0 < line["publication/shown_in_use_frac"] < 1  # linear layers are packed on a CPU
    second = pq.read_table(run / "rollouts" / "step_000002.parquet")
    drawn = {v for row in second.column("weight_versions").to_pylist() for v in row if v >= 0}
    assert drawn == {1}  # every token that was sampled; prompts have no version
