"""Rehearse a checked configuration: the real loop and trainer on simulated roles, in one process.

`Rehearsal` composes the parts of `orchestrator/run.py`, with simulated roles in the places of real
ones, runs them, and notes time and CPU seconds after every step. No process is started.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from algorithms.algorithm import Algorithm
from conf.schema import DataConfig, RehearsalConfig, TrainConfig
from orchestrator.checkpoints.checkpoint import CheckpointStore
from orchestrator.checkpoints.saving import Saver
from orchestrator.fleet.colocation import Colocation
from orchestrator.fleet.concurrency import concurrency_of
from orchestrator.fleet.pool import RolloutPool
from orchestrator.loop import Loop
from orchestrator.outputs import Outputs
from orchestrator.planning import architecture
from orchestrator.planning.roles import Place, role_named, roles_of
from orchestrator.rehearsal.engines import SimulatedEngines
from orchestrator.rehearsal.learner import (
    Devices,
    Ranks,
    SimulatedCritic,
    SimulatedPolicy,
    SimulatedPublisher,
)
from orchestrator.rehearsal.metering import CpuMeter
from orchestrator.rehearsal.timeline import SimulatedTime
from orchestrator.step.adaptation import Adaptation
from orchestrator.step.critic import Critic
from orchestrator.step.partition import SequenceCost
from orchestrator.step.roles import TrainingRoles
from orchestrator.supply.ledger import Ledger
from orchestrator.supply.producer import Producer
from orchestrator.supply.supply import Supply
from orchestrator.telemetry.accounting import Accounting
from orchestrator.telemetry.clock import Clock
from orchestrator.telemetry.heldout import HeldoutResult
from orchestrator.trainer import Trainer
from workers.data.prompts import PromptSet
from workers.spans import Span, Timeline
from workers.worker_group import WorkerGroup

CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """State of a run at the end of a step; everything is counted from the run's start.

    Attributes:
        time_s: simulated.
        sampling_s: seconds with a sequence running, summed over engines.
        running_s: running sequences, integrated over time and summed over engines.
        drawn_tokens: of finished responses.
        learning_s: in which the learner scored, trained or published.
        driver_s: CPU of the driver, without the simulation's.
        simulating_s: CPU of the simulation.
        samples: that trained.
        metrics: of the step.
    """

    time_s: float = 0.0
    sampling_s: float = 0.0
    running_s: float = 0.0
    drawn_tokens: int = 0
    learning_s: float = 0.0
    driver_s: float = 0.0
    simulating_s: float = 0.0
    samples: int = 0
    metrics: dict[str, float]


class Rehearsal:
    """One simulated run.

    Args:
        config: checked, with separate places for engines and learner.
        algorithm: of the run.
        folder: for prompts and the driver's checkpoints.

    Raises:
        ValueError: engines and learner share GPUs, or there is no engine; neither is simulated.
    """

    def __init__(self, config: TrainConfig, algorithm: Algorithm, folder: Path) -> None:
        if config.cluster.colocated:
            raise ValueError(
                f"cluster={config.cluster.name}: turns on shared GPUs are not rehearsed; choose a "
                "cluster= with cluster.colocated=false"
            )
        if config.rollout.replay.replays:
            raise ValueError(
                f"rollout.replay.folder={config.rollout.replay.folder}: a replay has no engines to "
                "rehearse; choose rollout=vllm"
            )
        self._config, self._algorithm, self._folder = config, algorithm, folder
        settings = replace(
            config.rehearsal,
            prompt_tokens=min(config.rehearsal.prompt_tokens, config.data.max_prompt_tokens),
        )
        self._settings = settings
        prompts = write_prompts(folder / "prompts.parquet", settings, config.data)
        self.timeline, self.meter = SimulatedTime(), CpuMeter()
        self.engines = SimulatedEngines(
            config.rollout.num_engines,
            settings,
            max_running=config.rollout.max_num_seqs,
            timeline=self.timeline,
            meter=self.meter,
            reward_parts=("simulated", *algorithm.reward_parts),
        )
        self.learner = Devices(role="learner", timeline=self.timeline)
        self._devices = [self.learner]
        self.ledger = Ledger(prompts, seed=config.seed, shuffle=config.data.shuffle)
        self.loop = self._compose(prompts)
        self._samples = 0
        self.moments: list[Moment] = []

    def run(self) -> list[Moment]:
        """Run every step; return the state after each."""
        self.loop.run(self.loop.begin(None))
        return self.moments

    def _compose(self, prompts: PromptSet) -> Loop:
        config, algorithm, timeline = self._config, self._algorithm, self.timeline
        cost = sequence_cost(config)
        stage, width = config.learner.zero_stage, config.learner.sequence_parallel_size
        ranks = self._ranks(self.learner, cost, zero_stage=stage, width=width)
        policy, reference = SimulatedPolicy(ranks, self._measured()), None
        planned = role_named(roles_of(config, algorithm), "reference")
        if planned is not None and planned.place is Place.IN_LEARNER:
            reference = policy  # with its adapter switched off
        elif planned is not None:
            shared = config.cluster.learner.num_gpus + planned.num_gpus <= 1
            own = self.learner if shared else self._own_devices("reference")
            stage = config.reference.stage(config.learner)
            ranks = self._ranks(own, cost, zero_stage=stage, width=width)
            reference = SimulatedPolicy(ranks, {})
        pool = RolloutPool(
            self.engines,
            silence_s=config.cluster.timeouts.engine_s,
            together=config.schedule.max_staleness == 0,
            concurrency=concurrency_of(config),
            clock=lambda: timeline.now,
        )
        adaptation = Adaptation(algorithm, learner=policy, reference=None)
        supply = Supply(
            ledger=self.ledger,
            groups=Producer(pool, prompts, self.ledger, config),
            publisher=SimulatedPublisher(
                settings=self._settings,
                timeline=timeline,
                meter=self.meter,
                engines=self.engines,
                learner=self.learner,
            ),
            colocation=Colocation(self.engines, WorkerGroup("learner", []), config),
        )
        outputs = Outputs(
            log=self,
            accounting=Accounting(self._timelines),
            make_clock=lambda: Clock(lambda: timeline.now),
        )
        roles = TrainingRoles(
            learner=policy, reference=reference, critic=self._critic(cost), cost=cost
        )
        trainer = Trainer(
            config=config,
            algorithm=algorithm,
            roles=roles,
            supply=supply,
            outputs=outputs,
            adaptation=adaptation,
        )
        saver = Saver(
            CheckpointStore(self._folder, config.trainer),
            parts={"ledger": self.ledger, "adaptation": adaptation},
            keepers={},
        )
        return Loop(config=config, stepper=trainer, supply=supply, saver=saver, outputs=outputs)

    def _critic(self, cost: SequenceCost) -> Critic | None:
        config = self._config
        planned = role_named(roles_of(config, self._algorithm), "critic")
        if planned is None:
            return None
        beside = planned.place is Place.BESIDE_LEARNER
        own = self.learner if beside else self._own_devices("critic")
        group = SimulatedCritic(self._ranks(own, cost, zero_stage=config.critic.zero_stage))
        return Critic(group=group, algorithm=self._algorithm, config=config, cost=cost)

    def _own_devices(self, role: str) -> Devices:
        self._devices.append(Devices(role=role, timeline=self.timeline))
        return self._devices[-1]

    def _timelines(self) -> list[Timeline]:
        """Return the timelines of engines and ranks since the last call, as workers would."""
        with self.meter.simulating():
            found = [
                Timeline(
                    role="rollout",
                    index=number,
                    spans=tuple(
                        Span(activity="generate", begin_s=begin, end_s=end)
                        for begin, end in worker.decoder.take_spans(self.timeline.now)
                    ),
                )
                for number, worker in enumerate(self.engines.workers)
            ]
            for devices in self._devices:
                found.append(Timeline(role=devices.role, index=0, spans=tuple(devices.spans)))
                devices.spans.clear()
        return found

    def _ranks(
        self, devices: Devices, cost: SequenceCost, *, zero_stage: int, width: int = 1
    ) -> Ranks:
        return Ranks(
            settings=self._settings,
            devices=devices,
            timeline=self.timeline,
            meter=self.meter,
            cost=cost,
            lockstep=zero_stage == 3,
            width=width,
        )

    def _measured(self) -> dict[str, float]:
        """Return the learner's metrics: a step that was taken, and no number for a controller."""
        read = {rule.metric: float("nan") for rule in self._algorithm.controllers.values()}
        return {**read, "learner/grad_norm": 1.0}

    def step(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        """Note the state of the run after a step."""
        self._samples += int(metrics["rollout/sequences"])
        now = self.timeline.now
        with self.meter.simulating():
            decoders = [worker.decoder for worker in self.engines.workers]
            for decoder in decoders:
                decoder.advance(now)
            moment = Moment(
                time_s=now,
                sampling_s=sum(decoder.busy_s for decoder in decoders),
                running_s=sum(decoder.filled_s for decoder in decoders),
                drawn_tokens=sum(decoder.drawn for decoder in decoders),
                learning_s=self.learner.busy_s,
                driver_s=self.meter.driver_s,
                simulating_s=self.meter.simulating_s,
                samples=self._samples,
                metrics=dict(metrics),
            )
        self.moments.append(moment)

    def heldout(self, step: int, result: HeldoutResult) -> None:
        """Refuse: a rehearsal has no held-out prompts."""
        raise AssertionError(f"held-out result {result} at step {step} of a rehearsal")


def rehearse(config: TrainConfig, algorithm: Algorithm) -> list[Moment]:
    """Run a rehearsal in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="ballast-rehearsal-") as folder:
        return Rehearsal(config, algorithm, Path(folder)).run()


def write_prompts(path: Path, settings: RehearsalConfig, data: DataConfig) -> PromptSet:
    """Write meaningless prompts, in the number and of the length that the settings give."""
    text = "word " * (settings.prompt_tokens * CHARACTERS_PER_TOKEN // len("word "))
    columns = {
        data.prompt_column: [f"{row} {text}" for row in range(settings.num_prompts)],
        data.ground_truth_column: [str(row) for row in range(settings.num_prompts)],
    }
    pq.write_table(pa.table(columns), path)
    return PromptSet(
        path, prompt_column=data.prompt_column, ground_truth_column=data.ground_truth_column
    )


def sequence_cost(config: TrainConfig) -> SequenceCost:
    """Return the cost by the model's sizes if they are known, else by tokens alone."""
    sizes = architecture.architecture_of(config.model)
    if sizes is None:
        return SequenceCost()
    return SequenceCost.of_model(
        num_parameters=sizes.active_parameters or architecture.num_parameters(sizes),
        num_layers=sizes.num_layers,
        attention_size=sizes.num_heads * sizes.head_dim,
    )


def peak_memory_bytes() -> int:
    """Return the largest resident memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
