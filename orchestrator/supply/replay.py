"""Supply the groups of a recorded run instead of sampled ones: `rollout=replay`, in the driver.

Step k trains the next recorded step, its groups in their recorded order, with the recorded rewards
and `rollout_logprobs`; log-probs of the policy and of the reference, values and advantages are
computed anew. Nothing is sampled, scored or published. So two algorithms on one recording read the
same bits, and the recorded algorithm, seed and model give the recorded weights again.

A training run records the groups that it trained: groups that its filters or its staleness bound
dropped are not in the record. `trainer=rollout_only` applies no filter and records them.

`weight_versions` and the staleness that is counted from them are the recorded run's; the distance
of this run's policy from the recorded one is `mismatch/abs_mean`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conf.schema import TrainConfig
from orchestrator.planning.sources import Sources
from orchestrator.step.samples import whole_samples
from orchestrator.supply.ledger import Ledger
from orchestrator.supply.recording import PendingStep, Recording
from orchestrator.supply.source import NothingLeftError, Taken, prompt_of
from orchestrator.telemetry.counting import counted
from workers.data.trajectory import RolloutGroup
from workers.models.vocabulary import tokenizer_digest, vocab_size

# What a recording fixes: the shape of its steps, and the distribution its tokens were drawn from.
FIXED = (
    "trainer.prompts_per_step",
    "rollout.samples_per_prompt",
    "rollout.sampling.temperature",
    "rollout.sampling.max_new_tokens",
    "data.max_prompt_tokens",
)


def open_recording(config: TrainConfig) -> Recording | None:
    """Open the recording that a run replays and check its files; None if engines sample.

    Raises:
        ValueError: a folder, file or setting is wrong; the message names it and the remedy.
    """
    folder = config.rollout.replay.folder
    if folder is None:
        return None
    recording = Recording.open(Path(folder).absolute())
    theirs = OmegaConf.load(recording.run_dir / "config.yaml")
    ours = OmegaConf.structured(config)
    differing = [
        f"{key}={value}"
        for key in FIXED
        if (value := OmegaConf.select(theirs, key)) != OmegaConf.select(ours, key)
    ]
    if differing:
        raise ValueError(
            f"{recording.run_dir} was recorded with {', '.join(differing)}, which a replay can't "
            f"change; add {' '.join(differing)}"
        )
    return recording


def check_sources(recording: Recording, sources: Sources) -> None:
    """Refuse a recording of other prompts, or of another vocabulary.

    Raises:
        ValueError: the prompts or the tokenizer differ; the message names both and the remedy.
    """
    manifest = json.loads((recording.run_dir / "manifest.json").read_text())
    if sources.train.digest not in manifest["data_sha256"].values():
        raise ValueError(
            f"{recording.run_dir} was recorded with other prompts than {sources.train.where}, so "
            "the ledger could not name them; replay with that run's data="
        )
    theirs, ours = manifest.get("tokenizer_sha256"), tokenizer_digest(sources.model_path)
    if None not in (theirs, ours) and theirs != ours:
        raise ValueError(
            f"{recording.run_dir} was recorded with another tokenizer than that of "
            f"{sources.model_path}; replay with a model that has the recording's"
        )
    size = vocab_size(sources.model_path)
    if size is not None:
        recording.check_tokens(size)


class Replay:
    """Source of recorded groups, step by step: a `GroupSource`, and `Stateful` for its position.

    Args:
        recording: the steps to train.
        ledger: in which every recorded prompt is marked.
        config: of this run.
    """

    def __init__(self, recording: Recording, ledger: Ledger, config: TrainConfig) -> None:
        self._recording, self._ledger, self._config = recording, ledger, config
        self._position = 0  # steps taken from the recording
        self._taken_from = 0  # position before the last `take`
        self._ahead: PendingStep | None = None

    def run_ahead(self, version: int) -> None:  # noqa: ARG002 - the signature of GroupSource
        """Begin to read the next step."""
        if self._ahead is None and self._position < len(self._recording.files):
            limit_s = self._config.cluster.timeouts.checkpoint_s
            self._ahead = self._recording.begin_read(self._position, timeout_s=limit_s)

    def take(
        self, step: int, version: int, may_train: Callable[[RolloutGroup], str | None]
    ) -> Taken:
        """Return the groups of the next recorded step of which at least one may train.

        Raises:
            NothingLeftError: the recording is at its end.
        """
        self._ledger.begin_step(step)
        self._taken_from = self._position
        siblings = self._config.rollout.samples_per_prompt
        chosen: list[RolloutGroup] = []
        num_late = 0
        rewards: list[float] = []
        dropped: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        while not chosen:
            for group in self._next_step(version, dropped):
                samples = whole_samples(group.metas)
                failed.update(meta.outcome for meta in samples if meta.outcome != "scored")
                rewards += [meta.reward for meta in samples if meta.reward is not None]
                epoch, row = prompt_of(group.group_id)
                self._ledger.begin(epoch, row)
                why = group.too_few(samples_per_prompt=siblings) or may_train(group)
                if why is None:
                    chosen.append(group)
                    num_late += self._is_late(group, version)
                    self._ledger.trained(epoch, row, step)
                else:
                    dropped[why] += 1
                    self._ledger.dropped(epoch, row, why)
        return Taken(
            groups=tuple(chosen),
            dropped=dropped,
            failed=failed,
            num_late=num_late,
            rewards=tuple(rewards),
        )

    def give_back(self) -> None:
        """Undo the last `take` in the ledger, and go back to its place in the recording."""
        self._ledger.reopen_step()
        self._position, self._ahead = self._taken_from, None

    def _next_step(self, version: int, dropped: Counter[str]) -> list[RolloutGroup]:
        self.run_ahead(version)
        if self._ahead is None:
            count = len(self._recording.files)
            since = f"; the last groups were dropped: {dict(dropped)}" if dropped else ""
            raise NothingLeftError(
                f"the recording {self._recording.run_dir} is at its end after "
                f"{counted(count, 'step')}{since}"
            )
        groups, self._ahead = self._ahead.groups(), None
        self._position += 1
        return groups

    def _is_late(self, group: RolloutGroup, version: int) -> bool:
        drawn = min(group.metas[row].min_version for row in group.usable_rows())
        return version - drawn > self._config.schedule.max_staleness

    def metrics(self) -> dict[str, float]:
        """Return the number of recorded steps that are left."""
        return {"groups/recorded_steps_left": float(len(self._recording.files) - self._position)}

    def state_dict(self) -> dict[str, Any]:
        """Return the recording's name and the position in it."""
        return {"run": self._recording.run_dir.name, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last step that was taken.

        Raises:
            ValueError: the checkpoint is of another recording, or of more steps than there are.
        """
        have = (self._recording.run_dir.name, len(self._recording.files))
        if state["run"] != have[0] or state["position"] > have[1]:
            raise ValueError(
                f"rollout.replay.folder={self._recording.run_dir} has "
                f"{counted(have[1], 'step')} of {have[0]}, the checkpoint has trained "
                f"{state['position']} of {state['run']}; "
                "resume with that folder, or choose another run_name="
            )
        self._position, self._ahead = state["position"], None


class NoPublication:
    """Publication to no engine: `Publishing` of a run in which none samples from the policy."""

    def begin(self, version: int) -> dict[str, float]:  # noqa: ARG002
        """Do nothing: there is no engine to connect to."""
        return {}

    def publish(self, version: int, *, stepped: bool) -> dict[str, float]:  # noqa: ARG002
        """Do nothing: there is no engine to send weights to."""
        return {}
