"""The metrics of a run among those of Ray, as Prometheus reads them."""

import subprocess
import sys

import pytest

from orchestrator.telemetry.gauges import gauge_name

RUN = """
import socket, time, urllib.request
import ray
from conf.schema import ClusterConfig
from orchestrator.cluster.cluster import start_ray
from orchestrator.telemetry.gauges import Gauges

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
start_ray(ClusterConfig(name="own", num_cpus=1, object_store_gib=0.1, metrics_port=port))
gauges = Gauges("quickstart")
url = f"http://{ray.util.get_node_ip_address()}:{port}/metrics"
deadline = time.monotonic() + 90
seen = []
while time.monotonic() < deadline and len(seen) < 2:
    gauges.log(7, {"reward/mean": 0.75})
    time.sleep(1)
    try:
        text = urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        continue
    seen = [line for line in text.splitlines() if line.startswith("ray_ballast_")]
for line in sorted(seen):
    print(line)
ray.shutdown()
"""


def test_the_name_of_a_gauge_holds_nothing_that_prometheus_refuses():
    assert gauge_name("reward/part/exact match") == "ballast_reward_part_exact_match"
    assert gauge_name("eval/pass@4") == "ballast_eval_pass_4"


@pytest.mark.slow
def test_prometheus_finds_the_last_step_on_the_port_of_the_node():
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=200)
    reward, step = done.stdout.splitlines()[-2:]
    assert reward.startswith("ray_ballast_reward_mean{"), done.stderr
    assert 'run="quickstart"' in reward
    assert [float(line.rpartition(" ")[2]) for line in (reward, step)] == [0.75, 7.0]
