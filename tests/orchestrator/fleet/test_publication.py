"""What a publication does when an engine dies or hangs in it, without engines."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from conf.compose import compose
from conf.tables.transports import transport_named
from orchestrator.fleet.health import Health
from orchestrator.fleet.publication import Publisher
from workers.data.probe import ProbeSequence
from workers.weight_sync.attestation import AttestationError
from workers.weight_sync.endpoint import PublishReport
from workers.worker_group import NoAnswerError, WorkerError

TENSOR = {"weight": (1, 2)}
PROBED = [0.0, -1.0, -1.0]


@dataclass
class Answer:
    answers: object

    def outcomes(self):
        return self.answers

    def result(self):
        return self.answers


@dataclass
class Stack:
    """Two engines and a learner, whose first publications fail; `dies` dies in each of them.

    Engines in `hangs` answer nothing; those in `refuses` raise when they are asked for evidence.
    """

    fails: int = 0
    dies: tuple[int, ...] = ()
    hangs: tuple[int, ...] = ()
    refuses: tuple[int, ...] = ()
    alive: list[int] = field(default_factory=lambda: [0, 1])
    connected: list[list[int]] = field(default_factory=list)
    version: int = -1  # published last
    received: dict = field(default_factory=lambda: TENSOR)
    attested: list[list[int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    probed: list[float] = field(default_factory=lambda: PROBED)  # by the engines
    rounded: list[float] = field(default_factory=lambda: PROBED)  # by the learner

    def __post_init__(self):
        self.dying = list(self.dies)
        self.engines = {n: SimpleNamespace(health=Health.HEALTHY) for n in self.ranks}

    # the learner
    def call(self, call, *, timeout_s):
        if call.method == "connect":
            (to,) = call.args
            assert to.nodes == {n: f"node {n}" for n in to.engines.ranks}
            self.connected.append(list(to.engines.ranks))
            return None
        if call.method == "probe":
            assert call.kwargs == {"engine_dtype": "bfloat16"}
            return [[self.rounded]]
        assert call.method == "publish"
        if self.fails:
            self.fails -= 1
            if self.dying:
                self.alive.remove(self.dying.pop(0))
            raise WorkerError("learner.publish, rank 0: RuntimeError: connection closed by peer")
        (self.version,) = call.args
        report = PublishReport(
            version=self.version,
            transport="gloo",
            names=tuple(TENSOR),
            num_bytes=4,
            seconds={"total": 1.0},
            fingerprints=dict(TENSOR),
            copy_bytes_per_s=16.0,
        )
        return [report]

    def call_first(self, call, *, timeout_s):
        assert call.method == "parameter_names"
        return list(TENSOR)

    # the engines
    ranks = (0, 1)

    def start_one(self, number, call, *, timeout_s):
        assert call.method == "encode"
        return Answer([[ProbeSequence(tokens=[1, 2, 3])]])

    def only(self, numbers):
        return SimpleNamespace(
            ranks=numbers, start=lambda call, *, timeout_s: self.ask(call.method, numbers)
        )

    def ask(self, method, numbers):
        self.asked.append(method)
        if method == "attest":
            self.attested.append(numbers)
        return Answer({number: self.outcome(method, number) for number in numbers})

    def outcome(self, method, number):
        if number not in self.alive:
            error = WorkerError(f"rollout.{method}, rank {number}: the process died")
            error.__cause__ = ActorDiedError()
            return error
        if number in self.hangs:
            return NoAnswerError(f"rollout.{method}: no answer from rank [{number}]")
        if method == "attest" and number in self.refuses:
            return WorkerError(f"rollout.attest, rank {number}: KeyError: 'weight'")
        return 0 if method == "version" else (self.version, self.received, {}, [self.probed])

    def start(self, call, *, timeout_s):
        assert call.method == "probe"
        self.asked.append("probe")
        return SimpleNamespace(ready=self.learner_is_done, result=lambda: [[PROBED]])

    def learner_is_done(self, *, wait_s):
        self.asked.append("probe is done")
        return True

    # the pool
    def kill(self, number, why):
        self.engines[number].health = Health.DEAD
        self.why = why

    def admit(self, number):
        self.engines[number].health = Health.HEALTHY


@pytest.fixture
def publish():
    def run(stack, transport="gloo", received=None, overrides=()):
        _, config = compose(["experiment=tiny", "rollout.num_engines=2", *overrides])
        row = transport_named(transport)
        launcher = SimpleNamespace(transport=row, node=lambda number: f"node {number}")
        fleet = SimpleNamespace(launcher=launcher, workers=stack, pool=stack)
        colocation = SimpleNamespace(receive=lambda: None, generate=lambda: None)
        prompts = [SimpleNamespace(prompt="?")]
        publisher = Publisher(fleet, stack, config, probe_prompts=prompts, colocation=colocation)
        faults = (stack.fails, stack.hangs, stack.refuses)
        stack.fails, stack.hangs, stack.refuses = 0, (), ()
        publisher.begin(0)
        stack.fails, stack.hangs, stack.refuses = faults
        stack.received = received or TENSOR
        return publisher.publish(1, stepped=False)

    return run


def test_who_died_in_it_is_left_out_of_the_next_attempt(publish):
    stack = Stack(fails=1, dies=(0,))
    metrics = publish(stack)
    assert stack.connected == [[0, 1], [1]]
    assert metrics["publication/probe_gap_max"] == 0.0
    assert metrics["publication/bytes_per_s"] == 4.0
    assert metrics["publication/copy_frac"] == 0.25
    assert stack.engines[0].health is Health.DEAD


def test_with_no_engine_left_there_is_nothing_to_publish(publish):
    stack = Stack(fails=2, dies=(0, 1))
    assert publish(stack) == {}
    assert stack.connected == [[0, 1], [1]]


def test_a_failure_with_all_engines_there_is_the_runs_end(publish):
    with pytest.raises(WorkerError, match="connection closed"):
        publish(Stack(fails=1))


@pytest.mark.parametrize(("transport", "fails"), [("shm", 1), ("ipc", 1), ("gloo", 0)])
def test_an_engine_that_hangs_is_ended_and_the_others_get_their_weights(publish, transport, fails):
    """Over gloo engines are asked before, and without it nothing fails."""
    stack = Stack(fails=fails, hangs=(0,))
    metrics = publish(stack, transport=transport)
    assert metrics["publication/probe_gap_max"] == 0.0
    assert stack.connected == [[0, 1], [1]]
    assert [own.health for own in stack.engines.values()] == [Health.DEAD, Health.HEALTHY]
    assert stack.why == "rollout.version: no answer from rank [0]"


def test_an_engine_that_hangs_before_it_gives_evidence_is_ended(publish):
    stack = Stack(hangs=(1,))
    publish(stack, transport="shm")
    assert stack.connected == [[0, 1]]  # nothing is sent again
    assert [own.health for own in stack.engines.values()] == [Health.HEALTHY, Health.DEAD]
    assert stack.why == "rollout.attest: no answer from rank [1]"


def test_what_no_engine_can_give_evidence_of_is_the_runs_end_and_no_engines(publish):
    stack = Stack(refuses=(0, 1))
    with pytest.raises(WorkerError, match="KeyError: 'weight'"):
        publish(stack, transport="shm")
    assert all(own.health is Health.HEALTHY for own in stack.engines.values())


def test_over_shared_memory_nobody_is_asked_before_something_fails(publish):
    def engines_asked(stack):
        publish(stack, transport="shm")
        return [method for method in stack.asked if "probe" not in method]

    assert engines_asked(Stack()) == ["attest", "attest"]
    assert engines_asked(Stack(fails=1, dies=(0,))) == ["attest", "version", "attest"]


def test_learner_and_engines_compute_the_probe_together_unless_they_share_cores(publish):
    stack = Stack()
    publish(stack, transport="shm")
    assert stack.asked == 2 * ["probe", "probe is done", "attest"]
    stack = Stack()
    publish(stack, transport="shm", overrides=["cluster.learner.num_gpus=1"])
    assert stack.asked == 2 * ["probe", "attest"]


def test_over_nccl_the_learner_hangs_too_and_the_run_ends(publish):
    with pytest.raises(WorkerError, match="connection closed"):
        publish(Stack(fails=1, dies=(0,)), transport="nccl")


def test_the_attestation_is_not_skipped_after_a_failure(publish):
    stack = Stack(fails=1, dies=(0,))
    publish(stack)
    assert stack.attested == [[0, 1], [1]]
    with pytest.raises(AttestationError, match="weight"):
        publish(Stack(fails=1, dies=(0,)), received={"weight": (7, 7)})


def test_no_engine_left_after_the_first_publication_is_said(publish):
    stack = Stack(alive=[])
    with pytest.raises(WorkerError, match="no rollout engine outlived the first publication"):
        publish(stack, transport="shm", overrides=["rollout.dtype=bfloat16"])


BF16 = ["rollout.dtype=bfloat16"]


def test_in_bfloat16_the_tolerance_is_six_times_what_was_measured_for_the_model(publish):
    """The learner rounds by 0.01 a token of three (the first has none), the engines as much."""
    stack = Stack(probed=[0.0, -1.01, -1.01], rounded=[0.0, -0.99, -1.01])
    metrics = publish(stack, overrides=BF16)
    assert metrics["publication/probe_gap_mean"] == pytest.approx(0.02 / 3)
    assert metrics["publication/probe_allowed_mean"] == pytest.approx(6 * 0.02 / 3)


def test_in_bfloat16_a_gap_beyond_the_models_rounding_ends_the_run_before_the_first_step(publish):
    stack = Stack(probed=[0.0, -1.25, -1.25], rounded=[0.0, -0.99, -1.01])
    with pytest.raises(AttestationError, match=r"differ by 0\.1[0-9]+ on average.*is no rounding"):
        publish(stack, overrides=BF16)
