"""An MCP server that does what it is told: answer, fail, wait, die, or not end with its input."""

from __future__ import annotations

import base64
import os
import signal
import sys
import time

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent, TextContent

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
server = MCPServer("planted")


@server.tool()
def add(first: int, second: int) -> str:
    """Add two numbers."""
    return str(first + second)


@server.tool()
def fail(why: str) -> str:
    """Fail."""
    raise ToolError(why)


@server.tool()
async def wait(seconds: float) -> str:
    """Wait, and say whether anybody still listened."""
    import anyio

    try:
        await anyio.sleep(seconds)
    except BaseException:
        print("the call was cancelled", file=sys.stderr, flush=True)
        raise
    return "waited"


@server.tool()
def variable(name: str) -> str:
    """A variable of its environment."""
    return os.environ.get(name, "not set")


@server.tool()
def die(code: int) -> str:
    """End at once."""
    print("this is the end", file=sys.stderr, flush=True)
    os._exit(code)


@server.tool(structured_output=False)
def look() -> list[TextContent | ImageContent]:
    """Show a picture."""
    data = base64.b64encode(PIXEL).decode()
    return [TextContent(text="a pixel"), ImageContent(data=data, mime_type="image/png")]


def main(words: list[str]) -> None:
    if "early" in words:
        sys.exit("no key was given")
    if "mute" in words:
        time.sleep(60)
    if "junk" in words:
        print("this is not JSON", flush=True)
    if "stubborn" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server.run()
    if "stubborn" in words:
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])
