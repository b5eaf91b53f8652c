"""Whole runs on the real stack: Ray, vLLM, DeepSpeed, a tiny model, started as a user starts them.

Each run is a process of its own; what it leaves on disk is what is checked. The runs build on each
other (train, resume, evaluate), so that the stack starts as seldom as possible.
"""

import itertools
import json
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from orchestrator.telemetry.glossary import GLOSSARY
from tests.e2e.command import run_ballast, start_ballast

FIRST = (
    "algorithm=dapo",
    "rollout.num_engines=2",
    "learner.num_ranks=2",
    "learner.zero_stage=2",
    "learner.token_budget=36",
    "trainer.updates_per_step=2",
    "trainer.prompts_per_step=8",
)


def tiny(folder, name, *overrides):
    """`ballast train experiment=tiny` in `folder`."""
    common = [f"output_dir={folder}", f"run_name={name}", "data.eval_limit=16"]
    return run_ballast("train", "experiment=tiny", *common, *overrides, cwd=folder)


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "time/step_s" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(folder):
    """Two engines, two ranks under ZeRO-2, several micro-batches: three steps."""
    done = tiny(
        folder,
        "first",
        *FIRST,
        "trainer.total_steps=3",
        "trainer.checkpoint_every=2",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "first", done.stdout


def test_a_run_says_what_it_did(first):
    run, output = first
    assert "held-out at step 0" in output
    assert "step 3/3" in output
    assert str(run / "final") in output
    assert f"report          {run / 'report.html'}" in output
    assert '"state":"finished"' in (run / "report.html").read_text()
    steps = metrics(run)
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["rollout/sequences"] == 64
        assert line["learner/micro_batches"] >= 4
        assert line["learner/steps"] == 2
        assert line["staleness/max"] == 0
        assert line["publication/probe_gap_max"] <= 1e-5
        assert line["mismatch/abs_max"] < 1e-4  # float32 on both sides
        assert line["samples/failed"] == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["packages"]["ray"]
    assert len(manifest["data_sha256"]) == 2


def test_every_metric_that_a_run_writes_is_in_the_glossary(first):
    run, _ = first
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = set().union(*lines) - {"step"}
    assert {"eval/mean", "checkpoint/bytes", "bubble/learner/idle_frac"} <= names
    assert [name for name in names if not any(m.covers(name) for m in GLOSSARY)] == []


def shares(line, role):
    """activity -> share of a step, `idle` among them."""
    prefix, ending = f"bubble/{role}/", "_frac"
    return {
        name.removeprefix(prefix).removesuffix(ending): value
        for name, value in line.items()
        if name.startswith(prefix)
    }


def slices(run):
    """(role, worker) -> its slices in the trace, by begin."""
    trace = json.loads((run / "trace.json").read_text())
    names = {
        kind: {
            (event["pid"], event["tid"]): event["args"]["name"]
            for event in trace
            if event["name"] == kind
        }
        for kind in ("process_name", "thread_name")
    }
    found = {}
    for event in sorted((e for e in trace if e["ph"] == "X"), key=lambda e: e["ts"]):
        key = event["pid"], event["tid"]
        worker = names["process_name"][key], names["thread_name"][key]
        found.setdefault(worker, []).append(event)
    return found


def test_every_roles_time_adds_up_and_the_trace_shows_each_worker(first):
    run, output = first
    for line in metrics(run):
        for role in ("driver", "rollout", "reward", "learner"):
            assert min(shares(line, role).values()) >= 0
            assert sum(shares(line, role).values()) == pytest.approx(1.0, abs=1e-9)
        rollout, learner = shares(line, "rollout"), shares(line, "learner")
        assert min(rollout["generate"], rollout["publish"], rollout["attest"]) > 0
        assert min(learner["learn"], learner["credit"], learner["publish"]) > 0
        assert shares(line, "reward")["score"] > 0
        # In a synchronous step neither works while the other does.
        assert rollout["generate"] <= learner["idle"]
        assert learner["learn"] <= rollout["idle"]
    assert "  bubbles         " in output
    found = slices(run)
    assert {worker for worker in found if worker[0] != "driver"} == {
        ("rollout", "engine 0"),
        ("rollout", "engine 1"),
        ("reward", "worker 0"),
        ("learner", "rank 0"),
        ("learner", "rank 1"),
    }
    steps = [e["args"]["step"] for e in found["driver", "driver 0"] if e["name"][:4] == "step"]
    assert steps == [1, 2, 3]
    for worker, events in found.items():
        if worker[0] != "driver":  # whose steps hold its other slices
            for before, after in itertools.pairwise(events):
                assert before["ts"] + before["dur"] <= after["ts"]


def test_rollouts_are_recorded_token_by_token(first):
    run, _ = first
    table = pq.read_table(run / "rollouts" / "step_000002.parquet")
    assert table.num_rows == 64
    for row in table.to_pylist():
        length = len(row["tokens"])
        for column in (
            "loss_mask",
            "rollout_logprobs",
            "weight_versions",
            "old_logprobs",
            "advantages",
            "logprobs",
            "loss_flags",
        ):
            assert len(row[column]) == length, column
        pairs = zip(row["weight_versions"], row["loss_mask"], strict=True)
        assert {version for version, mask in pairs if mask} == {
            1
        }  # step 2 is sampled by the version that step 1 published
        for mask, old, sampled in zip(
            row["loss_mask"], row["old_logprobs"], row["rollout_logprobs"], strict=True
        ):
            assert abs(old - sampled) < 1e-4 if mask else old == 0.0


def test_the_export_loads_and_is_what_the_engines_sampled_from(first):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, _ = first
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    answers = json.loads((run / "eval" / "step_000003.json").read_text())["answers"]
    for answer in answers[:4]:
        inputs = tokenizer(answer["prompt"], return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        prompt_length = inputs["input_ids"].shape[1]
        text = tokenizer.decode(output[0, prompt_length:], skip_special_tokens=True)
        assert text == answer["response"]


def test_resume_goes_on_from_the_last_checkpoint(first, folder):
    run, _ = first
    before = metrics(run)
    # As if the driver had died in step 3: the checkpoint of step 3 was never written.
    shutil.rmtree(run / "checkpoints" / "step_000003")
    third = pq.read_table(run / "rollouts" / "step_000003.parquet")
    saved = (run / "config.yaml").read_text()
    done = tiny(
        folder,
        "first",
        *FIRST,
        "trainer.total_steps=4",
        "trainer.checkpoint_every=2",
        "resume=auto",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "total_steps: 3" in saved
    assert '"text":"resumed after step 2"' in (run / "report.html").read_text()
    after = metrics(run)
    assert [line["step"] for line in after] == [1, 2, 3, 4]
    again = pq.read_table(run / "rollouts" / "step_000003.parquet")
    for column in set(third.column_names) - {"timings"}:  # to the bit, on two ranks of ZeRO-2
        assert third[column].combine_chunks().equals(again[column].combine_chunks()), column
    for metric in ("reward/mean", "learner/loss", "learner/grad_norm"):
        assert after[2][metric] == before[2][metric]
    state = json.loads((run / "checkpoints" / "step_000004" / "state.json").read_text())
    ledger = state["parts"]["ledger"]
    # One fate for every prompt that was handed out: trained at one step, or dropped by the filter.
    fates = Counter(ledger["fate"]["0"].values())
    dropped = fates.pop("dropped:filtered", 0)
    assert fates == {f"trained:{step}": 8 for step in (1, 2, 3, 4)}
    assert dropped == sum(line["groups/filtered"] for line in after)
    assert ledger["cursor"] == 32 + dropped
    assert ledger["returned"] == []


def test_eval_scores_a_checkpoint_and_an_export_alike(first, folder):
    run, _ = first
    scores = {}
    for name, path in (("export", run / "final"), ("run", run)):
        output = folder / f"{name}.json"
        overrides = ["rollout.eval_samples_per_prompt=2", "rollout.eval_sampling.temperature=1.0"]
        done = run_ballast("eval", str(path), "--output", str(output), *overrides, cwd=folder)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        scores[name] = json.loads(output.read_text())
    assert {"mean", "pass@1", "pass@2", "maj@2"} <= set(scores["run"]["metrics"])
    assert len(scores["run"]["answers"]) == 32
    # `final` was exported after the last checkpoint: the same weights, the same seeds.
    assert scores["run"]["metrics"] == scores["export"]["metrics"]


def test_engines_run_ahead_within_the_bound(folder):
    """Publication in mid-generation over gloo: staleness stays bounded, weights stay attested."""
    done = tiny(
        folder,
        "ahead",
        "schedule=one_step_off",
        "rollout.transport=gloo",
        "algorithm/correction=tis",
        "learner.zero_stage=3",
        "trainer.total_steps=5",
        "trainer.prompts_per_step=16",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = metrics(folder / "ahead")
    assert [line["staleness/max"] for line in steps[:1]] == [0]
    assert all(line["staleness/max"] <= 1 for line in steps)
    assert any(line["staleness/max"] == 1 for line in steps)
    assert all(line["publication/probe_gap_max"] <= 1e-5 for line in steps)
    versions = set()
    for step in range(1, 6):
        table = pq.read_table(folder / "ahead" / "rollouts" / f"step_{step:06d}.parquet")
        drawn = {v for row in table.column("weight_versions").to_pylist() for v in row if v >= 0}
        assert drawn <= {step - 2, step - 1}  # step k trains version k - 1
        versions |= drawn
    assert len(versions) > 1


@pytest.mark.slow
def test_ranks_that_share_their_micro_batches_train_as_one(folder):
    """Two ranks, each with half of every micro-batch, against one with all of it."""
    common = ["trainer.total_steps=2", "trainer.prompts_per_step=8", "learner.token_budget=99"]
    one = tiny(folder, "alone", *common)
    assert one.returncode == 0, one.stdout[-3000:] + one.stderr[-3000:]
    shared = ["learner.num_ranks=2", "learner.sequence_parallel_size=2", "learner.zero_stage=3"]
    recorded = ["learner.profile.steps=[2]", "learner.profile.ranks=[1]"]
    two = tiny(folder, "shared", *common, *shared, *recorded)
    assert two.returncode == 0, two.stdout[-3000:] + two.stderr[-3000:]
    assert "one group of 2 ranks" in two.stdout
    for own, other in zip(metrics(folder / "alone"), metrics(folder / "shared"), strict=True):
        assert own["learner/micro_batches"] == other["learner/micro_batches"] > 1
        for name in ("reward/mean", "rollout/tokens", "learner/num_tokens", "learner/updates"):
            assert own[name] == other[name], name
        for name in ("learner/loss", "learner/grad_norm", "policy/entropy", "mismatch/abs_mean"):
            assert other[name] == pytest.approx(own[name], rel=1e-4, abs=1e-5), name
        assert other["publication/probe_gap_max"] <= 1e-5
    profiles = folder / "shared" / "profiles"
    assert [path.name for path in profiles.iterdir()] == ["step_000002_rank_001.trace.json"]
    tables = [
        pq.read_table(folder / name / "rollouts" / "step_000001.parquet").to_pydict()
        for name in ("alone", "shared")
    ]
    assert tables[0]["tokens"] == tables[1]["tokens"]
    for own, other in zip(tables[0]["logprobs"], tables[1]["logprobs"], strict=True):
        assert own == pytest.approx(other, abs=1e-5)


def test_an_interrupt_leaves_no_process(folder):
    process = start_ballast(
        *("train", "experiment=tiny"),
        *(f"output_dir={folder}", "run_name=stopped", "data.eval_limit=16"),
        cwd=folder,
        variables={"BALLAST_TEST_MARK": "stopped"},
        own_group=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    mine = _marked()
    assert len(mine) > 5  # driver, Ray's own, engine, learner, reward
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=90) == 130, rest
    deadline = time.monotonic() + 20
    while _marked() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert _marked() == []


def _marked():
    """Processes that inherited this run's environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BALLAST_TEST_MARK") == "stopped":
                found.append((process.pid, " ".join(process.cmdline())[:80]))
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_more_gpus_than_the_cluster_has_is_refused(folder):
    done = tiny(folder, "greedy", "cluster=gpu_2")
    assert done.returncode == 2
    assert "cluster=gpu_2 asks for 2, nvidia-smi lists 0" in done.stderr
    assert "choose a smaller cluster=" in done.stderr
    assert not Path(folder / "greedy" / "metrics.jsonl").exists()
