"""Simulate rollout workers behind the real pool: calls that are answered in simulated time.

`SimulatedEngines` is a `WorkerGroup` that makes the pool's calls of `submit`, `abort` and `collect`
itself. What crosses a process boundary in a run crosses pickle here: arguments are pickled and
metadata is unpickled by the driver, at its own expense. A worker samples a group with its
`Decoder`, scores every response `reward_s` after its end, and answers `collect` with what is
finished; the batch that would hold the tokens holds their number.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from conf.schema import RehearsalConfig
from orchestrator.rehearsal.decoding import Decoder, DecodingSpeed, Siblings
from orchestrator.rehearsal.metering import CpuMeter
from orchestrator.rehearsal.timeline import SimulatedTime
from orchestrator.rehearsal.workload import Workload
from workers.calls import Call
from workers.data.requests import Collected, GroupRequest
from workers.data.trajectory import SCORED, TrajectoryMeta
from workers.rollout.worker import RolloutWorker
from workers.worker_group import WorkerGroup


@dataclass(kw_only=True, slots=True, eq=False)
class SimulatedBatch:
    """Stand-in of a record batch: the number of tokens, prompt included, of every row."""

    num_tokens: list[int] = field(default_factory=list)


@dataclass(kw_only=True, slots=True, eq=False)
class Collecting:
    """A call of `collect`: open until `answer` holds what is pickled for the driver."""

    batch: SimulatedBatch = field(default_factory=SimulatedBatch)
    answer: bytes | None = None


@dataclass(kw_only=True, slots=True, eq=False)
class Sampling(Siblings):
    """A group that an engine samples."""

    request: GroupRequest
    began: float
    ended: list[float]  # of every response
    last_versions: list[int]
    left: int


class SimulatedWorker:
    """Simulated rollout worker: one engine with its rewards."""

    def __init__(
        self,
        settings: RehearsalConfig,
        *,
        max_running: int,
        timeline: SimulatedTime,
        workload: Workload,
        answered: list[Collecting],
    ) -> None:
        self.decoder = Decoder(
            speed=DecodingSpeed(
                step_s=settings.decode_step_s,
                sequence_s=settings.decode_sequence_s,
                kv_token_s=settings.decode_kv_token_s,
                prefill_tokens_per_s=settings.prefill_tokens_per_s,
            ),
            max_running=max_running,
        )
        self._settings, self._timeline, self._workload = settings, timeline, workload
        self._answered = answered  # calls of all workers since the last `ready`
        self._groups: dict[str, Sampling] = {}  # that are neither collected nor given up
        self._finished: list[Sampling] = []
        self._open: Collecting | None = None
        self._end = math.inf  # when the next response ends, as far as is known

    def submit(self, requests: Sequence[GroupRequest], together: bool) -> None:  # noqa: ARG002
        """Begin to sample groups."""
        for request in requests:
            count = request.num_samples
            group = Sampling(
                prompt_tokens=self._settings.prompt_tokens,
                lengths=self._workload.lengths(request),
                request=request,
                began=self._timeline.now,
                ended=[0.0] * count,
                last_versions=[0] * count,
                left=count,
            )
            self._groups[request.group_id] = group
            self.decoder.add(group, self._timeline.now)
        self._set_alarm()

    def abort(self, group_ids: Sequence[str]) -> None:
        """Abort groups; none of them is collected from here on."""
        for name in group_ids:
            if (group := self._groups.pop(name, None)) is not None:
                self.decoder.remove(group, self._timeline.now)
        self._finished = [g for g in self._finished if g.request.group_id in self._groups]
        self._set_alarm()

    def pause(self, seconds: float, version: int) -> None:
        """Pause for `seconds`; running responses go on with the weights `version`."""
        self.decoder.pause(seconds, self._timeline.now, version=version)
        self._set_alarm()

    def collect(self, wait_s: float) -> Collecting:
        """Return a call that is answered once a group is finished or `wait_s` has passed."""
        call = self._open = Collecting()
        if self._finished:
            self._answer()
        else:
            self._timeline.at(self._timeline.now + wait_s, lambda: self._give_up(call))
        return call

    def _set_alarm(self) -> None:
        end = self.decoder.next_end()
        if end != self._end and end < math.inf:
            self._timeline.at(end, lambda: self._on_end(end))
        self._end = end

    def _on_end(self, end: float) -> None:
        if end != self._end:
            return  # what happened since has moved it
        now, self._end = self._timeline.now, math.inf
        for siblings, sibling in self.decoder.finish(now):
            assert isinstance(siblings, Sampling)
            siblings.ended[sibling] = now
            siblings.last_versions[sibling] = self.decoder.version
            siblings.left -= 1
            if siblings.left == 0:
                self._timeline.at(now + self._settings.reward_s, self._scored(siblings))
        self._set_alarm()

    def _scored(self, group: Sampling) -> Any:
        def event() -> None:
            if group.request.group_id not in self._groups:
                return
            self._finished.append(group)
            if self._open is not None:
                self._answer()

        return event

    def _give_up(self, call: Collecting) -> None:
        if self._open is call:
            self._answer()

    def _answer(self) -> None:
        call, self._open = self._open, None
        assert call is not None
        metas = [meta for group in self._finished for meta in self._metas(group)]
        for group in self._finished:
            del self._groups[group.request.group_id]
        call.batch.num_tokens = [meta.num_tokens for meta in metas]
        call.answer = pickle.dumps(Collected(metas=metas, load=self.decoder.report()), protocol=5)
        self._finished.clear()
        self._answered.append(call)

    def _metas(self, group: Sampling) -> list[TrajectoryMeta]:
        request, limit = group.request, group.request.sampling.max_tokens
        return [
            TrajectoryMeta(
                prompt_uid=request.prompt_uid,
                group_id=request.group_id,
                rollout_id=f"{request.group_id}/{k}",
                num_tokens=group.prompt_tokens + length,
                num_trained=length,
                num_sampled=length,
                finish_reason="length" if length == limit else "stop",
                outcome=SCORED,
                reward=reward,
                reward_parts=dict.fromkeys(self._workload.reward_parts, reward),
                min_version=group.versions[k],
                max_version=group.last_versions[k],
                generate_s=group.ended[k] - group.began,
                reward_s=self._settings.reward_s,
            )
            for k, (length, reward) in enumerate(
                zip(group.lengths, self._workload.rewards(request), strict=True)
            )
        ]


class SimulatedEngines(WorkerGroup[RolloutWorker]):
    """Simulated engines of a rehearsal, as a worker group."""

    def __init__(
        self,
        count: int,
        settings: RehearsalConfig,
        *,
        max_running: int,
        timeline: SimulatedTime,
        meter: CpuMeter,
        reward_parts: tuple[str, ...],
    ) -> None:
        self._answered: list[Collecting] = []
        workload = Workload(settings=settings, reward_parts=reward_parts)
        self.workers = [
            SimulatedWorker(
                settings,
                max_running=max_running,
                timeline=timeline,
                workload=workload,
                answered=self._answered,
            )
            for _ in range(count)
        ]
        self._timeline, self._meter = timeline, meter
        super().__init__("rollout", self.workers)

    def send(self, rank: int, call: Call[RolloutWorker, Any]) -> Any:
        """Make a call, which costs the driver the pickling of its arguments."""
        pickle.dumps(call.args, protocol=5)
        with self._meter.simulating():
            return getattr(self.workers[rank], call.method)(*call.args)

    def send_pair(self, rank: int, call: Call[RolloutWorker, Any]) -> Any:
        """Call `collect`: metadata to come, and the batch that it describes."""
        collecting: Collecting = self.send(rank, call)
        return collecting, collecting.batch

    def ready(self, refs: Sequence[Any], *, timeout_s: float) -> list[Any]:
        """Let time pass until a call has answered, `timeout_s` at most."""
        with self._meter.simulating():
            limit = self._timeline.now + timeout_s
            self._timeline.run_while(lambda: not self._answered, limit=limit)
            asked = set(refs)
            found = [ref for ref in self._answered if ref in asked]
            self._answered.clear()
            return found

    def answer(self, ref: Any) -> Any:
        """Metadata, unpickled as in a run."""
        assert isinstance(ref, Collecting)
        assert ref.answer is not None, "only a ready call is asked for its answer"
        return pickle.loads(ref.answer)
