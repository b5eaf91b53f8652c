"""vLLM's `AsyncLLM` as a process that is started, bounded, put to sleep and ended.

The ground under the other two: `vllm_weights` changes the weights of what runs here, `vllm_engine`
samples from it. Nothing here knows what is asked; every wait is bounded, because a dead EngineCore
leaves its callers pending for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from workers.data.requests import EngineLoad
from workers.engines.vllm.lifeline import declare_owner
from workers.engines.vllm.settings import VLLMSettings
from workers.worker_group import EngineDiedError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from workers.engines.vllm.scheduler_watch import SchedulerWatch

SHUTDOWN_TIMEOUT_S = 10.0  # EngineCore is killed after it
LOOK_EVERY_S = 0.5  # whether EngineCore lives


class EngineTimeoutError(TimeoutError):
    """The engine did not answer in time; the message names what was waited for."""


class VLLMProcess:
    """One running vLLM.

    Args:
        settings: what to run. The process must have been started with `engine_env(settings, ...)`.
    """

    def __init__(self, settings: VLLMSettings) -> None:
        self.settings = settings
        self._engine: AsyncLLM | None = None
        self._watch: SchedulerWatch | None = None
        self._limits: set[asyncio.Timeout] = set()  # of the calls in flight
        self._look: asyncio.Task[None] | None = None

    async def start(self, version: int = 0) -> None:
        """Starts EngineCore and labels the weights of the model folder.

        Args:
            version: the label until the first publication.
        """
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from workers.engines.vllm.scheduler_watch import SchedulerWatch

        declare_owner()
        arguments = AsyncEngineArgs(**self.settings.engine_args())
        self._engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[SchedulerWatch])
        assert self._engine.logger_manager is not None
        (self._watch,) = self._engine.logger_manager.stat_loggers
        if self._look is not None:
            self._look.cancel()  # of an engine that died, whose end is not this one's
        self._limits = set()
        self._look = asyncio.get_running_loop().create_task(self._until_dead(self._engine))
        await self.set_version(version)

    async def _until_dead(self, engine: AsyncLLM) -> None:
        """Ends the calls in flight once EngineCore is gone, which vLLM leaves pending."""
        while not engine.errored:
            await asyncio.sleep(LOOK_EVERY_S)
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())

    async def set_version(self, version: int) -> None:
        """Labels the weights in use without changing them."""
        async with self._bounded("set_version"):
            await self._live().update_weight_version(str(version))

    async def shutdown(self) -> None:
        """Ends EngineCore and its workers; safe to call twice."""
        if self._look is not None:
            self._look.cancel()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=SHUTDOWN_TIMEOUT_S)

    async def sleep(self, level: int = 1) -> None:
        """Frees device memory: 1 keeps the weights in host memory, 2 drops them."""
        async with self._bounded(f"sleep(level={level})"):
            await self._live().sleep(level)

    async def wake(self, tags: list[str] | None = None) -> None:
        """Takes device memory back ("weights", "kv_cache", or both with None)."""
        async with self._bounded(f"wake(tags={tags})"):
            await self._live().wake_up(tags)

    def load(self) -> EngineLoad:
        """What the scheduler saw since the last call; asks EngineCore nothing."""
        return EngineLoad() if self._watch is None else self._watch.report()

    def check_health(self) -> None:
        """Looks whether EngineCore lives; asks it nothing.

        Raises:
            EngineDiedError: it is gone, or was never started.
        """
        if self._live().errored:
            raise self._death()

    def _death(self) -> EngineDiedError:
        return EngineDiedError(f"the EngineCore of engine {self.settings.engine_id} is gone")

    def _live(self) -> AsyncLLM:
        if self._engine is None:
            raise EngineDiedError("the engine is not running: call start() first")
        return self._engine

    @asynccontextmanager
    async def _bounded(self, what: str, timeout_s: float | None = None) -> AsyncIterator[None]:
        from vllm.v1.engine.exceptions import EngineDeadError

        seconds = timeout_s or self.settings.control_timeout_s
        engine = self._live()
        try:
            async with asyncio.timeout(seconds) as limit:
                limits = self._limits
                limits.add(limit)
                try:
                    yield
                finally:
                    limits.discard(limit)
        except EngineTimeoutError:
            raise
        except EngineDeadError as error:
            raise self._death() from error
        except TimeoutError as error:
            if engine.errored:
                raise self._death() from error
            raise EngineTimeoutError(
                f"engine {self.settings.engine_id} ({self.settings.model_path}) did not answer "
                f"{what} within {seconds:g} s"
            ) from error
