"""The doctor finds what is wrong, says what to do, and passes what is right: faults made real."""

import json
import resource
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.cli.parser import main
from orchestrator.planning.doctor import folders, inputs, machine, network
from orchestrator.planning.doctor.findings import Level, faults, table
from orchestrator.planning.roles import roles_of
from workers.models.tiny import build_tiny


@pytest.fixture
def folder(tmp_path):
    """A tiny model's folder and prompts of its own."""
    build_tiny(tmp_path / "model")
    pq.write_table(
        pa.table({"prompt": ["12=", "34="], "ground_truth": ["12", "34"]}), tmp_path / "p.parquet"
    )
    return tmp_path


def composed(*overrides):
    """A configuration and its roles."""
    raw, config = compose(list(overrides))
    return config, roles_of(config, instantiate(raw.algorithm, _convert_="all"))


def planned(folder, *more):
    return composed(
        "experiment=tiny",
        "model.build=null",
        f"model.path={folder / 'model'}",
        "data.build=null",
        f"data.train_path={folder / 'p.parquet'}",
        f"output_dir={folder}",
        *more,
    )


def configured(folder, *more):
    return planned(folder, *more)[0]


def one(findings, subject, level):
    """The one finding about `subject`, which has `level`."""
    (found,) = [f for f in findings if f.subject == subject]
    assert found.level is level, found
    return found


def test_a_sound_machine_passes(folder, capsys):
    arguments = ["experiment=tiny", f"output_dir={folder}"]
    assert main(["doctor", *arguments]) == 0
    report = capsys.readouterr().out
    for subject in ("plan", "versions", "GPUs", "shared memory", "disk", "open files", "Ray"):
        assert subject in report
    assert "FAULT" not in report


def test_what_can_not_work_exits_with_1_and_says_why(folder, capsys, monkeypatch):
    monkeypatch.setenv("BALLAST_MODELS", str(folder / "nowhere"))
    assert main(["doctor", "experiment=rpg_qwen3_4b_2k", f"output_dir={folder}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = [n for n, line in enumerate(lines) if line.startswith("FAULT")]
    assert any("nowhere/Qwen3-4B is not a folder" in lines[n] for n in wrong)
    assert all(lines[n + 1].lstrip().startswith("-> ") for n in wrong)


def test_train_runs_the_cheap_part_itself(folder, capsys):
    arguments = ["experiment=tiny", "cluster=gpu_8", f"output_dir={folder / 'runs'}"]
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert "cluster=gpu_8 asks for 8, nvidia-smi lists" in error
    assert not (folder / "runs").exists()


def test_good_inputs(folder):
    findings = inputs.check(configured(folder))
    assert not faults(findings)
    assert one(findings, "tokenizer", Level.OK).text == "encodes 2 prompts as plain text"


def test_a_truncated_shard(folder):
    shard = folder / "model" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "model.safetensors: " in one(inputs.check(configured(folder)), "model", Level.FAULT).text


def test_a_missing_shard(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    found = one(inputs.check(configured(folder)), "model", Level.FAULT)
    assert found.text == "model-00002.safetensors is missing"


def chats(folder):
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    rows = pa.array([[{"role": "user", "content": "12="}]], messages)
    pq.write_table(pa.table({"prompt": rows, "ground_truth": ["12"]}), folder / "p.parquet")


def test_a_chat_template(folder):
    chats(folder)
    findings = inputs.check(configured(folder, "data.max_prompt_tokens=24"))
    assert "with the chat template" in one(findings, "tokenizer", Level.OK).text


def test_chats_without_a_template(folder):
    chats(folder)
    (folder / "model" / "chat_template.jinja").unlink(missing_ok=True)
    settings = folder / "model" / "tokenizer_config.json"
    record = json.loads(settings.read_text())
    record.pop("chat_template", None)
    settings.write_text(json.dumps(record))
    found = one(inputs.check(configured(folder)), "chat template", Level.FAULT)
    assert "1 of 1 prompts are chats" in found.text


def test_prompts_that_are_too_long(folder):
    findings = inputs.check(configured(folder, "data.max_prompt_tokens=2"))
    assert one(findings, "tokenizer", Level.FAULT).text == "prompt of 3 tokens, limit 2"


def test_a_requirement_that_is_not_met(folder, tmp_path, monkeypatch):
    record = tmp_path / "site" / "ballast_rl-9.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ballast-rl\nVersion: 9\n"
        "Requires-Dist: pyarrow>=999\nRequires-Dist: no-such-package\n"
        "Requires-Dist: not-asked; extra == 'wandb'\n"
    )
    monkeypatch.syspath_prepend(str(record.parent))
    findings = list(machine.versions(configured(folder)))
    text = one(findings, "versions", Level.FAULT).text
    assert "is not >=999" in text
    assert "no-such-package is missing" in text
    assert "not-asked" not in text


@pytest.mark.parametrize(
    ("sizes", "visible", "level", "text"),
    [
        ("81920 81920", None, Level.OK, "2 of at least 80 GiB, 2 asked"),
        ("40960 40960", None, Level.NOTE, "2 of 40 GiB, the plan counts on 80 GiB"),
        ("81920", None, Level.FAULT, "cluster=gpu_2 asks for 2, nvidia-smi lists 1"),
        ("[N/A] [N/A]", None, Level.OK, "2 of a memory that nvidia-smi does not tell, 2 asked"),
        ("[N/A] 40960", None, Level.NOTE, "2 of 40 GiB, the plan counts on 80 GiB"),
        ("4096 81920 4096 81920", "1,GPU-3", Level.OK, "2 of at least 80 GiB, 2 asked"),
        ("81920 81920", "MIG-a,MIG-b", Level.OK, "2 of a memory that nvidia-smi does not tell,"),
        ("81920 81920", "1", Level.FAULT, "lists 1 within CUDA_VISIBLE_DEVICES=1"),
        ("81920 81920", "0,7,1", Level.FAULT, "lists 1 within CUDA_VISIBLE_DEVICES=0,7,1"),
        ("81920 81920", "", Level.FAULT, "lists 0 within CUDA_VISIBLE_DEVICES="),
    ],
)
def test_gpus_that_the_driver_lists(folder, tmp_path, monkeypatch, sizes, visible, level, text):
    lines = "".join(f"{k}, GPU-{k}f00, {size}\n" for k, size in enumerate(sizes.split()))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\ncat <<END\n" + lines + "END\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(driver.parent), prepend=":")
    config, roles = planned(folder, "cluster=gpu_2")
    findings = list(machine.gpus(config, roles))
    assert text in one(findings, "GPUs", level).text


def test_a_home_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nobody")
    assert "can't be written" not in folders.home().text
    assert folders.home().level is Level.FAULT
    monkeypatch.setenv("HOME", "/tmp/not there yet")
    assert folders.home().level is Level.OK


def test_a_temporary_folder_whose_sockets_linux_refuses(folder, tmp_path, monkeypatch):
    config = configured(folder)
    monkeypatch.setenv("RAY_TMPDIR", "/" + 38 * "a")
    assert list(folders.sockets(config)) == []
    monkeypatch.setenv("RAY_TMPDIR", "/" + 39 * "a")
    found = one(folders.sockets(config), "sockets", Level.FAULT)
    assert found.remedy == "set RAY_TMPDIR to a folder of at most 39 bytes, such as /tmp"
    assert len(f"{folders.ray_folder()}/{folders.RAY_SOCKET}") == 108
    with socket.socket(socket.AF_UNIX) as one_too_long, pytest.raises(OSError, match="too long"):
        one_too_long.bind(f"{tmp_path}/".ljust(108, "a"))
    elsewhere = configured(folder, "cluster.address=auto")
    assert list(folders.sockets(elsewhere)) == []


def test_a_disk_that_is_too_small(folder):
    """72.7 B parameters x (12 B x (2 kept + 1 being written) + 4 B) = 2708.5 GiB."""
    overrides = ["model=qwen25_72b", f"output_dir={folder / 'a' / 'b'}"]
    config, roles = composed(*overrides)
    assert machine.checkpoint_bytes(config, roles) / 2**30 == pytest.approx(2708.5, abs=0.1)
    (found,) = faults(list(machine.disk(config, roles)))
    assert "take 2708.5 GiB" in found.text
    # A critic is saved as well, and not exported: 72.7 B x (2 x 12 B x 3 + 4 B).
    with_critic = composed(*overrides, "algorithm=ppo")
    assert machine.checkpoint_bytes(*with_critic) / 2**30 == pytest.approx(5146.2, abs=0.1)
    # Nothing is saved of a model that does not train.
    alone = composed(*overrides, "trainer=rollout_only")
    assert machine.checkpoint_bytes(*alone) == 0


def test_too_few_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        found = machine.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.level is Level.FAULT
    assert found.remedy.startswith("ulimit -n")


def test_ports_answer():
    assert network.ports().level is Level.OK


def test_a_cluster_that_is_not_there(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config, roles = planned(folder, f"cluster.address=127.0.0.1:{port}")
    found = one(network.ray_resources(config, roles), "Ray", Level.FAULT)
    assert f"127.0.0.1:{port}" in found.text
    assert "ray start --head" in found.remedy


def test_more_cpus_than_rays_own(folder):
    config, roles = planned(folder, "cluster.num_cpus=1")
    found = one(network.ray_resources(config, roles), "Ray", Level.FAULT)
    assert found.text == "the roles take 3 CPUs, cluster.num_cpus=1"  # the reward worker has one


def test_the_table_has_a_remedy_below_every_finding_that_needs_one(folder):
    config, roles = planned(folder, "cluster.num_cpus=1")
    text = table([network.ports(), *network.ray_resources(config, roles)])
    assert text.splitlines()[-1].lstrip().startswith("-> raise cluster.num_cpus")
