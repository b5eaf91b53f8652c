"""Publish the learner's weights to every engine, and prove that the weights arrived.

The learner sends; then each engine reports its version, the tensors that arrived, and its log-probs
of a fixed probe, and the learner reports its own log-probs. `Attestation` compares, and a
disagreement ends the run with the names of the tensors. In float32 the tolerance is a number of the
configuration; in other types it follows the model's own rounding, which the learner measures in
every publication. Runs in the driver, which holds no weight: the
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
from workers.data.probe import LearnerProbe, ProbeSequence, choose_probe
from workers.data.prompts import PromptSet
from workers.learner.policy_worker import PolicyWorker
from workers.learner.weight_client import Destination
from workers.rollout.worker import RolloutWorker
from workers.weight_sync.attestation import (
    Attestation,
    AttestationError,
    EngineEvidence,
    Noise,
    ProbeGap,
    Tolerance,
)
from workers.weight_sync.endpoint import PublishReport
from workers.worker_group import WorkerError, WorkerGroup, divide, is_death

PROBE_PROMPTS = 8
INNER_SHARE = 0.9  # of the limit, for the learner's own waits: who is behind one, it knows best


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
        self._probe: list[ProbeSequence] = []
        self._attestation: Attestation | None = None
        dtypes = {config.rollout.dtype, config.model.dtype}
        self._exact = dtypes == {"float32"}  # both sides round alike
        self._noise: Noise | None = None
        # The threads of two processes that compute at once on the same cores wait for one another
        # at the end of every operation: one process after the other is faster.
        cluster = config.cluster
        self._shares_cores = not (cluster.learner.num_gpus or cluster.rollout.num_gpus)

    def begin(self, version: int) -> dict[str, float]:
        """Publish the present weights to all engines that run, and set the tolerance."""
        self._probe = self._choose_probe()
        names = bind(PolicyWorker.parameter_names)
        expected = self._learner.call_first(names, timeout_s=self._limit_s)
        if not self._exact:
            self._version = version
            _, engines, own = self._deliver()
            if not engines:
                raise WorkerError("no rollout engine outlived the first publication; see its log")
            self._noise = self._measure_noise(version, engines, own)
        tolerance = Tolerance.rounding(self._config.rollout.probe_tolerance)
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

        With no engine there is nothing to do: the first that starts is given the last version.

        Raises:
            AttestationError: with the names of the tensors.
            WorkerError: it failed, and no engine was the cause.
        """
        pool = self._fleet.pool
        report, engines, own = self._deliver()
        if report is None or not engines:
            return {}
        metrics = self._attest(report, engines, own, stepped=self._stepped)
        self._stepped = False
        for engine in engines:
            if pool.engines[engine.engine_id].health is Health.STALE:
                pool.admit(engine.engine_id)
        return metrics

    def _deliver(self) -> tuple[PublishReport | None, list[EngineEvidence], LearnerProbe]:
        """Send to all engines that run; without those that end or hang meanwhile, once more.

        Learner and engines connect again when an engine joined, is gone, or was cut short.
        """
        pool, transport = self._fleet.pool, self._fleet.launcher.transport
        while numbers := self._find_running(ask=transport.collective):  # a lost one would stall all
            joining = any(pool.engines[number].health is Health.STALE for number in numbers)
            try:
                if joining or numbers != self._connected:
                    self._connect(numbers)
                return self._send(numbers)
            except WorkerError:
                self._connected = []
                if not transport.repeatable:
                    raise  # the learner hangs with the engine that it waits for
                if self._find_running(ask=True) == numbers:
                    raise  # all run: no engine was at fault
        return None, [], LearnerProbe(logprobs=[])

    def _find_running(self, *, ask: bool) -> list[int]:
        """Return the engines that run; if they are asked, those that answer. The others are ended.

        An engine that hangs is no different from one that is gone: it is left out, comes back
        under `recovery.py`, and the others need not wait for it again.
        """
        pool, workers = self._fleet.pool, self._fleet.workers
        numbers = [
            number
            for number, engine in pool.engines.items()
            if engine.health.receives_weights or engine.health is Health.STALE
        ]
        if not ask:
            return numbers
        limit_s = min(self._limit_s, self._config.cluster.timeouts.engine_s)
        asked = workers.only(numbers).start(bind(RolloutWorker.version), timeout_s=limit_s)
        answers, failures = divide(asked.outcomes())
        for number, why in failures.items():
            pool.kill(number, str(why))
        return list(answers)

    def _send(self, numbers: list[int]) -> tuple[PublishReport, list[EngineEvidence], LearnerProbe]:
        """Send the weights and collect the evidence of their arrival.

        Returns:
            The sender's report, the evidence of every living engine, and the learner's own probe.
        """
        learner = self._learner
        rollouts = self._fleet.workers.only(numbers)
        self._colocation.receive()
        publish = bind(PolicyWorker.publish, self._version)
        report = learner.call(publish, timeout_s=self._limit_s)[0]
        self._colocation.generate()
        own = learner.start(bind(PolicyWorker.probe, self._probe), timeout_s=self._limit_s)
        if self._shares_cores:
            own.ready(wait_s=self._limit_s)
        attest = bind(RolloutWorker.attest, self._probe)
        engines = rollouts.start(attest, timeout_s=self._limit_s)
        answers, failures = divide(engines.outcomes())
        if not answers and not any(map(is_death, failures.values())):
            raise next(iter(failures.values()))  # the fault of none of them
        for number in report.lost - set(failures):
            del answers[number]
            failures[number] = WorkerError("the learner lost it in a publication")
        for number, why in failures.items():
            self._fleet.pool.kill(number, str(why))
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
        logprobs = list(chain.from_iterable(own.result()[0]))
        if self._exact:
            return report, evidence, LearnerProbe(logprobs=logprobs)
        dtype = self._config.rollout.dtype
        rounded = bind(PolicyWorker.probe, self._probe, engine_dtype=dtype)
        other = list(chain.from_iterable(learner.call(rounded, timeout_s=self._limit_s)[0]))
        return report, evidence, LearnerProbe(logprobs=logprobs, rounded=other)

    def _attest(
        self,
        report: PublishReport,
        engines: list[EngineEvidence],
        own: LearnerProbe,
        *,
        stepped: bool,
    ) -> dict[str, float]:
        assert self._attestation is not None, "begin comes before publish"
        if self._noise is not None:
            self._attestation.tolerance = self._noise.tolerance(_rounding(own))
        metrics = self._attestation.check(
            report,
            engines,
            learner_logprobs=own.logprobs,
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
            "publication/probe_allowed_mean": self._attestation.tolerance.mean,
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

    def _choose_probe(self) -> list[ProbeSequence]:
        prompts = [self._prompts[row] for row in range(len(self._prompts))[:PROBE_PROMPTS]]
        encode, number = bind(RolloutWorker.encode, prompts), self._find_running(ask=False)[0]
        asked = self._fleet.workers.start_one(number, encode, timeout_s=self._limit_s)
        encoded = asked.result()[0]
        context = self._config.rollout.max_model_len - 1
        return choose_probe(encoded, context=context, budget=self._config.learner.token_budget)

    @staticmethod
    def _measure_noise(version: int, engines: list[EngineEvidence], own: LearnerProbe) -> Noise:
        try:
            gaps = [ProbeGap.between(own.logprobs, engine.probe_logprobs) for engine in engines]
            ratios = [Noise.measured(gap, _rounding(own)) for gap in gaps]
        except ValueError as error:
            fault = f"{error}; check rollout.dtype, model.dtype and whether vLLM supports the model"
            raise AttestationError(version, {}, [fault]) from error
        return Noise(mean=max(r.mean for r in ratios), max=max(r.max for r in ratios))


def _rounding(own: LearnerProbe) -> ProbeGap:
    """Return the gap that the learner's rounding alone makes."""
    return ProbeGap.between(own.logprobs, own.rounded)
