"""An MCP server for tests: `python mcp_shop.py` serves three tools over stdin and stdout."""

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

#: A PNG file of one red pixel.
DOT = (
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c494441"
    "54789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
shop = MCPServer("shop")


@shop.tool()
def price(thing: str, count: int = 1) -> str:
    """Look up a price."""
    return f"{count} {thing} cost {3 * count}"


@shop.tool()
def photo(thing: str) -> list:
    """Show a photo."""
    return [thing, Image(data=bytes.fromhex(DOT), format="png")]


@shop.tool()
def refuse() -> str:
    """Fail."""
    raise ToolError("the shop is closed")


if __name__ == "__main__":
    shop.run()
