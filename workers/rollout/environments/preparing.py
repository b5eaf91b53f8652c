"""Prepare an environment in the rollout worker, once, before its first rollout.

An environment that needs more than its settings (processes, a port, the model's tokenizer) has a
method `prepare`, whose result plays. An environment plays in threads, one for each rollout, unless
its attribute `never_blocks` is true: then the worker's event loop plays it. Knows no environment by
name.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from workers.rollout.environments.contract import Environment
from workers.rollout.environments.threaded import ThreadedEnvironment


class Preparable(Protocol):
    """Settings of an environment, which become an environment in each rollout worker."""

    def prepare(self, tokenizer: Any) -> Environment:
        """Return the environment that plays; raise what keeps it from playing.

        What blocks may block here: the call has a thread of its own.

        Args:
            tokenizer: of the model.
        """


def prepared(environment: Environment | Preparable, tokenizer: Any) -> Environment:
    """Return the environment that plays: what `prepare` returns, or else the environment itself.

    What may block the event loop comes back as an environment that plays it in threads.
    """
    prepare = getattr(environment, "prepare", None)
    plays = cast(Environment, environment if prepare is None else prepare(tokenizer))
    return plays if getattr(plays, "never_blocks", False) else ThreadedEnvironment(plays)
