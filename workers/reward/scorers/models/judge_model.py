"""Say where a judge is asked: a service with a URL, or the engines of the run's own.

The driver makes a `JudgeModel` of the configuration, and fills in the engines' addresses once the
engines run. Scoring processes ask. Starts no model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from workers.reward.service import check_url


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeEngines:
    """Running engines of the run's own judge.

    Example: two engines of one model:
        JudgeEngines(urls=("http://10.0.0.1:23456/v1", "http://10.0.0.2:21212/v1"),
                     model="/models/judge", token_variable="BALLAST_JUDGE_KEY")

    Attributes:
        urls: of all engines, up to `/chat/completions`.
        model: its name there.
        token_variable: the environment variable with the token that the engines ask for.
    """

    urls: tuple[str, ...]
    model: str
    token_variable: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeModel:
    """One judge.

    Attributes:
        url: of the service, up to `/chat/completions`, such as http://localhost:8000/v1; None for
            the engines of the run's own.
        model: name of the model there; None beside a `url` of None.
        token_variable: an environment variable with a bearer token; None to send none.
        weight: of the judge's rewards in the mean.
        calls_per_minute: at most, by each scoring process; None: as many as come.
        engines: addresses of the run's own; filled in when they run.
    """

    url: str | None = None
    model: str | None = None
    token_variable: str | None = None
    weight: float = 1.0
    calls_per_minute: float | None = None
    engines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.url is not None:
            check_url(self.url)
            if self.model is None:
                raise ValueError(f"model of the judge at {self.url} must be its name there")
        elif not self.engines and (self.model is not None or self.token_variable is not None):
            raise ValueError(
                f"url of the judge {self.model!r} is null, so the run's own engines serve it, "
                "whose model is reward.engine.model: give a url, or leave out model and "
                "token_variable"
            )
        if not self.weight > 0:
            raise ValueError(f"weight of the judge {self.model!r} must be positive: {self.weight}")
        if self.calls_per_minute is not None and not self.calls_per_minute > 0:
            raise ValueError(
                f"calls_per_minute must be positive or null, got {self.calls_per_minute}"
            )

    @property
    def waits(self) -> bool:
        """True while it is not known where the engines of the run's own are."""
        return self.url is None and not self.engines

    def on(self, engines: JudgeEngines) -> JudgeModel:
        """Return the judge with the run's own engines filled in; itself where it is a service."""
        if self.url is not None:
            return self
        return replace(
            self,
            engines=engines.urls,
            model=engines.model,
            token_variable=engines.token_variable,
        )

    def addresses(self, key: str) -> list[str]:
        """Return where a call goes: first to its own engine, then to the others.

        Args:
            key: of the call. Equal calls go to the same engine, and different ones to all alike.
        """
        if self.url is not None:
            return [self.url]
        first = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % len(self.engines)
        return [*self.engines[first:], *self.engines[:first]]


def on_engines(scorer: Any, engines: JudgeEngines) -> Any:
    """Return a scorer whose judges ask the run's own engines; itself where it has none of them."""
    fill = getattr(scorer, "on_engines", None)
    return scorer if fill is None else fill(engines)
