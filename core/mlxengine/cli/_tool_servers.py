"""The MCP servers that give a chat its tools."""

from __future__ import annotations

import logging
import shlex

from .._config import ToolServerSettings, load_settings
from ..text.mcp import ToolServer, mcp_tools
from ._frame import UsageError


def server_of(words: str) -> ToolServer:
    """The MCP server that the configuration file calls so, else that of a command line.

    Raises:
        UsageError: the command line cannot be read.
        MLXEngineError: what `mcp_tools` raises.
    """
    # What a server does wrong is told in errors of ours; the package would print it between the answers.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    logging.getLogger("client").addHandler(logging.NullHandler())
    found = load_settings().tool_servers.get(words)
    if found is None:
        try:
            command, *args = shlex.split(words) or [""]
        except ValueError as error:
            raise UsageError(f"--mcp {words!r} is no command line: {error}.") from error
        found = ToolServerSettings(command=command, args=tuple(args))
    return mcp_tools(
        found.command,
        found.args,
        env=found.env,
        cwd=found.cwd,
        start_timeout=found.start_timeout,
        timeout=found.timeout,
    )
