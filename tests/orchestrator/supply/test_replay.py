"""The order and the fate of recorded groups; what can't be replayed is refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from conf.compose import ConfigError, compose
from orchestrator.checkpoints.manifest import write_manifest
from orchestrator.cli.parser import main
from orchestrator.planning.sources import prepare
from orchestrator.supply.ledger import Ledger
from orchestrator.supply.replay import Replay, check_sources, open_recording
from orchestrator.supply.source import NothingLeftError
from workers.data.prompts import PromptSet
from workers.data.trajectory import RolloutGroup, Trajectory, TrajectoryMeta, to_record_batch
from workers.tasks.digits import build_digits


def group(row, *, outcomes=("scored", "scored"), version=0):
    metas = tuple(
        TrajectoryMeta(
            prompt_uid=f"p:{row}",
            group_id=f"0-{row}",
            rollout_id=f"0-{row}/{k}",
            num_tokens=8,
            num_trained=4,
            num_sampled=4,
            finish_reason="stop",
            outcome=outcome,
            reward=0.5 if outcome == "scored" else None,
            reward_parts={},
            min_version=version,
            max_version=version,
            generate_s=0.0,
            reward_s=0.0,
        )
        for k, outcome in enumerate(outcomes)
    )
    return RolloutGroup(group_id=f"0-{row}", metas=metas, batch=None, start=0)


class Recorded:
    """A recording in memory, which counts how often it is read."""

    run_dir = Path("/runs/before")

    def __init__(self, *steps):
        self.files, self.reads = steps, []

    def begin_read(self, position, *, timeout_s):
        self.reads.append(position)
        return self

    def groups(self):
        return list(self.files[self.reads[-1]])


@pytest.fixture(scope="module")
def prompts():
    return PromptSet(
        build_digits(task="copy", length=5) / "train.parquet",
        prompt_column="prompt",
        ground_truth_column="ground_truth",
    )


def replay(prompts, *steps, name="tiny"):
    _, config = compose([f"experiment={name}"])
    ledger = Ledger(prompts, seed=0, shuffle=True)
    recorded = Recorded(*steps)
    return Replay(recorded, ledger, config), ledger, recorded


def rows(taken):
    return [int(one.group_id.split("-")[1]) for one in taken.groups]


def test_groups_come_step_by_step_in_their_order(prompts):
    source, ledger, recorded = replay(prompts, [group(7), group(3)], [group(9)])
    assert rows(source.take(1, 0, lambda one: None)) == [7, 3]
    source.run_ahead(0)
    source.run_ahead(0)
    assert recorded.reads == [0, 1]  # the next step is read while this one trains, once
    assert source.metrics() == {"groups/recorded_steps_left": 1.0}
    assert rows(source.take(2, 1, lambda one: None)) == [9]
    assert [ledger.status(0, row) for row in (7, 3, 9)] == ["trained:1", "trained:1", "trained:2"]
    assert ledger.epoch_frac == pytest.approx(3 / len(prompts))


def test_what_does_not_train_is_counted_and_a_step_of_it_is_passed_over(prompts):
    failed = group(2, outcomes=("failed:timeout", "failed:timeout", "scored"))
    source, ledger, _ = replay(prompts, [group(1), failed], [group(4), group(5)])
    taken = source.take(1, 0, lambda one: "filtered" if one.group_id != "0-5" else None)
    assert rows(taken) == [5]
    assert taken.dropped == {"filtered": 2, "timeout": 1}
    assert taken.failed == {"failed:timeout": 2}
    assert len(taken.rewards) == 7  # of every scored sample
    assert ledger.status(0, 2) == "dropped:timeout"


def test_the_end_of_the_recording_is_the_end_of_the_run(prompts):
    source, _, _ = replay(prompts, [group(1)])
    source.take(1, 0, lambda one: None)
    with pytest.raises(NothingLeftError, match="recording /runs/before is at its end after 1 step"):
        source.take(2, 1, lambda one: None)


def test_what_is_staler_than_the_bound_trains_and_is_counted(prompts):
    source, _, _ = replay(prompts, [group(1, version=0), group(2, version=5)])
    assert source.take(1, 5, lambda one: None).num_late == 1


def test_a_prompt_that_was_recorded_twice_is_refused(prompts):
    source, _, _ = replay(prompts, [group(1)], [group(1)])
    source.take(1, 0, lambda one: None)
    with pytest.raises(ValueError, match=r"prompt 1 of epoch 0 is trained:1 already"):
        source.take(2, 1, lambda one: None)


def test_a_resumed_replay_goes_on_after_the_last_step(prompts):
    steps = [group(1)], [group(2)], [group(3)]
    source, ledger, _ = replay(prompts, *steps)
    source.take(1, 0, lambda one: None)
    source.run_ahead(0)
    state, fates = source.state_dict(), ledger.state_dict()
    resumed, ledger, recorded = replay(prompts, *steps)
    ledger.load_state_dict(fates)
    resumed.load_state_dict(state)
    assert rows(resumed.take(2, 1, lambda one: None)) == [2]
    assert recorded.reads == [1]
    assert ledger.counts()["trained"] == 2
    with pytest.raises(ValueError, match="has 3 steps of before, .* trained 1 of other; resume"):
        resumed.load_state_dict({"run": "other", "position": 1})


# ---- what is refused before anything starts ----


@pytest.fixture
def run(tmp_path):
    """A run's folder with one recorded step."""
    raw, config = compose(["experiment=tiny"])
    sources = prepare(config)
    folder = tmp_path / "recorded"
    (folder / "rollouts").mkdir(parents=True)
    write_manifest(
        folder,
        raw,
        source_dir=tmp_path,
        model=str(sources.model_path),
        data={"train": sources.train.digest},
    )
    trajectory = Trajectory(
        run_id="run",
        begun_version=0,
        prompt_uid="train:0",
        group_id="0-0",
        rollout_id="0-0/0",
        dataset="copy",
        tokens=[5, 6],
        loss_mask=[False, True],
        rollout_logprobs=[0.0, -0.5],
        weight_versions=[-1, 0],
        finish_reason="stop",
        outcome="scored",
        reward=1.0,
    )
    table = pa.Table.from_batches([to_record_batch([trajectory])])
    pq.write_table(table, folder / "rollouts" / "step_000001.parquet")
    return folder


def replaying(run, *overrides):
    return compose(
        ["experiment=tiny", "rollout=replay", f"rollout.replay.folder={run}", *overrides]
    )


def test_a_recording_of_this_run_is_taken(run):
    _, config = replaying(run)
    assert config.rollout.num_engines == 0
    recording = open_recording(config)
    check_sources(recording, prepare(config))
    assert open_recording(compose(["experiment=tiny"])[1]) is None


def test_what_a_recording_fixes_can_not_be_changed(run):
    _, config = replaying(run, "rollout.sampling.temperature=0.5", "trainer.prompts_per_step=8")
    with pytest.raises(
        ValueError, match=r"add trainer.prompts_per_step=32 rollout.sampling.temperature=1.0$"
    ):
        open_recording(config)


def test_other_prompts_are_refused(run):
    _, config = replaying(run, "data=sort", "reward=exact")
    with pytest.raises(ValueError, match=r"recorded with other prompts than .*; replay with that"):
        check_sources(open_recording(config), prepare(config))


def test_another_tokenizer_is_refused(run):
    _, config = replaying(run)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "tokenizer_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="recorded with another tokenizer than that of"):
        check_sources(open_recording(config), prepare(config))


def test_token_ids_beyond_the_vocabulary_are_refused(run):
    _, config = replaying(run)
    file = run / "rollouts" / "step_000001.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index("tokens")
    foreign = pa.chunked_array([pa.array([[5, 64]], pa.large_list(pa.int32()))])
    pq.write_table(table.set_column(place, table.schema.field(place), foreign), file)
    with pytest.raises(ValueError, match="holds token id 64, the model's vocabulary has 64"):
        check_sources(open_recording(config), prepare(config))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout=replay"], "rollout.replay.folder='': name a recorded run's folder"),
        (["rollout.replay.folder=/r", "trainer=rollout_only"], "nothing is left to do"),
        (["rollout.replay.folder=/r", "trainer.eval_every=1"], "rollout=replay has no engine"),
        (["trainer=rollout_only", "trainer.eval_every=1"], "rollout_only has no learner"),
    ],
)
def test_what_a_run_without_a_role_can_not_do_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(["experiment=tiny", *overrides])


def test_engines_do_not_go_on_where_a_recording_was_trained(run, tmp_path, capsys):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    OmegaConf.save(replaying(run)[0], folder / "config.yaml")
    overrides = [f"output_dir={tmp_path / 'runs'}", "run_name=mine", "resume=auto"]
    assert main(["train", "experiment=tiny", *overrides]) == 2
    assert f"is a run with rollout.replay.folder={run}, not None" in capsys.readouterr().err


def test_a_step_that_was_not_trained_is_read_again_after_a_resume(prompts):
    steps = [group(1)], [group(2)], [group(3)]
    source, ledger, _ = replay(prompts, *steps)
    source.take(1, 0, lambda one: None)
    source.take(2, 1, lambda one: None)
    source.run_ahead(1)
    source.give_back()
    state, statuses = source.state_dict(), ledger.state_dict()
    resumed, ledger, _ = replay(prompts, *steps)
    resumed.load_state_dict(state)
    ledger.load_state_dict(statuses)
    assert rows(resumed.take(2, 1, lambda one: None)) == [2]
    assert [ledger.status(0, row) for row in (1, 2, 3)] == ["trained:1", "trained:2", "pending"]
    assert ledger.epoch_frac == pytest.approx(2 / len(prompts))
