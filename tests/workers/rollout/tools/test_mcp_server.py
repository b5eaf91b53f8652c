import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workers.data.images.decoding import decode
from workers.rollout.tools.mcp_server import MCPServer
from workers.rollout.tools.pool import ToolPool
from workers.rollout.tools.server import ToolServer

SHOP = Path(__file__).with_name("mcp_shop.py")
COMMAND = f"{sys.executable} {SHOP}"


@pytest.fixture(scope="module")
def pool() -> Iterator[ToolPool]:
    server = ToolServer(toolsets={"shop": MCPServer(command=COMMAND)})
    pool = ToolPool(server, num_processes=1, timeout_s=20.0)
    yield pool
    pool.close()


def test_the_tools_of_a_server_are_listed_and_called(pool: ToolPool):
    names = [schema["function"]["name"] for schema in pool.schemas]
    assert names == ["price", "photo", "refuse"]
    assert pool.schemas[0]["function"]["description"] == "Look up a price."
    assert pool.schemas[0]["function"]["parameters"]["required"] == ["thing"]
    result = asyncio.run(pool.call("price", {"thing": "apples", "count": 4}))
    assert (result.status, result.text) == ("ok", "4 apples cost 12")


def test_an_image_of_the_server_is_one_of_the_result(pool: ToolPool):
    words, file = asyncio.run(pool.call("photo", {"thing": "an apple"})).content
    assert words == "an apple"
    assert isinstance(file, bytes)
    assert decode(file).getpixel((0, 0)) == (255, 0, 0)


def test_an_error_of_the_server_comes_back_as_one(pool: ToolPool):
    result = asyncio.run(pool.call("refuse", {}))
    assert result.status == "error"
    assert "the shop is closed" in result.text
    assert asyncio.run(pool.call("price", {})).status == "error"


def test_a_server_ends_with_the_tool_process(pool: ToolPool):
    (server,) = [p for p in psutil.Process().children(recursive=True) if str(SHOP) in p.cmdline()]
    pool.close()
    for _ in range(100):
        if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail(f"MCP server {server.pid} is still there")


def test_a_server_without_a_command_or_a_named_tool_is_refused():
    with pytest.raises(ValueError, match="set `command`"):
        MCPServer(command=" ")
    missing = ToolServer(toolsets={"shop": MCPServer(command=COMMAND, tools=["lend"])})
    with pytest.raises(RuntimeError, match=r"has no tool \['lend'\]; it has price, photo, refuse"):
        ToolPool(missing, num_processes=1, timeout_s=20.0)
