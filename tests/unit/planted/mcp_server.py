"""An MCP server that does what it is told: answer, fail, wait, die, or not end with its input."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
import time

from mcp.server import MCPServer, Server
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp_types import (
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ListToolsResult,
    ResourceLink,
    TextContent,
    TextResourceContents,
    Tool,
)

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


CONTENTS = [
    TextContent(text="a text"),
    EmbeddedResource(resource=TextResourceContents(uri="file:///a", text="a file")),
    ResourceLink(name="b", uri="file:///b"),
    AudioContent(data="", mime_type="audio/wav"),
]


async def list_pages(_context, params) -> ListToolsResult:
    page = int(params.cursor) if params and params.cursor else 0
    tools = [Tool(name=f"page{page}", input_schema={"type": "object"})]
    return ListToolsResult(tools=tools, next_cursor=str(page + 1) if page < 2 else None)


async def call_page(_context, params) -> CallToolResult:
    if params.name == "page0":
        return CallToolResult(content=CONTENTS)
    return CallToolResult(content=[], structured_content={"page": params.name})


async def serve_pages() -> None:
    """A server that lists a tool a page, and whose results are of every kind."""
    pages = Server("pages", on_list_tools=list_pages, on_call_tool=call_page)
    async with stdio_server() as (reading, writing):
        await pages.run(reading, writing, pages.create_initialization_options())


def main(words: list[str]) -> None:
    if "early" in words:
        sys.exit("no key was given")
    if "mute" in words:
        time.sleep(60)
    if "junk" in words:
        print("this is not JSON", flush=True)
    if "stubborn" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        asyncio.run(serve_pages()) if "pages" in words else server.run()
    finally:
        if "stubborn" in words:
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])
