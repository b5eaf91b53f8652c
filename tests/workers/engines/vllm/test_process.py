"""A process of vLLM that is told to sleep while it loads."""

from __future__ import annotations

import asyncio

import pytest

from workers.engines.vllm.process import VLLMProcess
from workers.engines.vllm.settings import VLLMSettings
from workers.worker_group import EngineDiedError


class Loading(VLLMProcess):
    """A process that loads until the gate opens, and has loaded nothing then."""

    def __init__(self) -> None:
        super().__init__(VLLMSettings(model_path="m"))
        self.gate = asyncio.Event()

    async def _load(self, version: int) -> None:
        await self.gate.wait()


def test_an_engine_that_loads_sleeps_when_it_has_loaded() -> None:
    """On a GPU that it shares, the learner's turn begins with the answer."""

    async def run() -> None:
        process = Loading()
        starting = asyncio.create_task(process.start())
        await asyncio.sleep(0)
        sleeping = asyncio.create_task(process.sleep(2))
        await asyncio.wait([sleeping], timeout=0.05)
        assert not sleeping.done()
        process.gate.set()
        await starting
        with pytest.raises(EngineDiedError, match="not running"):  # nothing was loaded here
            await sleeping

    asyncio.run(run())
