"""The order of events of one step, with fakes in place of processes that write events down."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.outputs import Outputs
from orchestrator.step.adaptation import Adaptation
from orchestrator.step.critic import Critic
from orchestrator.step.partition import SequenceCost
from orchestrator.step.roles import TrainingRoles
from orchestrator.step.skipped_steps import NonFiniteGradientsError
from orchestrator.supply.source import NothingLeftError, NothingToTrainError, Taken
from orchestrator.supply.supply import Supply
from orchestrator.telemetry.accounting import Accounting
from orchestrator.trainer import Trainer
from workers.data.trajectory import RolloutGroup, TrajectoryMeta
from workers.learner.policy_worker import TrainReport


class Events(list):
    """Events of a step, of which the one that holds `fails` is an error."""

    fails = "nothing"

    def append(self, event):
        super().append(event)
        if self.fails in event:
            raise OSError(event)


class Ranks:
    """The ranks of one role: every call is an event, every answer is named by its column."""

    def __init__(self, events, role, *, steps=1, grad_norm=0.5, skipped=0):
        self.events, self.role = events, role
        self.steps, self.grad_norm, self.skipped = steps, grad_norm, skipped

    def compute_logprobs(self, plans, rows, *, logprobs, entropy):
        names = [name for name in (logprobs, entropy) if name]
        self.events.append(f"{self.role} computes {' and '.join(names)}")
        return names

    def values(self, plans, rows):
        self.events.append(f"{self.role} computes values")
        return ["values"]

    def credit(self, plan, rows, computed):
        self.events.append(f"{self.role} credits, given {list(computed)}")
        return "advantages", {"credit/std": 1.0}

    def follow(self, policy, *, share):
        self.events.append(f"{self.role} follows the {policy.role} by {share}")


class Learner(Ranks):
    """A `Policy` that trains."""

    def train(self, plans, rows, computed):
        updates = len(plans[0].updates)
        self.events.append(f"{self.role} trains {updates} updates, given {list(computed)}")
        self.weights = plans[0].updates[0][0].weights
        report = TrainReport(
            metrics={"learner/grad_norm": self.grad_norm},
            steps_taken=self.steps,
            non_finite=(),
            skipped_in_a_row=self.skipped,
            gap_sum=0.0,
            gap_max=0.0,
            gap_tokens=1,
        )
        return ["logprobs"], [report]


class Values(Ranks):
    """A `ValueFunction`: training is begun, and waited for later."""

    def train(self, plans, rows, computed):
        self.events.append(f"{self.role} begins {len(plans[0].updates)} updates")
        self.coefficients = dict(plans[0].coefficients)
        return self

    def result(self):
        self.events.append(f"{self.role} is waited for")
        return [{"critic/loss": 0.25}]


class Sampled:
    """A `GroupSource` with two groups of two, of which the verdict is asked as engines do."""

    failed_rows = ()

    def __init__(self, events, rewards):
        self.events, self.rewards = events, rewards

    def take(self, step, version, may_train):
        self.events.append(f"take for step {step} with weights {version}")
        groups = [made(number, rewards) for number, rewards in enumerate(self.rewards)]
        verdicts = [may_train(group) for group in groups]
        kept = tuple(group for group, why in zip(groups, verdicts, strict=True) if why is None)
        dropped = Counter(why for why in verdicts if why)
        return Taken(groups=kept, dropped=dropped, failed_rows=self.failed_rows)

    def run_ahead(self, version):
        self.events.append(f"run ahead with weights {version}")

    def metrics(self):
        return {}


class Publisher:
    """`Publishing` to nobody."""

    def __init__(self, events):
        self.events = events

    def publish(self, version, *, stepped):
        self.events.append(f"publish {version}, stepped {stepped}")
        return {"publication/bytes": 8.0}


class Recorder:
    """Takes what a step computed."""

    def __init__(self, events):
        self.events = events

    def write(self, step, slices, batches, computed):
        self.events.append(f"record step {step} with {list(computed)}")

    def write_failed(self, step, rows):
        if rows:
            self.events.append(f"record what failed in step {step}: {list(rows)}")

    def flush(self):
        self.events.append("flush the record")


def made(number, rewards):
    metas = tuple(
        TrajectoryMeta(
            prompt_uid=f"p{number}",
            group_id=f"g{number}",
            rollout_id=f"g{number}/{k}",
            num_tokens=6,
            num_trained=3,
            num_sampled=3,
            finish_reason="stop",
            outcome="scored",
            reward=reward,
            reward_parts={},
            min_version=4,
            max_version=4,
            generate_s=0.1,
            reward_s=0.01,
        )
        for k, reward in enumerate(rewards)
    )
    return RolloutGroup(group_id=f"g{number}", metas=metas, batch="batch", start=2 * number)


def step_of(
    *overrides,
    step=3,
    rewards=((1.0, 0.0), (0.0, 1.0)),
    fails="nothing",
    coefficients=None,
    **learns,
):
    """Do one step with `overrides`, from weights 4; its events and its trainer."""
    raw, config = compose(["experiment=tiny", "trainer.prompts_per_step=2", *overrides])
    algorithm = instantiate(raw.algorithm, _convert_="all")
    events = Events()
    events.fails = fails
    learner = Learner(events, "learner", **learns)
    reads = algorithm.required_columns
    reference = Ranks(events, "reference") if "ref_logprobs" in reads else None
    cost = SequenceCost()
    critic = None
    if "values" in reads:
        values = Values(events, "critic")
        critic = Critic(group=values, algorithm=algorithm, config=config, cost=cost)
    trainer = Trainer(
        config=config,
        algorithm=algorithm,
        roles=TrainingRoles(learner=learner, reference=reference, critic=critic, cost=cost),
        supply=Supply(
            ledger=SimpleNamespace(metrics=dict),
            groups=Sampled(events, rewards),
            publisher=Publisher(events),
            colocation=SimpleNamespace(learn=lambda: events.append("learner's turn"), metrics=dict),
        ),
        outputs=Outputs(log=None, accounting=Accounting(), recorder=Recorder(events)),
        adaptation=Adaptation(algorithm, learner=learner, reference=reference),
        version=4,
        trained=2,
    )
    trainer.adaptation.coefficients |= coefficients or {}
    try:
        metrics = trainer.step(step)
    except Exception as error:
        return SimpleNamespace(events=events, trainer=trainer, error=error)
    return SimpleNamespace(events=events, trainer=trainer, metrics=metrics)


def test_one_update_needs_no_old_logprobs():
    """Pi_old is the policy that trains: its own forward supplies the column."""
    done = step_of("algorithm=cpgd")
    assert done.events == [
        "take for step 3 with weights 4",
        "run ahead with weights 4",
        "learner's turn",
        "learner credits, given []",
        "learner trains 1 updates, given ['advantages']",
        "record step 3 with ['advantages', 'logprobs']",
        "publish 5, stepped True",
    ]
    assert done.trainer.version == 5
    assert done.metrics["staleness/max"] == 0.0  # of the weights that sampled, not of the new ones
    assert done.metrics["rollout/tokens"] == 12.0


@pytest.mark.parametrize(
    ("rewards", "then"),
    [(((1.0, 0.0), (0.0, 1.0)), "run ahead with weights 4"), ((), "flush the record")],
)
def test_samples_that_failed_are_recorded_whether_or_not_the_step_trains(
    monkeypatch, rewards, then
):
    monkeypatch.setattr(Sampled, "failed_rows", (("batch 7", 2),))
    done = step_of("algorithm=cpgd", rewards=rewards)
    assert done.events[:3] == [
        "take for step 3 with weights 4",
        "record what failed in step 3: [('batch 7', 2)]",
        then,
    ]
    assert hasattr(done, "error") == (not rewards)


def test_several_updates_hold_the_policy_against_the_one_that_began_the_step():
    done = step_of("algorithm=cpgd", "trainer.updates_per_step=2")
    assert done.events == [
        "take for step 3 with weights 4",
        "run ahead with weights 4",
        "learner's turn",
        "learner computes old_logprobs",
        "learner credits, given ['old_logprobs']",
        "learner trains 2 updates, given ['old_logprobs', 'advantages']",
        "record step 3 with ['old_logprobs', 'advantages', 'logprobs']",
        "publish 5, stepped True",
    ]


def test_a_reference_computes_before_the_policy_and_moves_after_publication():
    done = step_of(
        "algorithm=grpo",
        "algorithm/reference=moving_average",
        "algorithm.reference.decay=0.75",
        "trainer.epochs_per_step=2",
    )
    computed = "'ref_logprobs', 'old_logprobs'"
    assert done.events == [
        "take for step 3 with weights 4",
        "run ahead with weights 4",
        "learner's turn",
        "reference computes ref_logprobs",
        "learner computes old_logprobs",
        f"learner credits, given [{computed}]",
        f"learner trains 2 updates, given [{computed}, 'advantages']",
        f"record step 3 with [{computed}, 'advantages', 'logprobs']",
        "publish 5, stepped True",
        "reference follows the learner by 0.25",
    ]
    assert done.metrics["reference/refreshed"] == 0.25


def test_credit_that_reads_old_logprobs_has_them_with_one_update_too():
    done = step_of("algorithm=reinforce_pp")
    assert done.events[3:6] == [
        "reference computes ref_logprobs",
        "learner computes old_logprobs",
        "learner credits, given ['ref_logprobs', 'old_logprobs']",
    ]


CRITIC = ("algorithm=ppo", "critic.updates_per_step=2")


def test_a_critic_beside_the_learner_values_before_credit_and_trains_meanwhile():
    done = step_of(*CRITIC, "cluster.critic.placement=dedicated")
    assert done.events == [
        "take for step 3 with weights 4",
        "run ahead with weights 4",
        "learner's turn",
        "critic computes values",
        "learner credits, given ['values']",
        "critic begins 2 updates",
        "learner trains 1 updates, given ['values', 'advantages']",
        "critic is waited for",
        "record step 3 with ['values', 'advantages', 'logprobs']",
        "publish 5, stepped True",
    ]
    assert done.metrics["critic/loss"] == 0.25


def test_a_critic_in_the_learners_place_has_trained_before_the_learner_does():
    events = step_of(*CRITIC, "cluster.critic.placement=shared").events
    assert events.index("critic is waited for") < events.index(
        "learner trains 1 updates, given ['values', 'advantages']"
    )


def test_while_the_critic_warms_up_nothing_else_trains_or_is_published():
    overrides = (*CRITIC, "critic.warmup_steps=3", "cluster.critic.placement=dedicated")
    done = step_of(*overrides)
    assert done.events == [
        "take for step 3 with weights 4",
        "run ahead with weights 4",
        "learner's turn",
        "critic computes values",
        "learner credits, given ['values']",
        "critic begins 2 updates",
        "critic is waited for",
        "record step 3 with ['values', 'advantages']",
    ]
    assert done.metrics["critic/loss"] == 0.25  # the step came to its end
    assert "learner/steps" not in done.metrics
    assert done.trainer.version == 4
    assert "publish 5, stepped True" in step_of(*overrides, step=4).events


@pytest.mark.parametrize("idle", [{"steps": 0}, {"grad_norm": 0.0}])
def test_weights_that_did_not_change_are_published_as_such(idle):
    assert "publish 5, stepped False" in step_of("algorithm=cpgd", **idle).events


def test_too_many_skipped_updates_end_the_run_before_publication():
    done = step_of("algorithm=cpgd", "learner.max_skipped_steps=3", steps=0, skipped=3)
    assert isinstance(done.error, NonFiniteGradientsError)
    assert done.events[-2:] == [
        "learner trains 1 updates, given ['advantages']",
        "record step 3 with ['advantages', 'logprobs']",
    ]
    assert done.trainer.version == 4


def test_groups_that_the_algorithm_filters_do_not_train():
    """Equal rewards teach `dapo` nothing: the first group is dropped, the second trains."""
    done = step_of("algorithm=dapo", rewards=((1.0, 1.0), (0.0, 1.0)))
    assert done.metrics["groups/trained"] == 1.0
    assert done.metrics["rollout/sequences"] == 2.0


def test_a_step_without_a_group_ends_before_any_process_is_asked():
    done = step_of("algorithm=dapo", rewards=((1.0, 1.0), (0.0, 0.0)))
    assert isinstance(done.error, NothingLeftError)
    assert "groups dropped: 2 x filtered; samples failed: none" in str(done.error)
    assert done.events == [
        "take for step 3 with weights 4",
        "flush the record",
        "run ahead with weights 4",
    ]
    empty = step_of("algorithm=cpgd", rewards=())
    assert type(empty.error) is NothingToTrainError


MOVING = (
    "algorithm=grpo",
    "algorithm/reference=moving_average",
    "algorithm.reference.decay=0.75",
)
BESIDE = (*CRITIC, "cluster.critic.placement=dedicated")


@pytest.mark.parametrize(
    ("overrides", "fails", "holds", "version"),
    [
        (MOVING, "take for step", 2, 4),
        (MOVING, "learner's turn", 2, 4),
        (MOVING, "reference computes", 2, 4),
        (MOVING, "learner credits", 2, 4),
        (BESIDE, "critic begins", None, 4),
        (BESIDE, "learner trains", None, 4),
        (BESIDE, "critic is waited for", None, 4),
        (MOVING, "publish 5", 3, 5),
        (MOVING, "reference follows", None, 5),
        (MOVING, "record step", 3, 4),
    ],
)
def test_a_step_that_fails_says_which_step_the_weights_hold(overrides, fails, holds, version):
    done = step_of(*overrides, fails=fails)
    assert isinstance(done.error, OSError)
    assert fails in str(done.error)
    assert (done.trainer.trained, done.trainer.version) == (holds, version)


def test_the_reference_follows_weights_that_could_not_be_published():
    done = step_of(*MOVING, fails="publish 5")
    assert done.events[-1] == "reference follows the learner by 0.25"


def test_a_step_that_could_not_be_published_is_on_record_and_measured():
    """It is saved, so that a run that goes on from there never takes it again."""
    done = step_of("algorithm=cpgd", fails="publish 5")
    assert "record step 3 with ['advantages', 'logprobs']" in done.events
    assert {"reward/mean", "learner/steps", "time/step_s"} <= set(done.trainer.measured)


def test_a_step_that_ends_well_and_skipped_updates_leave_whole_weights():
    assert step_of("algorithm=cpgd").trainer.trained == 3
    skipped = step_of("algorithm=cpgd", "learner.max_skipped_steps=3", steps=0, skipped=3)
    assert skipped.trainer.trained == 3


def controlled(path):
    """Overrides of a controller of the number at `path`."""
    return (
        "+algorithm.controllers.own._target_=algorithms.controllers.AdaptiveCoefficient",
        f"+algorithm.controllers.own.coefficient={path}",
        "+algorithm.controllers.own.metric=credit/std",
        "+algorithm.controllers.own.target=1.0",
    )


def test_a_controller_steers_the_shaping_of_rewards():
    path = "reward_shaping.top.high"
    done = step_of(
        "algorithm=cpgd",
        "+algorithm.reward_shaping.top._target_=algorithms.rewards.ClipReward",
        "+algorithm.reward_shaping.top.high=1.0",
        *controlled(path),
        coefficients={path: 0.5},
    )
    assert done.metrics["reward/mean"] == 0.5  # two rewards of 1, two of 0
    assert done.metrics["reward/shaped_mean"] == 0.25  # two of 0.5


def test_a_controller_steers_the_weights_of_sequences():
    """A response counts as correct from the steered reward on; here from 2, and none is."""
    path = "auxiliaries.correct.min_reward"
    overrides = (
        "algorithm=cpgd",
        "+algorithm.auxiliaries.correct._target_=algorithms.auxiliary.CorrectLikelihood",
        "+algorithm.auxiliaries.correct.min_reward=1.0",
        *controlled(path),
    )
    usual = step_of(*overrides).trainer.roles.learner
    steered = step_of(*overrides, coefficients={path: 2.0}).trainer.roles.learner
    assert usual.weights["correct"].sum() > 0
    assert steered.weights["correct"].sum() == 0


def test_a_controller_steers_the_critic():
    path = "value_loss.clip"
    done = step_of("algorithm=ppo", *controlled(path), coefficients={path: 0.25})
    assert done.trainer.roles.critic.group.coefficients == {path: 0.25}
