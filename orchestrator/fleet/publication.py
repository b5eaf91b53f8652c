"""Publish the learner's weights to every engine, and prove that the weights arrived.

The learner sends; then each engine reports its version, the tensors that arrived, and its log-probs
of a fixed probe, and the learner reports its own log-probs. `Attestation` compares, and a
disagreement ends the run with the names of the tensors. In float32 the tolerance is a number of the
configuration; in other types it is the gap that was measured before the first step, when both sides
held the same weights for certain, times a factor. Runs in the driver, which holds no weight: the
transports are in `workers.weight_sync`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Protocol

from conf.schema import TrainConfig
from orchestrator.fleet.colocation import Colocation
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.health import Health
from workers.calls import bind
from workers.data.prompts import PromptSet
from workers.learner.policy_worker import PolicyWorker
from workers.learner.weight_client import Destination
from workers.rollout.worker import RolloutWorker
from workers.weight_sync.attestation import (
    Attestation,
    AttestationError,
    EngineEvidence,
    ProbeGap,
    Tolerance,
)
from workers.weight_sync.endpoint import PublishReport
from workers.worker_group import WorkerError, WorkerGroup

PROBE_PROMPTS = 8
PROBE_TOKENS = 64  # of each prompt, at most
INNER_SHARE = 0.9  # of the limit, for the learner's own waits: who is behind one, it knows best
PLAUSIBLE_NOISE = 0.2  # mean |gap| of log-probs above which no arithmetic type explains it


class Publishing(Protocol):
    """Publication of weights, as the training loop calls it."""

    def begin(self, version: int) -> dict[str, float]:
        """Publish the learner's present weights before the first step; return metrics."""

    def publish(self, version: int, *, stepped: bool) -> dict[str, float]:
        """Publish the learner's weights under the label `version`; return metrics.

        Args:
            version: one more than the last.
            stepped: True if the optimizer changed the weights since.
        """


class Publisher:
    """Publisher of the learner's weights to all engines of a run: a `Publishing`."""

    def __init__(
        self,
        fleet: Fleet,
        learner: WorkerGroup[PolicyWorker],
        config: TrainConfig,
        *,
        probe_prompts: PromptSet,
        colocation: Colocation,
    ) -> None:
        self._fleet, self._learner, self._config = fleet, learner, config
        self._colocation = colocation
        self._prompts = probe_prompts
        self._limit_s = config.cluster.timeouts.publish_s
        self._version, self._stepped = 0, False  # of the last publication
        self._connected: list[int] = []  # engines that the learner sends to
        self._probe: list[list[int]] = []
        self._attestation: Attestation | None = None

    def begin(self, version: int) -> dict[str, float]:
        """Connect learner and engines, publish the present weights, and set the tolerance."""
        config = self._config
        numbers = self._fleet.workers.ranks
        self._connect(numbers)
        self._probe = self._choose_probe()
        names = bind(PolicyWorker.parameter_names)
        expected = self._learner.call_first(names, timeout_s=self._limit_s)
        tolerance = Tolerance.rounding(config.rollout.probe_tolerance)
        if config.rollout.dtype != "float32" or config.model.dtype != "float32":
            self._version = version
            _, engines, own = self._send(numbers)
            if not engines:
                raise WorkerError("no rollout engine outlived the first publication; see its log")
            tolerance = self._above_noise(version, engines, own)
        self._attestation = Attestation(expected=expected, tolerance=tolerance)
        return self.publish(version, stepped=False)

    def _connect(self, numbers: list[int]) -> None:
        rollout, fleet = self._config.rollout, self._fleet
        to = Destination(
            transport=fleet.launcher.transport.name,
            dtype=rollout.dtype,
            engines=fleet.workers.only(numbers),
            nodes={number: fleet.launcher.node(number) or f"of {number}" for number in numbers},
            workers_per_engine=rollout.tensor_parallel_size,
            timeout_s=self._limit_s * INNER_SHARE,
        )
        self._learner.call(bind(PolicyWorker.connect, to), timeout_s=self._limit_s)
        self._connected = list(numbers)

    def publish(self, version: int, *, stepped: bool) -> dict[str, float]:
        """Send the learner's weights to all engines under the label `version`; return metrics.

        Args:
            version: one more than the last.
            stepped: True if the optimizer changed the weights since.

        Raises:
            AttestationError: with the names of the tensors.
            WorkerError: a rank or an engine does not answer.
        """
        self._version, self._stepped = version, stepped or self._stepped
        return self.republish()

    def republish(self) -> dict[str, float]:
        """Send the last version to all running engines, and admit those that had none yet.

        Learner and engines connect again when an engine joined or is gone. With no running engine
        nothing is sent: the first that starts is given the last version.

        Raises:
            AttestationError: with the names of the tensors.
        """
        pool = self._fleet.pool
        numbers = self._find_running()
        if not numbers:
            return {}
        joining = [number for number in numbers if pool.engines[number].health is Health.STALE]
        try:
            if joining or numbers != self._connected:
                self._connect(numbers)
            report, engines, own = self._send(numbers)
        except WorkerError:
            self._connected = []
            if not self._fleet.launcher.transport.repeatable or self._find_running() == numbers:
                raise  # the transport can't repeat it; or all run, and no engine was at fault
            return self.republish()
        if not engines:
            return {}
        metrics = self._attest(report, engines, own, stepped=self._stepped)
        self._stepped = False
        for number in joining:
            if pool.engines[number].health is Health.STALE:  # it outlived the publication
                pool.admit(number)
        return metrics

    def _find_running(self) -> list[int]:
        """Return the numbers of the engines that run.

        Before a collective transport every engine is called: one that is gone would stall all.
        """
        pool, workers = self._fleet.pool, self._fleet.workers
        numbers = [
            number
            for number, engine in pool.engines.items()
            if engine.health.receives_weights or engine.health is Health.STALE
        ]
        if not self._fleet.launcher.transport.collective:
            return numbers
        asked = workers.only(numbers).start(bind(RolloutWorker.version), timeout_s=self._limit_s)
        alive = asked.survivors()
        for number in numbers:
            if number not in alive:
                pool.lose(number, "it did not answer before a publication")
        return list(alive)

    def _send(self, numbers: list[int]) -> tuple[PublishReport, list[EngineEvidence], list[float]]:
        """Send the weights and collect the evidence of their arrival.

        Returns:
            The sender's report, the evidence of every living engine, and the learner's log-probs of
            the probe, prompt after prompt.
        """
        learner = self._learner
        rollouts = self._fleet.workers.only(numbers)
        self._colocation.receive()
        publish = bind(PolicyWorker.publish, self._version)
        report = learner.call(publish, timeout_s=self._limit_s)[0]
        self._colocation.generate()
        attest = bind(RolloutWorker.attest, self._probe)
        engines = rollouts.start(attest, timeout_s=self._limit_s)
        own = learner.start(bind(PolicyWorker.probe, self._probe), timeout_s=self._limit_s)
        answers = engines.survivors()
        for number in numbers:
            if number in report.lost or number not in answers:
                answers.pop(number, None)
                self._fleet.pool.lose(number, "it did not outlive a publication")
        evidence = [
            EngineEvidence(
                engine_id=number,
                version=version,
                received=received,
                used=used,
                probe_logprobs=list(chain.from_iterable(probe)),
            )
            for number, (version, received, used, probe) in answers.items()
        ]
        return report, evidence, list(chain.from_iterable(own.result()[0]))

    def _attest(
        self,
        report: PublishReport,
        engines: list[EngineEvidence],
        own: list[float],
        *,
        stepped: bool,
    ) -> dict[str, float]:
        assert self._attestation is not None, "begin comes before publish"
        metrics = self._attestation.check(
            report,
            engines,
            learner_logprobs=own,
            optimizer_stepped=stepped,
            diagnose=self._diagnose(report),
        )
        phases = {f"publication/{name}_s": value for name, value in report.seconds.items()}
        bandwidth = report.num_bytes / max(report.seconds["total"], 1e-9)
        if report.copy_bytes_per_s is not None:
            metrics["publication/copy_frac"] = bandwidth / report.copy_bytes_per_s
        return {
            **metrics,
            **phases,
            "publication/bytes": float(report.num_bytes),
            "publication/bytes_per_s": bandwidth,
        }

    def _diagnose(self, report: PublishReport) -> Callable[[int], Mapping[str, str]]:
        def diagnose_engine(engine_id: int) -> Mapping[str, str]:
            expected = {name: list(value) for name, value in report.fingerprints.items()}
            diagnose = bind(RolloutWorker.diagnose, expected)
            asked = self._fleet.workers.start_one(engine_id, diagnose, timeout_s=self._limit_s)
            return asked.result()[0]

        return diagnose_engine

    def _choose_probe(self) -> list[list[int]]:
        prompts = [self._prompts[row].prompt for row in range(len(self._prompts))[:PROBE_PROMPTS]]
        encode = bind(RolloutWorker.encode, prompts)
        encoded = self._fleet.workers.call_first(encode, timeout_s=self._limit_s)
        room = min(PROBE_TOKENS, self._config.rollout.max_model_len - 1)
        return [tokens[:room] for tokens in encoded if len(tokens) > 1]

    @staticmethod
    def _above_noise(version: int, engines: list[EngineEvidence], own: list[float]) -> Tolerance:
        gaps = [ProbeGap.between(own, engine.probe_logprobs) for engine in engines]
        floor = ProbeGap(mean=max(gap.mean for gap in gaps), max=max(gap.max for gap in gaps))
        if not floor.mean <= PLAUSIBLE_NOISE:
            fault = (
                f"with equal weights learner and engines differ by {floor.mean:.3g} on average, "
                f"more than arithmetic explains ({PLAUSIBLE_NOISE:g}); check rollout.dtype, "
                "model.dtype and whether vLLM supports this architecture"
            )
            raise AttestationError(version, {}, [fault])
        return Tolerance.above_noise(floor)


class FixedWeights:
    """Weights that nothing trains: a `Publishing` to engines that keep what they loaded.

    Args:
        fleet: the rollout side of the run.
        timeout_s: longest that the engines may take to label their weights.
    """

    def __init__(self, fleet: Fleet, *, timeout_s: float) -> None:
        self._fleet, self._timeout_s, self._version = fleet, timeout_s, 0

    def begin(self, version: int) -> dict[str, float]:
        """Store the label with which the engines were started."""
        self._version = version
        return {}

    def publish(self, version: int, *, stepped: bool) -> dict[str, float]:
        """Raise AssertionError: there are no other weights to publish."""
        raise AssertionError(f"version {version} (stepped={stepped}) of weights that never change")

    def republish(self) -> dict[str, float]:
        """Label the weights of engines that started since, and admit these engines."""
        pool = self._fleet.pool
        started = [number for number, own in pool.engines.items() if own.health is Health.STALE]
        label = bind(RolloutWorker.set_version, self._version)
        labels = self._fleet.workers.only(started).start(label, timeout_s=self._timeout_s)
        answers = labels.survivors()
        for number in started:
            if number in answers:
                pool.admit(number)
            else:
                pool.lose(number, "it died while its weights were labelled")
        return {}
