"""Siblings of one prompt, sampled by an engine without a rollout worker around it."""

import asyncio

import pytest


@pytest.fixture(scope="session")
def sample_group():
    """Sample one response per seed to a prompt; request ids are `<request_id>/<i>`."""

    async def sample(engine, prompt, *, request_id, sampling, seeds):
        return await asyncio.gather(
            *(
                engine.generate(
                    prompt, request_id=f"{request_id}/{i}", sampling=sampling, seed=seed
                )
                for i, seed in enumerate(seeds)
            )
        )

    return sample
