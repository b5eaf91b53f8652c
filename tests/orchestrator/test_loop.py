"""The order of events of a run: steps, evaluations, checkpoints, and the ways in which it ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import ObjectLostError

from conf.schema import TrainConfig, TrainerConfig
from orchestrator.checkpoints.saving import CheckpointError
from orchestrator.fleet.pool import EnginesLostError
from orchestrator.loop import Loop
from orchestrator.outputs import Outputs
from orchestrator.step.skipped_steps import NonFiniteGradientsError
from orchestrator.stop import StoppedError
from orchestrator.supply.source import NothingLeftError, NothingToTrainError
from orchestrator.supply.supply import Supply
from orchestrator.telemetry.accounting import Accounting
from orchestrator.telemetry.heldout import HeldoutResult
from workers.weight_sync.attestation import AttestationError
from workers.worker_group import WorkerError


class Run:
    """One loop whose stepper, evaluator, publisher, saver, log and recorder write events down.

    Args:
        faults: step -> what that step raises.
        stop_in: step during which SIGTERM comes.
        heldout: whether there are held-out prompts.
        trainer: changes of the configuration's `trainer`; three steps unless it says otherwise.
    """

    def __init__(self, *, faults=None, stop_in=0, heldout=True, **trainer):
        self.events, self.version, self.faults, self.stop_in = [], 0, dict(faults or {}), stop_in
        self.trained, self.trained_at_fault = 0, "the step before"
        self.samples_when_asked, self.metrics = 0, None
        self.measured = {"reward/mean": 0.7}
        self.fault_of_evaluation = self.fault_of_log = self.fault_of_saving = None
        settings = {"total_steps": 3, "checkpoint_every": 0, **trainer}
        config = TrainConfig(trainer=TrainerConfig(**settings))
        self.loop = Loop(
            config=config,
            stepper=self,
            supply=Supply(
                ledger=None,
                groups=SimpleNamespace(give_back=lambda: self.events.append("give back")),
                publisher=SimpleNamespace(begin=lambda v: self.events.append(f"publish {v}")),
                colocation=None,
                evaluator=SimpleNamespace(run=self.evaluate) if heldout else None,
            ),
            saver=self,
            outputs=Outputs(
                log=SimpleNamespace(step=self.log_step, heldout=self.log_heldout),
                accounting=Accounting(),
                recorder=SimpleNamespace(flush=lambda: self.events.append("flush the record")),
            ),
        )

    # The stepper.
    def step(self, step):
        self.events.append(f"step {step}")
        if step == self.stop_in:
            self.loop.stop.requested = True
        if step == self.samples_when_asked:
            self.loop.stop.requested = True
            self.loop.stop.check()
        if step in self.faults:
            if self.trained_at_fault != "the step before":
                self.trained = self.trained_at_fault
            raise self.faults[step]
        self.version, self.trained = self.version + 1, step
        return self.metrics or {"reward/mean": step / 10}

    # The evaluator and the log.
    def evaluate(self, version):
        self.events.append(f"evaluate weights {version}")
        if self.fault_of_evaluation is not None:
            raise self.fault_of_evaluation
        return HeldoutResult(metrics={"mean": 0.5}, answers=())

    def log_step(self, step, metrics):
        self.events.append(f"log step {step}: {sorted(metrics)}")
        if self.fault_of_log is not None:
            raise self.fault_of_log

    def log_heldout(self, step, result):
        self.events.append(f"log held-out {step}")

    # The saver.
    def restore(self, checkpoint):
        self.events.append(f"restore step {checkpoint.step}")

    def begin(self, step, *, version, score):
        self.events.append(f"save step {step}, weights {version}, score {score}")
        if self.fault_of_saving is not None:
            raise self.fault_of_saving

    def poll(self):
        return {}

    def finish(self):
        self.events.append("finish saving")

    def finish_quietly(self):
        self.events.append("finish saving, quietly")

    def from_the_start(self):
        return self.loop.run(self.loop.begin(None))

    def last(self, count):
        return self.events[-count:]


def test_a_run_evaluates_first_and_last_and_saves_at_its_end():
    run = Run()
    assert run.from_the_start() == ""
    assert run.events == [
        "publish 0",
        "evaluate weights 0",
        "log held-out 0",
        "step 1",
        "log step 1: ['reward/mean']",
        "step 2",
        "log step 2: ['reward/mean']",
        "step 3",
        "log step 3: ['reward/mean']",
        "evaluate weights 3",
        "log held-out 3",
        "save step 3, weights 3, score 0.3",
        "finish saving",
        "flush the record",
    ]


def test_evaluations_and_checkpoints_come_every_so_many_steps():
    run = Run(total_steps=4, eval_every=2, checkpoint_every=2, best_metric="eval/mean")
    run.from_the_start()
    assert run.events[3:] == [
        "step 1",
        "log step 1: ['reward/mean']",
        "step 2",
        "log step 2: ['reward/mean']",
        "evaluate weights 2",
        "log held-out 2",
        "save step 2, weights 2, score 0.5",
        "step 3",
        "log step 3: ['reward/mean']",
        "step 4",
        "log step 4: ['reward/mean']",
        "evaluate weights 4",
        "log held-out 4",
        "save step 4, weights 4, score 0.5",
        "finish saving",
        "flush the record",
    ]


def beside(run):
    """Let the engines of a run sample ahead; an evaluation ends when the second step after it."""

    def begin(version):
        run.events.append(f"begin to evaluate weights {version}")
        run.polls = iter([None, HeldoutResult(metrics={"mean": 0.5}, answers=())])

    run.loop.config.schedule.max_staleness = 1
    evaluator = run.loop.supply.evaluator
    evaluator.begin = begin
    evaluator.poll = lambda: next(run.polls)
    evaluator.finish = lambda: HeldoutResult(metrics={"mean": 0.5}, answers=())
    return run


def test_an_evaluation_goes_on_beside_training_where_engines_run_ahead():
    run = beside(Run(total_steps=5, eval_every=2))
    run.from_the_start()
    assert [event for event in run.events[3:] if not event.startswith("log step")] == [
        "step 1",
        "step 2",
        "begin to evaluate weights 2",
        "step 3",
        "step 4",
        "log held-out 2",
        "begin to evaluate weights 4",
        "step 5",
        "log held-out 4",  # waited for, before the last
        "evaluate weights 5",
        "log held-out 5",
        "save step 5, weights 5, score 0.5",
        "finish saving",
        "flush the record",
    ]


def test_a_run_that_ranks_checkpoints_by_a_held_out_score_waits_for_it():
    settings = {"eval_every": 1, "checkpoint_every": 1, "best_metric": "eval/mean"}
    run = beside(Run(total_steps=2, **settings))
    run.from_the_start()
    assert [event for event in run.events if "evaluate" in event] == [
        "evaluate weights 0",
        "evaluate weights 1",
        "evaluate weights 2",
    ]


def test_a_resumed_run_restores_before_it_publishes_and_goes_on_after_its_checkpoint():
    run = Run()
    first = run.loop.begin(SimpleNamespace(step=2, version=2))
    run.loop.run(first)
    assert run.events == [
        "restore step 2",
        "publish 2",
        "step 3",
        "log step 3: ['reward/mean']",
        "evaluate weights 3",
        "log held-out 3",
        "save step 3, weights 3, score 0.3",
        "finish saving",
        "flush the record",
    ]


def test_a_run_that_is_asked_to_stop_ends_its_step_and_saves():
    run = Run(stop_in=2, heldout=False)
    with pytest.raises(StoppedError, match="stopped; step 2 is saved; resume=auto goes on"):
        run.from_the_start()
    assert run.last(5) == [
        "step 2",
        "log step 2: ['reward/mean']",
        "save step 2, weights 2, score 0.2",
        "finish saving",
        "flush the record",
    ]


def test_a_step_that_samples_when_the_run_is_asked_to_stop_is_given_back():
    run = Run()
    run.samples_when_asked = 3
    with pytest.raises(StoppedError, match="stopped in step 3 of 3") as caught:
        run.from_the_start()
    assert run.last(4) == [
        "step 3",
        "give back",
        "save step 2, weights 2, score None",
        "finish saving",
    ]
    assert caught.value.__notes__ == ["step 2 is saved; resume=auto goes on from there"]


def test_a_request_to_stop_in_the_last_step_changes_nothing():
    asked, not_asked = Run(stop_in=3), Run()
    assert asked.from_the_start() == ""
    not_asked.from_the_start()
    assert asked.events == not_asked.events


def test_a_supply_at_its_end_ends_the_run_as_a_last_step_would():
    run = Run(faults={3: NothingLeftError("every group was filtered")})
    assert run.from_the_start() == "ended after step 2: every group was filtered"
    assert run.last(6) == [
        "step 3",
        "evaluate weights 2",
        "log held-out 2",
        "save step 2, weights 2, score None",
        "finish saving",
        "flush the record",
    ]


def test_a_run_with_nothing_to_learn_from_ends_where_it_was_told_to():
    run = Run(total_steps=9, stop_if_stuck_steps=4)
    run.metrics = {"reward/mean": 0.0, "reward/std": 0.0}
    assert run.from_the_start().startswith(
        "ended after step 4: 4 steps in a row had nothing to learn from "
        "(trainer.stop_if_stuck_steps=4): every sample earns 0;"
    )
    assert [e for e in run.events if e.startswith(("step", "save", "evaluate"))][-3:] == [
        "step 4",
        "evaluate weights 4",
        "save step 4, weights 4, score 0.0",
    ]


@pytest.mark.parametrize(
    "fault", [NothingLeftError("nothing from the start"), NothingToTrainError("all failed")]
)
def test_a_run_that_never_trained_fails_and_saves_nothing(fault):
    run = Run(faults={1: fault})
    with pytest.raises(type(fault), match=str(fault)):
        run.from_the_start()
    assert run.last(3) == ["step 1", "give back", "finish saving"]


def test_engines_that_are_lost_leave_a_checkpoint_of_the_step_before():
    run = Run(faults={3: EnginesLostError("none is left")})
    with pytest.raises(EnginesLostError, match="none is left"):
        run.from_the_start()
    saved = ["give back", "save step 2, weights 2, score None", "finish saving"]
    assert run.last(4) == ["step 3", *saved]
    first = Run(faults={1: EnginesLostError("none is left")})
    with pytest.raises(EnginesLostError):
        first.from_the_start()
    assert first.last(3) == ["step 1", "give back", "finish saving"]  # there is nothing to keep


def test_engines_that_are_lost_in_an_evaluation_leave_a_checkpoint_of_its_step():
    run = Run()
    first = run.loop.begin(None)
    run.fault_of_evaluation = EnginesLostError("none is left")
    with pytest.raises(EnginesLostError):
        run.loop.run(first)
    assert run.last(3) == [
        "evaluate weights 3",
        "save step 3, weights 3, score None",
        "finish saving",
    ]


def test_skipped_updates_leave_a_checkpoint_of_their_step():
    """The weights are those before the updates, which were skipped, and are whole."""
    run = Run(faults={2: NonFiniteGradientsError("3 in a row")})
    run.trained_at_fault = 2
    with pytest.raises(NonFiniteGradientsError, match="3 in a row"):
        run.from_the_start()
    assert run.last(4) == [
        "step 2",
        "save step 2, weights 1, score None",
        "log step 2: ['reward/mean']",
        "finish saving",
    ]


FAULTS = [
    NothingToTrainError("no group may train: samples failed {'failed:KeyError': 32}"),
    WorkerError("rollout.collect, engine 1: RuntimeError: 64 unusable answers in a row"),
    ObjectLostError("ab" * 28, None, ""),
    AttestationError(3, {}, ["engine 0 has version 2"]),
    KeyError("reward"),
    MemoryError(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_whatever_ends_a_run_the_last_whole_state_is_saved_first(fault):
    before = Run(faults={3: fault})
    with pytest.raises(type(fault)):
        before.from_the_start()
    assert before.last(3) == ["give back", "save step 2, weights 2, score None", "finish saving"]
    assert fault.__notes__ == ["step 2 is saved; resume=auto goes on from there"]
    fault.__notes__.clear()

    after = Run(faults={3: fault})  # of a publication, for example
    after.trained_at_fault = 3
    with pytest.raises(type(fault)):
        after.from_the_start()
    assert after.last(4) == [
        "step 3",
        "save step 3, weights 2, score None",
        "log step 3: ['reward/mean']",  # it is saved, and will not come again
        "finish saving",
    ]
    fault.__notes__.clear()

    meanwhile = Run(faults={3: fault}, checkpoint_every=2)
    meanwhile.trained_at_fault = None
    with pytest.raises(type(fault)):
        meanwhile.from_the_start()
    assert meanwhile.last(2) == ["step 3", "finish saving"]  # what was being written is whole
    assert fault.__notes__ == ["step 2 is saved; resume=auto goes on from there"]
    fault.__notes__.clear()


def test_a_tracker_that_fails_loses_no_step():
    run = Run(heldout=False)
    run.fault_of_log = ConnectionError("the tracker is down")
    with pytest.raises(ConnectionError):
        run.from_the_start()
    assert run.last(2) == ["save step 1, weights 1, score None", "finish saving"]


def test_a_step_that_is_saved_already_is_not_saved_again():
    run = Run(faults={3: KeyError("reward")}, checkpoint_every=2)
    with pytest.raises(KeyError):
        run.from_the_start()
    assert run.last(3) == ["step 3", "give back", "finish saving"]


def test_a_checkpoint_that_fails_at_the_end_does_not_hide_the_failure():
    run = Run(faults={3: KeyError("reward")})
    run.fault_of_saving = WorkerError("learner.begin_save, rank 0: the process died")
    with pytest.raises(KeyError) as caught:
        run.from_the_start()
    assert caught.value.__notes__ == [
        "no checkpoint could be taken at the end (learner.begin_save, rank 0: the process died)"
    ]


def test_a_checkpoint_that_cannot_be_written_is_not_tried_again():
    run = Run(checkpoint_every=1)
    run.fault_of_saving = CheckpointError("the disk is full; there is no earlier one")
    with pytest.raises(CheckpointError, match="the disk is full"):
        run.from_the_start()
    assert run.last(2) == ["save step 1, weights 1, score 0.1", "finish saving"]


def test_a_run_that_learns_nothing_saves_after_every_step():
    run = Run(heldout=False, learns=False, total_steps=2, checkpoint_every=0)
    run.from_the_start()
    assert run.events == [
        "publish 0",
        "step 1",
        "log step 1: ['reward/mean']",
        "save step 1, weights 1, score 0.1",
        "step 2",
        "log step 2: ['reward/mean']",
        "save step 2, weights 2, score 0.2",
        "finish saving",
        "flush the record",
    ]


def test_a_metric_that_no_checkpoint_could_be_judged_by_is_refused_after_the_first_step():
    run = Run(best_metric="reward/maen")
    with pytest.raises(
        ValueError, match="'reward/maen' is not measured by this run; did you mean reward/mean?"
    ):
        run.from_the_start()
    assert run.last(2) == ["save step 1, weights 1, score None", "finish saving"]
    assert Run(best_metric="reward/maen", keep_best=0).from_the_start() == ""
