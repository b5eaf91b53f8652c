"""Define trajectories as Arrow: one schema from the rollout engine to the learner and to Parquet.

The module holds the columns of a finished sample, the record batch that carries the columns through
the object store, and the metadata, which alone reach the driver. Nothing is stored here. Data flow
from `Trajectory` (one sample, in the rollout worker) to a record batch, which ranks read; the
driver has `TrajectoryMeta`, and the place of the row that the metadata describe.

Per-token columns are aligned to `tokens` (prompt and response): element i belongs to token i, so
`rollout_logprobs[i]` is log mu(token_i | tokens_<i). Prompt positions hold 0.0 and a False
`loss_mask`. Columns computed later (`old_logprobs`, `advantages`, ...) travel as record batches of
their own (`plans.computed_columns`).

Lists and texts are of Arrow's large types: a step of 100,000 long samples holds more tokens and
more text than the 2^31 that the small ones can address.

Example: a prompt of two tokens and a response of two,

    tokens            [52, 61, 55, 2]
    loss_mask         [False, False, True, True]
    rollout_logprobs  [0.0, 0.0, -0.31, -0.02]
    weight_versions   [-1, -1, 7, 7]
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workers.data.images.columns import FILE_TYPE, SPAN_TYPE, as_spans, spans_as_structs
from workers.data.images.spans import ImageSpan
from workers.data.turns import TURN_TYPE, TurnSpan, as_structs, from_structs

SCHEMA_VERSION = 5  # raised whenever a column is added, or changes its name or its meaning
VERSION_KEY = b"ballast.schema_version"
SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("begun_version", pa.int32()),
        ("prompt_uid", pa.string()),
        ("group_id", pa.string()),
        ("rollout_id", pa.string()),
        ("branch", pa.int32()),
        ("dataset", pa.string()),
        ("tokens", pa.large_list(pa.int32())),
        ("loss_mask", pa.large_list(pa.bool_())),
        ("rollout_logprobs", pa.large_list(pa.float32())),
        ("weight_versions", pa.large_list(pa.int32())),
        ("finish_reason", pa.string()),
        ("outcome", pa.string()),
        ("reward", pa.float32()),
        ("reward_parts", pa.map_(pa.string(), pa.float32())),
        ("reward_notes", pa.map_(pa.string(), pa.string())),
        ("num_turns", pa.int32()),
        ("turns", TURN_TYPE),
        ("response_text", pa.large_string()),
        ("timings", pa.map_(pa.string(), pa.float32())),
        ("images", SPAN_TYPE),
        ("image_files", FILE_TYPE),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)

SCORED = "scored"
STOPPED_EARLY = "dropped:early_stop"  # the sample could no longer change its group's verdict
MAX_REASON_CHARS = 300


def reason_of(error: BaseException) -> str:
    """Return an error as the reason of an outcome, in one line of at most `MAX_REASON_CHARS`."""
    try:
        text = str(error)
    except Exception:  # a user's class makes the text
        text = "an error without a text"
    return " ".join(f"{type(error).__name__}: {text}".split())[:MAX_REASON_CHARS]


def recordable(text: str) -> str:
    """Return a text that Arrow can hold: half a surrogate pair, no Unicode, becomes "?"."""
    return text.encode(errors="replace").decode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One row of a finished sample. Lists are aligned to `tokens`, L in number.

    A sample whose history was rewritten has several rows, its branches, which share `rollout_id`
    and all that is said of the whole sample: outcome, reward and response.

    Example, a prompt of two tokens and a response of two:
        Trajectory(
            run_id="quickstart",
            begun_version=7,
            prompt_uid="train:7",
            group_id="0-7",
            rollout_id="0-7/0",
            dataset="add",
            tokens=[52, 61, 55, 2],
            loss_mask=[False, False, True, True],
            rollout_logprobs=[0.0, 0.0, -0.31, -0.02],
            weight_versions=[-1, -1, 7, 7],
            finish_reason="stop",
            outcome="scored",
            reward=1.0,
            reward_parts={"exact": 1.0},
            turns=(TurnSpan(number=1, start=2, end=4, finish_reason="stop", state=7),),
            response_text="5",
            timings={"generate": 0.8, "reward": 0.01},
        )
    """

    run_id: str
    begun_version: int  # of the weights when its group was begun
    prompt_uid: str
    group_id: str
    rollout_id: str
    dataset: str
    tokens: Sequence[int]  # [L]
    loss_mask: Sequence[bool]  # [L]
    rollout_logprobs: Sequence[float]  # [L]
    weight_versions: Sequence[int]  # [L], -1 where the sampler did not draw the token
    finish_reason: str  # stop, length or abort
    outcome: str  # scored, dropped:<why> or failed:<why>
    reward: float | None  # None unless scored
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    reward_notes: Mapping[str, str] = field(default_factory=dict)  # texts of the scorer
    num_turns: int = 1  # of the whole sample
    turns: Sequence[TurnSpan] = ()  # of this row
    branch: int = 0  # number of this row among those of its sample
    response_text: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds
    images: Sequence[ImageSpan] = ()  # places of the images, in prompt and observations
    image_files: Sequence[bytes] = field(default=(), repr=False)  # of each, whole

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name))
            for name in ("tokens", "loss_mask", "rollout_logprobs", "weight_versions")
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{self.rollout_id}: columns of unequal length {lengths}; align them")
        if (self.outcome == SCORED) != (self.reward is not None):
            raise ValueError(
                f"{self.rollout_id}: outcome={self.outcome!r} with reward={self.reward!r}; "
                "a reward belongs to outcome 'scored' and to no other"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryMeta:
    """Metadata of one trajectory, which the driver keeps: a few bytes, never the tokens.

    Example, of the trajectory in the example of `Trajectory`:
        TrajectoryMeta(
            prompt_uid="train:7",
            group_id="0-7",
            rollout_id="0-7/0",
            num_tokens=4,
            num_trained=2,
            num_sampled=2,
            finish_reason="stop",
            outcome="scored",
            reward=1.0,
            reward_parts={"exact": 1.0},
            min_version=7,
            max_version=7,
            generate_s=0.8,
            reward_s=0.01,
            num_prompt=2,
            prompt_crc=1726259858,
        )
    """

    prompt_uid: str
    group_id: str
    rollout_id: str
    num_tokens: int  # prompt and response
    num_trained: int  # True positions of the loss mask
    num_sampled: int  # tokens that the engine drew
    finish_reason: str
    outcome: str
    reward: float | None
    reward_parts: Mapping[str, float]
    min_version: int  # of the drawn tokens
    max_version: int
    generate_s: float
    reward_s: float
    num_prompt: int = 0  # tokens before the first drawn one; all where none was drawn
    prompt_crc: int = 0  # checksum of these tokens: siblings with an equal one share them
    num_turns: int = 1  # of the whole sample
    branch: int = 0  # of the row among those of its sample


def describe(trajectory: Trajectory) -> TrajectoryMeta:
    """Return the metadata of one trajectory."""
    versions = np.asarray(trajectory.weight_versions, dtype=np.int32)
    drawn = versions[versions >= 0].tolist()
    tokens = np.asarray(trajectory.tokens, dtype=np.int32)
    places = [(span.offset, span.digest) for span in trajectory.images]
    num_prompt, prompt_crc = prompt_of(tokens, versions, places)
    return TrajectoryMeta(
        prompt_uid=trajectory.prompt_uid,
        group_id=trajectory.group_id,
        rollout_id=trajectory.rollout_id,
        num_tokens=len(trajectory.tokens),
        num_trained=sum(trajectory.loss_mask),
        num_sampled=len(drawn),
        finish_reason=trajectory.finish_reason,
        outcome=trajectory.outcome,
        reward=trajectory.reward,
        reward_parts=dict(trajectory.reward_parts),
        min_version=min(drawn, default=-1),
        max_version=max(drawn, default=-1),
        generate_s=float(trajectory.timings.get("generate", 0.0)),
        reward_s=float(trajectory.timings.get("reward", 0.0)),
        num_prompt=num_prompt,
        prompt_crc=prompt_crc,
        num_turns=trajectory.num_turns,
        branch=trajectory.branch,
    )


def prompt_of(
    tokens: npt.NDArray[np.int32],
    versions: npt.NDArray[np.int32],
    images: Sequence[tuple[int, str]] = (),
) -> tuple[int, int]:
    """Count the tokens before the first drawn one, and return the count with their CRC-32.

    Args:
        tokens: [L] of a trajectory.
        versions: [L] the weight version of each, -1 where the sampler did not draw it.
        images: offset and digest of each; those before the first drawn token are in the checksum.
    """
    drawn = np.flatnonzero(versions >= 0)
    count = int(drawn[0]) if len(drawn) else len(tokens)
    digests = [digest for offset, digest in images if offset < count]
    return count, zlib.crc32(tokens[:count].tobytes(), zlib.crc32("".join(digests).encode()))


def to_record_batch(trajectories: Sequence[Trajectory]) -> pa.RecordBatch:
    """Convert trajectories to rows of `SCHEMA`, in the given order."""
    columns = []
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        values = [getattr(trajectory, name) for trajectory in trajectories]
        if pa.types.is_map(kind):
            values = [list(value.items()) for value in values]
        elif kind == SPAN_TYPE:
            values = [spans_as_structs(value) for value in values]
        elif kind == TURN_TYPE:
            values = [as_structs(value) for value in values]
        columns.append(pa.array(values, type=kind))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def from_record_batch(batch: pa.RecordBatch) -> list[Trajectory]:
    """Convert a record batch of `to_record_batch` back to trajectories."""
    rows = batch.to_pylist()
    for row in rows:
        for name in ("reward_parts", "reward_notes", "timings"):
            row[name] = dict(row[name])
        row["images"] = as_spans(row["images"])
        row["image_files"] = tuple(row["image_files"])
        row["turns"] = from_structs(row["turns"])
    return [Trajectory(**row) for row in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    """Finished siblings of one prompt: metadata, and rows [start, start + len) of a batch.

    Example, two siblings in rows 4 and 5 of the record batch behind `ref_0`:
        RolloutGroup(group_id="0-7", metas=(first, second), batch=ref_0, start=4)
    """

    group_id: str
    metas: tuple[TrajectoryMeta, ...]
    batch: Any  # object reference of a record batch
    start: int

    def usable_rows(self) -> list[int]:
        """Return the positions of the siblings that have a reward and a token to train."""
        return [
            row
            for row, meta in enumerate(self.metas)
            if meta.outcome == SCORED and meta.num_trained > 0
        ]

    def failed_rows(self) -> list[int]:
        """Return the positions of the rows of siblings that failed."""
        return [row for row, meta in enumerate(self.metas) if meta.outcome.startswith("failed:")]

    def too_few(self, *, samples_per_prompt: int) -> str | None:
        """Return the most frequent outcome if too few siblings are usable; None if enough are."""
        needed = 2 if samples_per_prompt > 1 else 1
        if len({self.metas[row].rollout_id for row in self.usable_rows()}) >= needed:
            return None
        outcomes = Counter(meta.outcome for meta in self.metas)
        return outcomes.most_common(1)[0][0].split(":", 1)[-1]
