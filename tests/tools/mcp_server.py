"""A small MCP server.

python mcp_server.py            # on standard streams
python mcp_server.py PORT       # over HTTP
"""

import os
import sys
import time

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("small")
called = 0


@server.tool()
def add(a: int, b: int = 1) -> str:
    """Adds two numbers."""
    return f"{a + b}"


@server.tool()
def count() -> str:
    """How often it was called since the server started."""
    global called
    called += 1
    return f"{called}"


@server.tool()
def fail() -> str:
    """Raises."""
    raise ToolError("it broke")


@server.tool()
def crash() -> str:
    """Ends the server."""
    os._exit(1)


@server.tool()
async def hang() -> str:
    """Holds the server's event loop."""
    time.sleep(60)
    return "late"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
