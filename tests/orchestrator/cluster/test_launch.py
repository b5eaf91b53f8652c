"""A run begins with the engines that start, if they are enough."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray

from conf.compose import ConfigError, compose
from conf.schema import ClusterConfig
from orchestrator.cluster.cluster import Cluster, start_ray
from orchestrator.planning.roles import Place, PlannedRole
from workers.worker_group import NoAnswerError, WorkerError

BROKEN = WorkerError("rollout.start, rank 2: RuntimeError: CUDA error: uncorrectable ECC error")
SLOW = NoAnswerError("rollout.start: no answer from rank [3] in 600 s")


def failed_starts(outcomes, *overrides):
    _, config = compose(["experiment=tiny", "rollout.num_engines=4", *overrides])
    cluster = Cluster(config, None, run_id="run", model_path="model")
    return cluster._failed_starts(SimpleNamespace(outcomes=lambda: outcomes))


def test_engines_that_do_not_start_are_left_for_later():
    assert failed_starts({0: "a", 1: "a", 2: BROKEN, 3: SLOW}) == {2: BROKEN, 3: SLOW}
    assert failed_starts({0: "a", 1: "a", 2: "b", 3: "b"}) == {}
    assert failed_starts({}) == {}  # a replay has none


def test_too_few_that_start_are_the_end_with_the_first_failure():
    with pytest.raises(WorkerError, match="rank 2: RuntimeError: CUDA error"):
        failed_starts({0: "a", 1: "a", 2: BROKEN, 3: SLOW}, "rollout.min_engines=3")
    with pytest.raises(WorkerError, match="ECC"):
        failed_starts({0: BROKEN, 1: SLOW, 2: SLOW, 3: SLOW})


def test_a_run_cannot_need_more_engines_than_it_begins_with():
    with pytest.raises(ConfigError, match="rollout.min_engines=5: must be between 1 and"):
        compose(["experiment=tiny", "rollout.num_engines=4", "rollout.min_engines=5"])


def rank_variables(num_gpus):
    _, config = compose(["experiment=tiny"])
    role = PlannedRole(name="learner", place=Place.OWN, num_gpus=num_gpus, threads=3)
    return Cluster(config, None, run_id="run", model_path="model")._rank_env(role)


def test_a_rank_on_cpus_is_started_with_an_allocator_that_keeps_large_blocks_whole(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert "jemalloc" in rank_variables(0.0)["LD_PRELOAD"]
    assert rank_variables(0.0)["OMP_NUM_THREADS"] == "3"
    assert "LD_PRELOAD" not in rank_variables(1.0)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert "LD_PRELOAD" not in rank_variables(0.0)  # the user's own is inherited


PRIORITY = """
import os
import ray
from conf.schema import ClusterConfig
from orchestrator.cluster.cluster import start_ray
start_ray(ClusterConfig(name="own", num_cpus=1, object_store_gib=0.1))
print("worker", ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))
ray.shutdown()
"""


def test_workers_of_an_own_ray_have_the_priority_of_the_driver():
    done = subprocess.run([sys.executable, "-c", PRIORITY], capture_output=True, text=True)
    assert "worker 0" in done.stdout, done.stderr


def test_an_own_ray_that_misses_its_time_limit_is_started_once_more(monkeypatch):
    """Ray raises a bare `Exception` where its own processes are slow."""
    started = []

    def init(**settings):
        started.append(settings["num_cpus"])
        if len(started) == 1:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: started.append("ended"))
    monkeypatch.setattr(os, "environ", {})
    start_ray(ClusterConfig(name="own", num_cpus=3))
    assert started == [3, "ended", 3]
