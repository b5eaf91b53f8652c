"""Play one trajectory in an environment that may raise, return nonsense, or never return.

An environment is a user's program: its faults cost one sample, with the reason. A fault of the
engine, which reaches the environment through `draw`, is no fault of the environment: it is raised
as it is, whatever the environment made of it. Runs in the rollout worker. Scores and retries
nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import fields

import pyarrow as pa

from workers.data.requests import Sample
from workers.data.trajectory import SCHEMA, reason_of
from workers.engines.vllm.answers import UnusableAnswerError
from workers.rollout.environments.single_turn import Draw, Environment, Interaction

# An engine raises these for tokens that it cannot continue, which the environment chose.
REFUSALS = (UnusableAnswerError, TypeError, ValueError)


class EnvironmentFaultError(RuntimeError):
    """Fault of an environment in one trajectory; the message is the reason of a failed sample."""


async def play_guarded(
    environment: Environment, prompt_tokens: list[int], draw: Draw, *, limit_s: float
) -> Interaction:
    """Play one trajectory.

    Args:
        environment: plays it.
        prompt_tokens: token ids of the prompt.
        draw: samples a continuation of the tokens so far.
        limit_s: longest time in seconds before, between and after the draws; a draw itself takes as
            long as the engine takes.

    Raises:
        EnvironmentFaultError: the environment raised, took too long, or returned no interaction.
        UnusableAnswerError: the engine's answer is no response, and the environment did not go on.
        Exception: any other error of `draw`.
    """
    loop = asyncio.get_running_loop()
    broken: list[Exception] = []  # what is wrong with the engine
    drawing = 0

    async def timed_draw(tokens: list[int]) -> Sample:
        nonlocal drawing
        drawing += 1
        clock.reschedule(None)
        try:
            return await draw(tokens)
        except REFUSALS:
            raise
        except Exception as error:
            broken.append(error)
            raise
        finally:
            drawing -= 1
            if not drawing and not clock.expired():
                clock.reschedule(loop.time() + limit_s)

    clock = asyncio.timeout(limit_s)
    try:
        async with clock:
            played = await environment.play(prompt_tokens, timed_draw)
    except UnusableAnswerError:
        raise
    except (Exception, SystemExit) as error:
        if broken:
            raise broken[0] from None
        if clock.expired():
            raise EnvironmentFaultError(f"environment took longer than {limit_s:g} s") from error
        raise EnvironmentFaultError(f"environment raised {reason_of(error)}") from error
    if broken:
        raise broken[0]
    if (fault := _fault_of(played)) is not None:
        raise EnvironmentFaultError(f"environment returned {fault}")
    return played


def _fault_of(played: object) -> str | None:
    """Return the reason for which a result of `play` can't become a row of `SCHEMA`, or None."""
    if not isinstance(played, Interaction):
        return f"{type(played).__name__} instead of an Interaction"
    lengths = {}
    for item in fields(played):
        value = getattr(played, item.name)
        try:
            column = pa.array([value], type=SCHEMA.field(item.name).type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            return f"{item.name}: {reason_of(error)}"
        if column.null_count or (pa.types.is_nested(column.type) and column.flatten().null_count):
            return f"{item.name} with nulls"
        if pa.types.is_nested(column.type):
            lengths[item.name] = len(value)
    if len(set(lengths.values())) != 1:
        return f"columns of unequal length {lengths}"
    return None
