import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from workers.rollout.tools.pool import ToolPool, ToolResult
from workers.rollout.tools.server import ToolServer, cut
from workers.rollout.tools.toolset import Functions

NAMES = ("add", "sleep", "die", "leave", "flood", "divide", "hungry")
HOSTILE = [f"tests.workers.rollout.tools.hostile.{name}" for name in NAMES]


def server(**settings) -> ToolServer:
    return ToolServer(toolsets={"hostile": Functions(paths=HOSTILE)}, **settings)


@pytest.fixture(scope="module")
def pool() -> Iterator[ToolPool]:
    pool = ToolPool(
        server(max_output_bytes=100, max_memory_mib=2048), num_processes=2, timeout_s=1.0
    )
    yield pool
    pool.close()


def call(pool: ToolPool, name: str, **arguments) -> ToolResult:
    return asyncio.run(pool.call(name, arguments))


def test_a_pool_knows_the_schemas_of_its_tools_and_calls_them(pool: ToolPool):
    assert [schema["function"]["name"] for schema in pool.schemas] == list(NAMES)
    assert call(pool, "add", a=3, b=4) == ToolResult(status="ok", text="7")


def test_wrong_arguments_and_errors_come_back_with_their_reasons(pool: ToolPool):
    assert call(pool, "add", a="x").status == "wrong"
    assert call(pool, "divide", a=0) == ToolResult(
        status="error", text="ZeroDivisionError: float division by zero"
    )
    assert call(pool, "leave") == ToolResult(status="error", text="SystemExit: 3")
    assert call(pool, "hungry").text.startswith("MemoryError")


def test_a_flood_is_cut_and_says_so(pool: ToolPool):
    result = call(pool, "flood")
    assert result.text == "é" * 50 + "\n[cut: the first 100 of 5000000 bytes]"


def test_a_call_that_hangs_or_dies_costs_itself_and_the_next_one_is_answered(pool: ToolPool):
    began = time.monotonic()
    hung = call(pool, "sleep", seconds=60)
    assert hung == ToolResult(status="error", text="the call took longer than 1 s")
    assert time.monotonic() - began < 10
    died = call(pool, "die")
    assert died == ToolResult(status="error", text="the call ended the process of the tools")
    assert call(pool, "add", a=1).text == "2"


def test_calls_run_beside_each_other_and_one_that_hangs_holds_up_no_other(pool: ToolPool):
    async def play() -> tuple[float, list[ToolResult]]:
        hanging = asyncio.create_task(pool.call("sleep", {"seconds": 60}))
        await asyncio.sleep(0)
        began = time.monotonic()
        answers = [await pool.call("add", {"a": k}) for k in range(20)]
        seconds = time.monotonic() - began
        await hanging
        return seconds, answers

    call(pool, "add", a=1), call(pool, "add", a=1)  # both processes are ready
    seconds, answers = asyncio.run(play())
    assert [answer.text for answer in answers] == [str(k + 1) for k in range(20)]
    assert seconds < 0.9, f"{seconds:.2f} s for calls that take milliseconds"


def test_a_call_whose_rollout_was_cancelled_gives_its_answer_to_nobody_else(pool: ToolPool):
    async def play() -> list[str]:
        left = [asyncio.create_task(pool.call("sleep", {"seconds": 0.2})) for _ in range(2)]
        await asyncio.sleep(0.05)
        for each in left:
            each.cancel()
        return [(await pool.call("add", {"a": k})).text for k in range(3)]

    assert asyncio.run(play()) == ["1", "2", "3"]


def test_a_closed_pool_leaves_no_process():
    pool = ToolPool(server(), num_processes=1, timeout_s=5.0)
    number = int(call(pool, "sleep", seconds=0).text.rsplit(" ", 1)[1])
    os.kill(number, 0)
    pool.close()
    with suppress(ProcessLookupError):
        os.kill(number, 0)
        pytest.fail(f"process {number} is still there")


def test_tools_that_cannot_be_built_end_the_start_with_the_reason():
    broken = ToolServer(toolsets={"mine": Functions(paths=["nowhere.to_be_found"])})
    with pytest.raises(RuntimeError, match="a tool cannot be built.*No module named 'nowhere'"):
        ToolPool(broken, num_processes=1, timeout_s=1.0)


def test_two_tools_of_one_name_are_refused():
    twice = ToolServer(
        toolsets={"a": Functions(paths=HOSTILE[:1]), "b": Functions(paths=HOSTILE[:1])}
    )
    with pytest.raises(ValueError, match="toolset b has a second tool 'add'"):
        twice.prepare()


def test_a_text_is_cut_between_characters():
    assert cut("aé", 3) == "aé"
    assert cut("aéé", 4) == "aé\n[cut: the first 4 of 5 bytes]"
