"""Real vLLM engines for the tests of publication, driven from the test's own thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from workers.engines.model.lora_settings import adapted_leaves, linear_names
from workers.engines.vllm.engine import VLLMEngine, VLLMSettings, engine_env
from workers.models.tiny import build_tiny
from workers.weight_sync.attestation import EngineEvidence

TIMEOUT_S = 300


class Engines:
    """Engines on an event loop of their own; also the client that a trainer drives them with."""

    def __init__(self, settings: list[VLLMSettings]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.engines = [VLLMEngine(each) for each in settings]
        self.each("start")

    def submit(self, coroutine: Any) -> Any:
        """Schedules a coroutine; returns its future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def each(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Calls a method of every engine at the same time; returns the answers in order."""

        async def together() -> list[Any]:
            return await asyncio.gather(
                *(getattr(engine, method)(*args, **kwargs) for engine in self.engines)
            )

        return self.submit(together()).result(TIMEOUT_S)

    def evidence(self, probe: list[int], *, lost: int | None = None) -> list[EngineEvidence]:
        """Collects what attestation wants to know of every engine that was not lost."""
        living = [engine for number, engine in enumerate(self.engines) if number != lost]
        asked = [self.submit(_evidence(engine, probe)) for engine in living]
        return [one.result(TIMEOUT_S) for one in asked]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.each("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self.each("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.each("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.each("finish_weight_update", weight_version)

    def close(self) -> None:
        self.each("shutdown")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()


async def _evidence(engine: VLLMEngine, probe: list[int]) -> EngineEvidence:
    return EngineEvidence(
        engine_id=engine.settings.engine_id,
        version=await engine.version(),
        received=await engine.attest_received(),
        used=await engine.attest_used(),
        probe_logprobs=await engine.prompt_logprobs(probe),
    )


@contextmanager
def running(model: Path, transport: str, num_engines: int, **more: Any) -> Iterator[Engines]:
    """Engines on a model folder, ended on leaving."""
    settings = [
        VLLMSettings(
            model_path=str(model),
            kv_cache_memory_bytes=64 << 20,
            weight_transfer_backend=transport,
            engine_id=engine_id,
            **more,
        )
        for engine_id in range(num_engines)
    ]
    # Insecure serialization lets a test send code into EngineCore, to break it on purpose.
    env = engine_env(settings[0], 1) | {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in env.items():
            patch.setitem(os.environ, key, value)
        engines = Engines(settings)
        try:
            yield engines
        finally:
            engines.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 Llama whose head is tied to its embeddings."""
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def shm_engine(tiny_model: Path) -> Iterator[Engines]:
    """One engine on shared memory."""
    with running(tiny_model, "shm", 1) as engines:
        yield engines


@pytest.fixture(scope="module")
def adapter_engine(tiny_model: Path) -> Iterator[Engines]:
    """One engine on shared memory that keeps its weights and takes adapters of rank 3."""
    layers = adapted_leaves("all-linear", linear_names(tiny_model))
    with running(tiny_model, "shm", 1, adapter_rank=3, adapter_layers=layers) as engines:
        yield engines


@pytest.fixture(scope="module")
def gloo_engines(tiny_model: Path) -> Iterator[Engines]:
    """Two engines on gloo."""
    with running(tiny_model, "gloo", 2) as engines:
        yield engines


@pytest.fixture(scope="session")
def start_engines() -> Callable[..., AbstractContextManager[Engines]]:
    """Starts engines of a test's own, which it may kill."""
    return running
