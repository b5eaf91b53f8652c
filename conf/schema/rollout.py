"""Rollout engines and their sampling.

Read by the driver, which makes the engines' settings of it. Imports no engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conf.schema.checks import choose, require
from conf.tables.transports import AUTO, TRANSPORTS, Transport, any_of, transport_named


@dataclass(kw_only=True)
class SamplingConfig:
    """Rules by which tokens are drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: the whole vocabulary
    max_new_tokens: int = 16
    stop: list[str] = field(default_factory=list)  # strings that end a response
    stop_token_ids: list[int] = field(default_factory=list)  # and tokens, beside the model's own

    def check(self, key: str) -> None:
        """Raise a ValueError for an impossible value that stands under `key`."""
        require(self.temperature >= 0, f"{key}.temperature", self.temperature, "must be >= 0")
        require(0 < self.top_p <= 1, f"{key}.top_p", self.top_p, "must be in (0, 1]")
        require(self.top_k >= 0, f"{key}.top_k", self.top_k, "must be >= 0; 0 turns it off")
        require(
            self.max_new_tokens >= 1, f"{key}.max_new_tokens", self.max_new_tokens, "must be >= 1"
        )
        require(
            all(self.stop),
            f"{key}.stop",
            self.stop,
            "an empty string ends every response before its first token; remove it",
        )
        require(
            min(self.stop_token_ids, default=0) >= 0,
            f"{key}.stop_token_ids",
            self.stop_token_ids,
            "token ids are not negative",
        )


@dataclass(kw_only=True)
class ReplayConfig:
    """Recorded run whose groups train in the place of what engines would sample."""

    folder: str | None = None  # of that run, with its rollouts/; null: engines sample

    @property
    def replays(self) -> bool:
        """True where this run has a recording and no engines."""
        return self.folder is not None

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        require(
            self.folder != "", "rollout.replay.folder", self.folder, "name a recorded run's folder"
        )


@dataclass(kw_only=True)
class ConcurrencyConfig:
    """Limit of samples in one engine, which follows the engine's cache and queue.

    Synchronous schedules begin a whole batch at once, whose bits repeat from run to run, and set no
    limit.
    """

    adaptive: bool = True  # False: no limit in any schedule
    start: int | None = None  # null: rollout.max_num_seqs
    min: int | None = None  # null: rollout.samples_per_prompt, one group
    max: int | None = None  # null: four times rollout.max_num_seqs
    increase: int | None = None  # added by a report without pressure; null: one group
    decrease: float = 0.8  # factor under pressure

    def check(self, key: str) -> None:
        """Raise a ValueError for an impossible value that stands under `key`."""
        for name in ("start", "min", "max", "increase"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{key}.{name}", value, "must be at least 1")
        require(
            0 < self.decrease < 1,
            f"{key}.decrease",
            self.decrease,
            "must be in (0, 1); adaptive=false turns the limit off",
        )

    def bounds(self, *, max_num_seqs: int, group_size: int) -> tuple[int, int, int]:
        """Return the least, the first and the greatest limit, in samples."""
        least = self.min or group_size
        greatest = self.max or max(4 * max_num_seqs, least)
        first = self.start or min(max(max_num_seqs, least), greatest)
        return least, first, greatest


@dataclass(kw_only=True)
class RolloutConfig:
    """Rollout engines (vLLM) and what they sample."""

    num_engines: int = 1
    min_engines: int = 1  # a run goes on without engines that end again and again, down to here
    max_engines: int | None = None  # engines join up to here as the cluster has room; null: none
    tensor_parallel_size: int = 1
    samples_per_prompt: int = 8  # the group size
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    eval_sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    eval_samples_per_prompt: int = 1
    dtype: str = "auto"  # of the engine's weights; auto: what its device computes fastest
    max_model_len: int = 128  # prompt and response, tokens
    max_num_seqs: int = 128  # decoded together by one engine
    early_stop_samples: int = 0  # scored siblings before a settled group may stop; 0: never
    concurrency: ConcurrencyConfig = field(default_factory=ConcurrencyConfig)
    kv_cache_gib: float | None = 0.25  # of each device; null: what is left of the engine's GPU
    enforce_eager: bool | None = None  # no CUDA graphs, no compilation; null: so on CPU alone
    transport: str = AUTO  # of weights, a row of conf/tables/transports.py; auto: as places allow
    probe_tolerance: float = 1e-4  # |learner - engine| of a probe token in float32; mean: a tenth
    engine_kwargs: dict[str, Any] = field(default_factory=dict)  # raw, to vLLM
    replay: ReplayConfig = field(default_factory=ReplayConfig)

    @property
    def named_transport(self) -> Transport | None:
        """The row that `transport` names; None for `auto`."""
        return None if self.transport == AUTO else transport_named(self.transport)

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        require(
            self.num_engines >= 1 or self.replay.replays,
            "rollout.num_engines",
            self.num_engines,
            "must be at least 1",
        )
        require(
            1 <= self.min_engines <= max(1, self.num_engines),
            "rollout.min_engines",
            self.min_engines,
            f"must be between 1 and rollout.num_engines={self.num_engines}",
        )
        for name in (
            "tensor_parallel_size",
            "samples_per_prompt",
            "eval_samples_per_prompt",
            "max_num_seqs",
        ):
            value = getattr(self, name)
            require(value >= 1, f"rollout.{name}", value, "must be at least 1")
        require(
            self.max_engines is None or self.max_engines >= self.num_engines,
            "rollout.max_engines",
            self.max_engines,
            f"is below rollout.num_engines={self.num_engines}, which the run starts with",
        )
        choose("rollout.dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        names = tuple(row.name for row in TRANSPORTS)
        choose("rollout.transport", self.transport, (AUTO, *names))
        if (named := self.named_transport) is not None:
            growing = any_of(row for row in TRANSPORTS if row.may_grow)
            require(
                self.max_engines is None or named.may_grow,
                "rollout.max_engines",
                self.max_engines,
                f"rollout.transport={named.name} {named.limit}; choose {growing}",
            )
        self.replay.check()
        self._check_concurrency()
        require(
            self.early_stop_samples == 0 or 2 <= self.early_stop_samples < self.samples_per_prompt,
            "rollout.early_stop_samples",
            self.early_stop_samples,
            "must be 0, which never stops, or from 2 to less than rollout.samples_per_prompt="
            f"{self.samples_per_prompt}",
        )
        self.sampling.check("rollout.sampling")
        self.eval_sampling.check("rollout.eval_sampling")
        require(
            self.kv_cache_gib is None or self.kv_cache_gib > 0,
            "rollout.kv_cache_gib",
            self.kv_cache_gib,
            "must be > 0, or null for what is left of the engine's GPU",
        )
        require(
            self.sampling.temperature > 0,
            "rollout.sampling.temperature",
            self.sampling.temperature,
            "training samples need a positive temperature; greedy belongs to eval_sampling",
        )
        for name in ("sampling", "eval_sampling"):
            new_tokens = getattr(self, name).max_new_tokens
            require(
                new_tokens < self.max_model_len,
                f"rollout.{name}.max_new_tokens",
                new_tokens,
                f"leaves no room for a prompt within rollout.max_model_len={self.max_model_len}",
            )

    def _check_concurrency(self) -> None:
        key = "rollout.concurrency"
        self.concurrency.check(key)
        least, first, greatest = self.concurrency.bounds(
            max_num_seqs=self.max_num_seqs, group_size=self.samples_per_prompt
        )
        require(
            least <= first <= greatest,
            key,
            f"{{min: {least}, start: {first}, max: {greatest}}}",
            "must be in this order; null chooses from rollout.max_num_seqs and the group size",
        )
