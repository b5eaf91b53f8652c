"""The Kubernetes manifests: rendered as kustomize would, and read by what will read them.

How far this is: core objects and pod templates are validated against Kubernetes' own schemas
(strict: an unknown field fails), the fields of RayCluster and RayJob against the names of KubeRay
1.5, and the cluster is handed to the code by which Ray's autoscaler reads it, so that the run of
the RayJob is compared with the nodes that Ray would see. No API server and no operator is here.
"""

import copy
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hydra.utils import instantiate
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from conf.compose import compose
from orchestrator.cli.jobs.submission import STOP_WAIT_S
from orchestrator.cli.parser import build_parser
from orchestrator.planning import plan
from orchestrator.planning.placement import bundles
from orchestrator.planning.roles import roles_of

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
OVERLAYS = ("cpu", "gpu")
VERSION = "1.31"

# Names of KubeRay 1.5's API (ray.io/v1) that may stand in a manifest.
FIELDS = {
    "RayCluster": "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec "
    "workerGroupSpecs headServiceAnnotations suspend managedBy gcsFaultToleranceOptions",
    "authOptions": "mode",
    "autoscalerOptions": "resources image imagePullPolicy env envFrom volumeMounts securityContext "
    "idleTimeoutSeconds upscalingMode version",
    "headGroupSpec": "serviceType headService enableIngress rayStartParams template",
    "workerGroupSpecs": "groupName replicas minReplicas maxReplicas numOfHosts idleTimeoutSeconds "
    "rayStartParams template scaleStrategy suspend",
    "RayJob": "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata "
    "clusterSelector submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId "
    "submissionMode entrypointResources entrypointNumCpus entrypointNumGpus "
    "ttlSecondsAfterFinished shutdownAfterJobFinishes suspend",
}


def render(folder: Path) -> list[dict[str, Any]]:
    """Resources of a kustomization with its JSON patches applied."""
    record = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(record) <= {"apiVersion", "kind", "resources", "patches"}
    found: list[dict[str, Any]] = []
    for name in record["resources"]:
        path = folder / name
        found += render(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    found = [copy.deepcopy(item) for item in found]
    for entry in record.get("patches", []):
        patch = entry.get("patch") or (folder / entry["path"]).read_text()
        target = entry["target"]
        (chosen,) = [
            item
            for item in found
            if (item["kind"], item["metadata"]["name"]) == (target["kind"], target["name"])
        ]
        for operation in yaml.safe_load(patch):
            apply(chosen, operation)
    return [unaliased(item) for item in found]


def unaliased(tree: Any) -> Any:
    """A copy in which no two places are one object, as after writing the YAML out."""
    if isinstance(tree, dict):
        return {key: unaliased(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unaliased(value) for value in tree]
    return tree


def apply(tree: Any, operation: dict[str, Any]) -> None:
    """One operation of RFC 6902; a path that is not there is an error."""
    *parents, last = operation["path"].strip("/").split("/")
    for name in parents:
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    if operation["op"] == "replace":
        assert last in tree, operation["path"]
    else:
        assert operation["op"] == "add", operation["op"]
    tree[last] = operation["value"]


@pytest.fixture(params=OVERLAYS)
def overlay(request):
    return request.param


def kinds(overlay):
    found: dict[str, list[dict[str, Any]]] = {}
    for item in render(KUBERAY / overlay):
        found.setdefault(item["kind"], []).append(item)
    return found


def groups(cluster):
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def pod(template):
    return {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "x"}}


def test_core_objects_and_pods_follow_kubernetes_schemas(overlay):
    found = kinds(overlay)
    for claim in found["PersistentVolumeClaim"]:
        kubernetes_validate.validate(claim, VERSION, strict=True)
    (cluster,) = found["RayCluster"]
    for group in groups(cluster):
        kubernetes_validate.validate(pod(group["template"]), VERSION, strict=True)


def test_the_schemas_refuse_what_is_not_theirs(overlay):
    (cluster,) = kinds(overlay)["RayCluster"]
    broken = pod(groups(cluster)[0]["template"])
    broken["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_rays_own_objects_have_fields_that_kuberay_knows(overlay):
    found = kinds(overlay)
    (cluster,), (job,) = found["RayCluster"], found["RayJob"]
    for item, name in ((cluster, "RayCluster"), (job, "RayJob")):
        assert item["apiVersion"] == "ray.io/v1"
        assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
        assert set(item["spec"]) <= set(FIELDS[name].split())
    for name in ("authOptions", "autoscalerOptions", "headGroupSpec"):
        assert set(cluster["spec"][name]) <= set(FIELDS[name].split())
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert set(group) <= set(FIELDS["workerGroupSpecs"].split())
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_job_runs_on_the_cluster_of_the_same_folder(overlay):
    found = kinds(overlay)
    (cluster,), (job,) = found["RayCluster"], found["RayJob"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    claims = {claim["metadata"]["name"] for claim in found["PersistentVolumeClaim"]}
    for group in groups(cluster):
        spec = group["template"]["spec"]
        used = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert used == claims
        mounted = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def nodes(cluster):
    """What Ray's autoscaler makes of the manifest: group -> most pods, resources of each."""
    named = {**cluster, "metadata": {**cluster["metadata"], "namespace": "default"}}
    types = _derive_autoscaling_config_from_ray_cr(named)["available_node_types"]
    return {name: (kind["max_workers"], kind["resources"]) for name, kind in types.items()}


def run_of(job):
    """The entrypoint's overrides, parsed by our own command line."""
    shell, program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (shell, program) == ("exec", "ballast")  # signals and the exit code are the run's own
    options = build_parser().parse_args(arguments)
    assert options.command == "train"
    return options.overrides


def fits(config, algorithm, cluster):
    """Whether the pods that may come hold the run's GPUs and CPUs."""
    have = nodes(cluster)
    most = {
        kind: sum(count * resources.get(kind, 0) for count, resources in have.values())
        for kind in ("CPU", "GPU")
    }
    wanted = bundles(roles_of(config, algorithm))
    return all(sum(bundle[kind] for bundle in wanted) <= most[kind] for kind in ("CPU", "GPU"))


def test_the_pods_hold_the_run(overlay):
    found = kinds(overlay)
    (cluster,), (job,) = found["RayCluster"], found["RayJob"]
    raw, config = compose(run_of(job))
    algorithm = instantiate(raw.algorithm, _convert_="all")
    plan.check(config, algorithm)
    assert fits(config, algorithm, cluster)
    assert nodes(cluster)["headgroup"][1]["CPU"] == 0  # the driver alone
    assert nodes(cluster)["headgroup"][1].get("GPU", 0) == 0
    assert config.cluster.address == "auto"
    assert config.cluster.autoscaled
    assert config.resume == "auto"
    assert config.output_dir == "/runs"


def pre_stop(group):
    return group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]


def test_a_deleted_job_has_an_hour_to_save(overlay):
    (job,) = kinds(overlay)["RayJob"]
    sent = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert sent == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
    # KubeRay's own validation: a job that selects its cluster is not retried, or not run at all.
    assert not {"backoffLimit", "suspend"} & set(job["spec"])


def test_a_deleted_head_asks_every_run_to_stop(overlay):
    (cluster,) = kinds(overlay)["RayCluster"]
    head = cluster["spec"]["headGroupSpec"]
    program, *arguments = pre_stop(head)
    options = build_parser().parse_args(arguments)
    assert (program, options.command, options.all) == ("ballast", "stop", True)
    assert options.timeout == STOP_WAIT_S
    (port,) = [
        port["containerPort"]
        for port in head["template"]["spec"]["containers"][0]["ports"]
        if port["name"] == "dashboard"
    ]
    assert options.address == f"http://localhost:{port}"


def test_no_pod_is_killed_before_its_run_has_saved(overlay):
    (cluster,) = kinds(overlay)["RayCluster"]
    for group in groups(cluster):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] == STOP_WAIT_S + 60


@pytest.mark.parametrize(("name", "asks"), [("learner", True), ("rollout", False)])
def test_a_deleted_pod_waits_until_ray_on_it_has_ended(overlay, tmp_path, name, asks):
    (cluster,) = kinds(overlay)["RayCluster"]
    (group,) = [one for one in cluster["spec"]["workerGroupSpecs"] if one["groupName"] == name]
    calls = tmp_path / "calls"
    record = '#!/bin/sh\necho "$(basename "$0") $*" >>"$CALLS"\n'
    fakes = {
        "ballast": "exit 2\n",  # the head is gone already: not reached
        "sleep": "",
        "wget": '[ "$(grep -c wget "$CALLS")" -ge 3 ] || echo "success"\n',
    }
    for program, text in fakes.items():
        (tmp_path / program).write_text(record + text)
        (tmp_path / program).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls), "FQ_RAY_IP": "head.default"}
    subprocess.run(pre_stop(group), env=env, timeout=30, check=False)
    seen = calls.read_text().splitlines()
    asked = "ballast stop --all --address http://head.default:8265 --timeout 3600"
    assert (seen[0] == asked) == asks
    assert [call.split()[0] for call in seen[asks:]] == ["wget", "sleep", "wget", "sleep", "wget"]


def test_a_manifest_that_asks_for_more_is_found_out():
    found = kinds("gpu")
    (cluster,), (job,) = found["RayCluster"], found["RayJob"]
    raw, config = compose([*run_of(job), "cluster=nodes_8"])
    assert not fits(config, instantiate(raw.algorithm, _convert_="all"), cluster)


def test_gpus_of_a_node_are_those_of_the_plan():
    (cluster,) = kinds("gpu")["RayCluster"]
    _, config = compose(["cluster=nodes_2"])
    have = nodes(cluster)
    assert have["learner"][1]["GPU"] == have["rollout"][1]["GPU"] == config.cluster.gpus_per_node
    most = sum(have[name][0] for name in ("learner", "rollout"))
    assert most >= config.cluster.num_nodes
    on_cpu = nodes(kinds("cpu")["RayCluster"][0])
    assert sum(resources.get("GPU", 0) for _, resources in on_cpu.values()) == 0


def test_pods_are_the_images_unprivileged_user(overlay):
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    (user, group), *others = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    assert set(others) == {(user, group)}
    (cluster,) = kinds(overlay)["RayCluster"]
    for item in groups(cluster):
        spec = item["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert str(spec["securityContext"]["runAsUser"]) == user
        container = spec["containers"][0]
        assert container["image"] == f"ballast:{overlay}"
        assert f" AS {container['image'].split(':')[1]}\n" in dockerfile
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        probe = container["livenessProbe"]["exec"]["command"]
        assert probe[:2] == ["sh", "-c"]
        assert "wget" in probe[2]
        assert len(re.findall(r"\bwget\b", dockerfile)) == 2  # installed in both images


def test_versions_are_the_pinned_ones(overlay):
    (cluster,) = kinds(overlay)["RayCluster"]
    pins = (ROOT / "docker" / f"requirements-{overlay}.txt").read_text().splitlines()
    assert f"ray=={cluster['spec']['rayVersion']}" in pins


def test_no_secret_stands_in_a_manifest():
    """The token is KubeRay's to make; nothing else that is secret has a value here."""
    for path in KUBERAY.rglob("*.yaml"):
        text = path.read_text()
        assert "kind: Secret" not in text
        assert not re.search(r"(TOKEN|SECRET|PASSWORD|API_KEY)\w*\s*[:,]", text), path
    (cluster,) = kinds("cpu")["RayCluster"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}


def test_prometheus_finds_rays_metrics(overlay):
    (cluster,) = kinds(overlay)["RayCluster"]
    for item in groups(cluster):
        annotations = item["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/scrape"] == "true"
        ports = {
            port["name"]: str(port["containerPort"])
            for port in item["template"]["spec"]["containers"][0]["ports"]
        }
        assert annotations["prometheus.io/port"] == ports["metrics"]
