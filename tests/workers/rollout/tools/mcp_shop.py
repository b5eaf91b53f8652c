"""An MCP server for tests: `python mcp_shop.py` serves two tools over stdin and stdout."""

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

shop = MCPServer("shop")


@shop.tool()
def price(thing: str, count: int = 1) -> str:
    """Look up a price."""
    return f"{count} {thing} cost {3 * count}"


@shop.tool()
def refuse() -> str:
    """Fail."""
    raise ToolError("the shop is closed")


if __name__ == "__main__":
    shop.run()
