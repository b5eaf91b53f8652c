"""vLLM's `AsyncLLM` as a process that is started, bounded, put to sleep and ended.

Base of the other two modules: `weights.py` changes the weights of what runs here, `engine.py`
samples from it. Every wait is bounded, because a dead EngineCore leaves its callers pending for
ever. Runs in the rollout worker's process. Knows no request, and restarts nothing: the driver does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from workers.data.requests import EngineLoad
from workers.engines.vllm.answers import UnusableAnswerError
from workers.engines.vllm.leftovers import EngineFolder
from workers.engines.vllm.lifeline import declare_owner
from workers.engines.vllm.progress import Progress
from workers.engines.vllm.settings import VLLMSettings
from workers.worker_group import EngineDiedError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from workers.engines.vllm.scheduler_watch import SchedulerWatch

SHUTDOWN_TIMEOUT_S = 10.0  # EngineCore is killed after it
MONITOR_INTERVAL_S = 0.5  # between two looks at EngineCore


class EngineTimeoutError(TimeoutError):
    """Missing answer of an engine in time; the message names the call that was waited for."""


class VLLMProcess:
    """Lifecycle of one vLLM.

    Args:
        settings: of the engine. The process must have been started with `engine_env(settings,
            ...)`.
    """

    def __init__(self, settings: VLLMSettings) -> None:
        self.settings = settings
        self._engine: AsyncLLM | None = None
        self._watch: SchedulerWatch | None = None
        self._folder: EngineFolder | None = None  # of what vLLM may leave behind
        self._limits: set[asyncio.Timeout] = set()  # of the calls in flight
        self._requests: dict[str, asyncio.Timeout] = {}  # those of requests, which may take long
        self._progress = Progress(settings.request_timeout_s)
        self._paused = False
        self._monitor_task: asyncio.Task[None] | None = None
        self._loading = asyncio.Lock()

    async def start(self, version: int = 0) -> None:
        """Start EngineCore and label the weights of the model folder.

        Args:
            version: the label until the first publication.
        """
        async with self._loading:
            await self._load(version)

    async def _load(self, version: int) -> None:
        await self.shutdown()  # beside the first engine a second one would find no memory
        self._folder = EngineFolder()
        self._folder.use_for_sockets()

        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from workers.engines.vllm.image_only import register_image_only
        from workers.engines.vllm.images import image_args
        from workers.engines.vllm.scheduler_watch import SchedulerWatch

        declare_owner()
        register_image_only()
        about_images = image_args(self.settings.model_path, self.settings.images)
        arguments = AsyncEngineArgs(**{**about_images, **self.settings.engine_args()})
        self._engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[SchedulerWatch])
        assert self._engine.logger_manager is not None
        (self._watch,) = self._engine.logger_manager.stat_loggers
        self._limits, self._requests, self._paused = set(), {}, False
        self._progress = Progress(self.settings.request_timeout_s)
        self._monitor_task = asyncio.get_running_loop().create_task(self._monitor(self._engine))
        self._folder.list_shared_memory()
        await self.set_version(version)

    async def _monitor(self, engine: AsyncLLM) -> None:
        """End the calls in flight once EngineCore is gone, which vLLM leaves pending."""
        while not engine.errored:
            await asyncio.sleep(MONITOR_INTERVAL_S)
            self._end_standing(engine)
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())

    def _end_standing(self, engine: AsyncLLM) -> None:
        """End the requests that stand still, which are all of them where EngineCore hangs."""
        assert self._watch is not None
        sampled = {
            state.external_req_id: state.detokenizer.num_output_tokens()
            for state in engine.output_processor.request_states.values()
            if state.detokenizer is not None
        }
        standing = self._progress.observe(
            {name: sampled.get(name, 0) for name in self._requests},
            steps=self._watch.num_steps,
            waiting=self._watch.num_waiting,
            paused=self._paused,
        )
        for name in list(self._requests) if self._progress.hangs else standing:
            self._requests[name].reschedule(asyncio.get_running_loop().time())

    async def set_version(self, version: int) -> None:
        """Label the weights in use without changing them."""
        async with self._bounded("set_version"):
            await self._live().update_weight_version(str(version))

    async def shutdown(self) -> None:
        """End EngineCore and its workers; safe to call twice."""
        if self._monitor_task is not None:
            self._monitor_task.cancel()  # or it would end the calls of the next engine
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=SHUTDOWN_TIMEOUT_S)
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.remove()

    async def sleep(self, level: int = 1) -> None:
        """Free device memory: 1 keeps the weights in host memory, 2 drops them."""
        self._paused = True
        async with self._loading:
            pass  # an engine that loads sleeps when it has loaded
        async with self._bounded(f"sleep(level={level})"):
            await self._live().sleep(level)

    async def wake(self, tags: list[str] | None = None) -> None:
        """Take device memory back ("weights", "kv_cache", or both with None)."""
        async with self._bounded(f"wake(tags={tags})"):
            await self._live().wake_up(tags)
        self._paused = tags is not None and "kv_cache" not in tags

    def load(self) -> EngineLoad:
        """Return what the scheduler measured since the last call; EngineCore is not called."""
        return EngineLoad() if self._watch is None else self._watch.report()

    def check_health(self) -> None:
        """Raise where EngineCore is gone; EngineCore is not called.

        Raises:
            EngineDiedError: EngineCore is gone, or was never started.
        """
        if self._live().errored:
            raise self._died_error()

    def _died_error(self) -> EngineDiedError:
        return EngineDiedError(f"the EngineCore of engine {self.settings.engine_id} is gone")

    def _live(self) -> AsyncLLM:
        if self._engine is None:
            raise EngineDiedError("the engine is not running: call start() first")
        return self._engine

    @asynccontextmanager
    async def _progressing(self, request_id: str, call: str) -> AsyncIterator[None]:
        """Bound a request by its progress: it may take as long as it gains tokens.

        Raises:
            UnusableAnswerError: it stands still while the engine goes on.
            EngineTimeoutError: the engine itself stands still.
        """
        try:
            async with self._bounded(call, self._progress.limit_s, runs=False) as limit:
                self._requests[request_id] = limit  # for `_end_standing`
                yield
        except EngineTimeoutError:
            if self._progress.hangs:
                raise
            raise UnusableAnswerError("stalled") from None
        finally:
            self._requests.pop(request_id, None)

    @asynccontextmanager
    async def _bounded(
        self, call: str, timeout_s: float | None = None, *, runs: bool = True
    ) -> AsyncIterator[asyncio.Timeout]:
        """Bound a call by a time limit, which is `control_timeout_s` if none is given.

        With `runs` False the time does not run: whoever is given the limit ends the call.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        seconds = timeout_s or self.settings.control_timeout_s
        engine = self._live()
        try:
            async with asyncio.timeout(seconds if runs else None) as limit:
                limits = self._limits
                limits.add(limit)
                try:
                    yield limit
                finally:
                    limits.discard(limit)
        except EngineTimeoutError:
            raise
        except EngineDeadError as error:
            raise self._died_error() from error
        except TimeoutError as error:
            if engine.errored:
                raise self._died_error() from error
            raise EngineTimeoutError(
                f"engine {self.settings.engine_id} ({self.settings.model_path}) did not answer "
                f"{call} within {seconds:g} s"
            ) from error
