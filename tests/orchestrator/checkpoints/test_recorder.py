"""A step is recorded although the process that writes it hangs."""

import contextlib
import os
import signal
import time

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from orchestrator.checkpoints.recorder import Recorder
from workers.data.plans import Slice
from workers.data.trajectory import Trajectory, to_record_batch
from workers.worker_group import NoAnswerError


@pytest.fixture(scope="module")
def own_ray():
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def stop_the_writer():
    """SIGSTOP to the one process in which tasks run, once it is there."""
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        for process in psutil.Process(os.getpid()).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::IDLE" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGSTOP)
                    return
        time.sleep(0.1)
    raise AssertionError("no process of a task")


def batch(length):
    return to_record_batch(
        [
            Trajectory(
                run_id="run",
                begun_version=0,
                prompt_uid="p:0",
                group_id="0-0",
                rollout_id="0-0/0",
                dataset="copy",
                tokens=[5] * length,
                loss_mask=[True] * length,
                rollout_logprobs=[-0.5] * length,
                weight_versions=[0] * length,
                finish_reason="stop",
                outcome="scored",
                reward=0.25,
            )
        ]
    )


def test_another_process_writes_what_one_that_hangs_did_not(own_ray, tmp_path):
    node = ray.get_runtime_context().get_node_id()
    recorder = Recorder(tmp_path, timeout_s=20.0, node=node)
    for step in (1, 2):
        if step == 2:
            stop_the_writer()
        recorder.write(step, [Slice(batch=0, start=0, length=1)], [ray.put(batch(step))], [])
        recorder.flush()
    table = pq.read_table(tmp_path / "step_000002.parquet")
    assert table["tokens"].to_pylist() == [[5, 5]]


def test_samples_that_failed_have_a_file_of_their_own(own_ray, tmp_path):
    recorder = Recorder(tmp_path, timeout_s=20.0, node=ray.get_runtime_context().get_node_id())
    batches = [ray.put(batch(length)) for length in (1, 2)]
    recorder.write(1, [Slice(batch=0, start=0, length=1)], batches, [])
    recorder.write_failed(1, [])
    recorder.flush()
    assert not (tmp_path / "failed").exists()
    recorder.write(2, [Slice(batch=0, start=0, length=1)], batches, [])
    recorder.write_failed(2, [(batches[1], 0), (batches[0], 0), (batches[1], 0)])
    recorder.flush()
    table = pq.read_table(tmp_path / "failed" / "step_000002.parquet")
    assert table["tokens"].to_pylist() == [[5, 5], [5], [5, 5]]
    assert pq.read_table(tmp_path / "step_000002.parquet")["tokens"].to_pylist() == [[5]]


def test_what_no_process_can_write_is_an_error_with_its_limit(own_ray, tmp_path):
    node = ray.get_runtime_context().get_node_id()
    recorder = Recorder(tmp_path, timeout_s=0.0, node=node)
    recorder.write(1, [Slice(batch=0, start=0, length=1)], [ray.put(batch(1))], [])
    with pytest.raises(NoAnswerError, match="recorder.write: no answer"):
        recorder.flush()
