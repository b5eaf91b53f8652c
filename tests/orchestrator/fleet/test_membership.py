"""Engines join, leave, die and lose their node, on a real Ray of several nodes.

The engines themselves are small: actors that answer at once, and that refuse a prompt before they
were given weights.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ObjectLostError
from ray.util.placement_group import placement_group, remove_placement_group

from conf.compose import compose
from orchestrator.cluster.batch_keeper import BatchKeeper
from orchestrator.fleet import launcher, membership
from orchestrator.fleet.health import Health
from orchestrator.fleet.launcher import NODE_LABEL, EngineLauncher
from orchestrator.fleet.membership import Membership
from orchestrator.fleet.pool import EnginesLostError, RolloutPool
from orchestrator.fleet.recovery import EngineRecovery
from orchestrator.fleet.scaling import ScaleRequests
from orchestrator.planning.placement import FreePlaces
from workers.calls import bind
from workers.data.requests import Collected, EngineLoad, GroupRequest, Sampling
from workers.data.trajectory import TrajectoryMeta
from workers.worker_group import Placement, WorkerGroup

LIMIT_S = 90


class SmallEngine:
    """Finishes a group `seconds` after it was submitted; cannot be started where it is broken."""

    def __init__(self, seconds, broken):
        self._seconds, self._broken, self._armed = seconds, broken, False
        self._finished = asyncio.Queue()

    async def start(self, version, rewards):
        if self._broken:
            raise RuntimeError("CUDA error: uncorrectable ECC error")

    async def give_weights(self):
        self._armed = True

    async def submit(self, requests, together):
        assert self._armed, "a prompt came before the weights"
        for request in requests:
            asyncio.get_running_loop().create_task(self._sample(request))

    async def _sample(self, request):
        await asyncio.sleep(self._seconds)
        self._finished.put_nowait(request)

    async def collect(self, wait_s):
        try:
            request = await asyncio.wait_for(self._finished.get(), wait_s)
        except TimeoutError:
            return Collected(metas=[], load=EngineLoad()), None
        # Beyond 100 kB an answer stays on the node of the actor that gave it.
        return Collected(metas=[meta(request.group_id)], load=EngineLoad()), bytes(200_000)

    async def node(self):
        return ray.get_runtime_context().get_node_id()

    async def shutdown(self):
        pass


def meta(group_id):
    return TrajectoryMeta(
        prompt_uid=group_id,
        group_id=group_id,
        rollout_id=group_id,
        num_tokens=8,
        num_trained=4,
        num_sampled=4,
        finish_reason="stop",
        outcome="scored",
        reward=1.0,
        reward_parts={},
        min_version=0,
        max_version=0,
        generate_s=0.0,
        reward_s=0.0,
    )


def request(name):
    return GroupRequest(
        group_id=name,
        prompt_uid=name,
        begun_version=0,
        dataset="none",
        prompt="?",
        ground_truth=None,
        num_samples=1,
        seed=0,
        sampling=Sampling(),
    )


class SmallLauncher(EngineLauncher):
    """Real places, small engines."""

    seconds = 0.05
    broken = ()

    def _launch(self, numbers, place, bundles):
        return WorkerGroup.launch(
            "rollout",
            SmallEngine,
            ranks=numbers,
            arguments=lambda number: {"seconds": self.seconds, "broken": number in self.broken},
            env=lambda number: {},
            restarts=True,
            placement=Placement(group=place, bundles=bundles, num_cpus=1, num_gpus=0),
            max_concurrency=100,
        )


class Job:
    """The engines of a job without its learner."""

    def __init__(self, folder, *overrides, node=None, keep=None):
        common = ["rollout.transport=gloo", "cluster.timeouts.place_s=2"]
        _, self.config = compose(["experiment=tiny", *common, *overrides])
        count = self.config.rollout.num_engines
        self.place = placement_group(
            [{"CPU": 1}] * count,
            strategy="SPREAD",
            bundle_label_selector=node and [{NODE_LABEL: node}] * count,
        )
        assert self.place.wait(LIMIT_S)
        self.launcher = SmallLauncher(
            self.config,
            run_id="job",
            model_path="none",
            environments={},
            early_stop=None,
            env={},
            placement=self.place,
            nodes=[ray.get_runtime_context().get_node_id()],
        )
        self.workers = self.launcher.launch_first()
        self.workers.call(bind(SmallEngine.give_weights), timeout_s=LIMIT_S)
        self.pool = RolloutPool(self.workers, silence_s=60, together=False, keep=keep)
        self.folder, self.news, self.sent, self.done = folder, [], 0, Counter()
        self.requests = ScaleRequests(folder).__enter__()
        recovery = EngineRecovery(
            self.pool,
            self.workers,
            WorkerGroup("reward", []),
            find_placed=self.launcher.find_placed,
            republish=self.republish,
            start_s=LIMIT_S,
            place_s=self.config.cluster.timeouts.place_s,
            print_line=self.news.append,
        )
        self.members = Membership(
            *(self.pool, self.workers, self.launcher, recovery, self.requests, self.config),
            print_line=self.news.append,
        )
        self.pool.maintain = self.members.maintain

    def republish(self):
        stale = [n for n, own in self.pool.engines.items() if own.health is Health.STALE]
        self.workers.only(stale).call(bind(SmallEngine.give_weights), timeout_s=LIMIT_S)
        for number in stale:
            self.pool.admit(number)

    def sample(self, count=1):
        names = [f"group-{self.sent + k}" for k in range(count)]
        self.sent += count
        self.pool.submit([request(name) for name in names])

    def until(self, wanted):
        """Sample, four groups at a time, until `wanted` holds; every group is finished once."""
        deadline = time.monotonic() + LIMIT_S
        while not wanted() or self.pool.num_in_flight:
            assert time.monotonic() < deadline, (self.news, self.pool.engines)
            if not self.pool.num_in_flight:
                self.sample(4)
            self.done.update(group.group_id for group in self.pool.poll())
        assert set(self.done.values()) <= {1}
        assert len(self.done) == self.sent

    def ask(self, engines):
        path = self.folder / "scale" / f"{time.time_ns()}.request.json"
        path.write_text(json.dumps({"id": path.name.split(".")[0], "engines": engines}))
        answer = path.with_name(path.name.replace("request", "answer"))

        def answered():
            found = json.loads(answer.read_text()) if answer.exists() else {"status": "none"}
            return found if found["status"] in ("done", "refused") else None

        self.until(lambda: answered() is not None)
        return answered()

    def nodes(self):
        return self.workers.call(bind(SmallEngine.node), timeout_s=LIMIT_S)

    def close(self):
        self.workers.stop()
        for number in list(self.launcher._own):
            remove_placement_group(self.launcher._own[number])
        self.members._withdraw()
        remove_placement_group(self.place)


@pytest.fixture(scope="module")
def cluster():
    # Its nodes read the token that ray.init would otherwise make later.
    ask = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
    subprocess.run(ask, check=True, capture_output=True)
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False}
    )
    try:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def start(cluster, tmp_path):
    jobs = []

    def begin(*overrides, node=None, keep=None):
        jobs.append(Job(tmp_path, *overrides, node=node, keep=keep))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.close()
    free(ray.cluster_resources()["CPU"])


def free(cpus):
    """Wait until so many are: what Ray says of its nodes lags behind."""
    deadline = time.monotonic() + LIMIT_S
    while ray.available_resources().get("CPU", 0) != cpus:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)


def test_engines_join_and_leave_while_groups_are_sampled(start):
    job = start("rollout.num_engines=1")
    answer = job.ask(3)
    assert answer == {"status": "done", "message": "3 engines, 3 of them sampling"}
    assert job.workers.ranks == [0, 1, 2]
    free(0)
    answer = job.ask(1)
    assert answer["status"] == "done"
    assert list(job.pool.engines) == job.workers.ranks == [0]  # the youngest leave
    free(2)  # their places went back
    assert job.pool.metrics()["rollout/groups_resampled"] == 0  # they finished what they held
    assert job.pool.metrics()["rollout/engines_lost"] == 0
    assert job.ask(2)["status"] == "done"
    assert job.workers.ranks == [0, 3]  # a number is given once


def test_more_engines_than_the_cluster_can_hold_are_refused_with_the_sum(start):
    job = start("rollout.num_engines=1")
    answer = job.ask(50)
    assert answer["status"] == "refused"
    assert (
        "needs 49 x {CPU: 1}, the cluster has room for 2: free are {CPU: 2} on "
        in (answer["message"])
    )
    assert list(job.pool.engines) == [0]
    free(2)


def test_a_place_that_is_never_given_is_waited_for_no_longer_than_told(start):
    """As if another job had taken the room between the sum and the request to Ray."""
    job = start("rollout.num_engines=1", "cluster.autoscaled=true", "cluster.timeouts.start_s=2")
    answer = job.ask(6)
    assert answer["status"] == "refused"
    assert "needs 5 x {CPU: 1}, the cluster has room for" in answer["message"]
    assert list(job.pool.engines) == [0]


def test_an_engine_that_cannot_start_is_sent_away_and_the_others_go_on(start):
    job = start("rollout.num_engines=1")
    launch = SmallLauncher._launch

    def broken(self, numbers, place, bundles):
        group = launch(self, numbers, place, bundles)
        for handle in group.handles:
            ray.kill(handle)
        return group

    job.launcher._launch = broken.__get__(job.launcher)
    answer = job.ask(2)
    assert answer["status"] == "refused"
    assert "rollout engine 1 could not join" in answer["message"]
    assert list(job.pool.engines) == [0]


def test_a_node_that_joins_gets_an_engine_and_one_that_is_gone_takes_it_along(cluster, start):
    job = start("rollout.num_engines=3", "rollout.max_engines=4")
    job.until(lambda: job.done.total() > 8)
    assert list(job.pool.engines) == [0, 1, 2]  # there is no room
    node = cluster.add_node(num_cpus=1)
    job.until(lambda: len(job.pool.sampling()) == 4)
    assert job.nodes()[-1] == node.node_id
    job.sample(4)
    cluster.remove_node(node)
    job.until(lambda: any("has no place on the cluster any more; 3 go on" in n for n in job.news))
    assert job.pool.sampling() == [0, 1, 2]
    assert job.pool.metrics()["rollout/engines_lost"] == 1
    node = cluster.add_node(num_cpus=1)
    job.until(lambda: len(job.pool.sampling()) == 4)  # it is back, with weights
    assert job.nodes()[-1] == node.node_id
    job.until(lambda: not job.pool.num_in_flight)
    cluster.remove_node(node)


def test_ray_is_asked_once_for_all_places(cluster, start, monkeypatch):
    job = start("rollout.num_engines=2")
    asked = []
    table = launcher.placement_group_table
    monkeypatch.setattr(launcher, "placement_group_table", lambda *a: asked.append(a) or table(*a))
    places = [job.launcher.request_place() for _ in range(5)]  # there is room for one
    try:
        deadline = time.monotonic() + LIMIT_S
        while len(found := job.launcher.find_reserved(places)) < 1:
            assert time.monotonic() < deadline
        assert len(found) == 1
        before = len(asked)
        assert job.launcher.find_placed() == {0, 1}
        assert asked[before:] == [()]
        assert job.launcher.find_reserved([]) == []
        assert len(asked) == before + 1
    finally:
        for place in places:
            job.launcher.release_place(place)


def test_a_run_whose_last_engine_has_no_place_ends_with_that_word(cluster, start):
    node = cluster.add_node(num_cpus=1)
    job = start("rollout.num_engines=1", node=node.node_id)
    job.until(lambda: job.done.total() > 4)
    cluster.remove_node(node)
    with pytest.raises(EnginesLostError, match=r"no rollout engine is left: none of \[0\] had a"):
        job.until(lambda: False)


@pytest.mark.parametrize("kept", [True, False])
def test_finished_groups_outlive_the_node_of_their_engine(cluster, start, kept):
    """Without a copy the step that trains them would find nothing: the test can fail."""
    node = cluster.add_node(num_cpus=1)
    keep = BatchKeeper(ray.get_runtime_context().get_node_id()).keep if kept else None
    job = start("rollout.num_engines=1", node=node.node_id, keep=keep)
    job.sample(3)
    finished = []
    while len(finished) < 3:
        finished += job.pool.poll()
    cluster.remove_node(node)
    batches = [group.batch for group in finished]
    if kept:
        assert [len(batch) for batch in ray.get(batches)] == [200_000] * 3
    else:
        with pytest.raises(ObjectLostError):
            ray.get(batches)


@pytest.fixture
def broken(monkeypatch):
    """Engine 1 samples until it dies, and can't be started any more; and is tried once."""
    monkeypatch.setattr(SmallLauncher, "broken", (1,))
    monkeypatch.setattr(membership, "MAX_DEATHS", 1)


REPORT = "rollout engine 1 died 2 times without finishing a group, the last time because: .* ECC"


def test_an_engine_that_cannot_be_brought_back_is_given_up_and_the_others_go_on(start, broken):
    job = start("rollout.num_engines=3")
    job.until(lambda: job.done.total() > 4)
    job.workers.kill(1)
    job.until(lambda: list(job.pool.engines) == [0, 2])
    assert re.search(f"{REPORT}.*; going on with 2 engines", job.news[-1])
    assert job.pool.sampling() == job.workers.ranks == [0, 2]
    job.until(lambda: not job.members._endings)  # no other place is asked for


def test_a_run_ends_where_fewer_engines_would_be_left_than_it_needs(start, broken):
    job = start("rollout.num_engines=3", "rollout.min_engines=3")
    job.workers.kill(1)
    with pytest.raises(EnginesLostError, match=f"{REPORT}.* 2 engines would .*min_engines=3"):
        job.until(lambda: False)


def test_room_is_counted_node_by_node():
    free = {"a": {"CPU": 3.0, "GPU": 1.0}, "b": {"CPU": 1.0, "GPU": 4.0}, "c": {"CPU": 9.0}}
    places = FreePlaces.of({"CPU": 1.0, "GPU": 2.0}, free)
    assert places.count == 1  # only b has two GPUs, and one CPU
    assert places.describe_shortage(2) == (
        "needs 2 x {CPU: 1, GPU: 2}, the cluster has room for 1: free are {CPU: 3, GPU: 1} on a, "
        "{CPU: 1, GPU: 4} on b, {CPU: 9, GPU: 0} on c"
    )
