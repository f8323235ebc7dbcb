"""Tools of MCP servers (Model Context Protocol), for sessions and for loops of your own.

A server runs as a process of its own and is spoken to over its standard input and output::

    with mcp_tools("uvx", ["mcp-server-time"]) as tools:
        session = model.session(tools=tools, tool_rounds=5)

Needs the package ``mcp``: ``pip install "mlxengine[mcp]"``.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ..errors import ConfigurationError, InvalidParameterError, MisuseError, ToolError, ToolServerError
from .messages import ImagePart
from .tools import DescribedTool

log = logging.getLogger("mlxengine.mcp")
_KEPT = 2000  # bytes of what a server wrote to stderr last
_LAST_WORDS = 0.05  # seconds in which they arrive when it has ended

# The server's input goes through `cat`, which ends when we do, however that happens: then a server that does
# not end with its input is ended. When the server ends, what it started ends with it. Both are the whole
# process group, which is the server's own.
_KEEPER = """
{ cat; exec >&-; sleep 5; trap '' TERM; kill -TERM 0; sleep 2; kill -KILL 0; } |
{ "$@"; trap '' TERM; kill -TERM 0; }
"""


def mcp_tools(
    command: str,
    args: Sequence[str] = (),
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    start_timeout: float = 60.0,
    timeout: float = 60.0,
) -> ToolServer:
    """Start an MCP server and have its tools, for as long as the ``with`` or ``async with`` block lasts.

    Args:
        command: the program, looked up as a shell does.
        args: its arguments.
        env: variables that it gets besides HOME, PATH and a few more of that sort; no others are handed on.
        cwd: the folder that it runs in; ``None`` is the current one.
        start_timeout: seconds until it has to have listed its tools.
        timeout: seconds that one call may take.

    Raises:
        ConfigurationError: the package mcp is not installed; the message names the extra.
        InvalidParameterError: there is no such program, or a time is not positive.
        ToolServerError: (by the block's begin) it ended or did not answer; what it wrote to stderr is told.
    """
    return ToolServer(command, args, env=env, cwd=cwd, start_timeout=start_timeout, timeout=timeout)


class ToolServer:
    """An MCP server, as `mcp_tools` makes it. Entering it gives the tools, leaving it ends the process.

    The tools of ``with`` are functions, those of ``async with`` coroutine functions. They return a text, or
    a list of texts and `ImagePart`. A call that fails or takes too long raises `ToolError`, which a session
    shows to the model; one after the server's end raises `ToolServerError`. Any thread may call them.
    """

    def __init__(
        self,
        command: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: str | Path | None,
        start_timeout: float,
        timeout: float,
    ) -> None:
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "Tools of MCP servers need the package mcp, which is not installed.",
                hint='Install "mlxengine[mcp]".',
            ) from error
        for name, value in (("start_timeout", start_timeout), ("timeout", timeout)):
            if not value > 0:
                raise InvalidParameterError(f"{name}={value!r} must be more than 0 seconds.")
        program = shutil.which(command, path=(env or {}).get("PATH"))
        if program is None:
            raise InvalidParameterError(
                f"There is no program {command!r} to start as an MCP server.",
                hint="Install it, or give the whole path. Its arguments are given apart.",
            )
        self.name = " ".join([command, *args])
        self._words = ["-c", _KEEPER, "sh", program, *args]
        self._env = dict(env or {})
        self._cwd = cwd
        self._start_timeout, self._timeout = start_timeout, timeout
        self._stderr = _Tail()
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop
        self._serving: asyncio.Task[None]
        self._thread: threading.Thread | None = None

    def __enter__(self) -> tuple[DescribedTool, ...]:
        listed = self._start()
        try:
            found = listed.result()
        except BaseException:
            self._stop()
            raise
        return tuple(DescribedTool(_description(tool), self._function(tool.name)) for tool in found)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    async def __aenter__(self) -> tuple[DescribedTool, ...]:
        listed = self._start()
        try:
            found = await asyncio.wrap_future(listed)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._stop))
            raise
        return tuple(DescribedTool(_description(tool), self._coroutine(tool.name)) for tool in found)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self._stop))

    def _start(self) -> concurrent.futures.Future[list[Any]]:
        # A loop of its own: the client's task groups have to be left by the task that entered them.
        if self._thread is not None:
            raise MisuseError("A server is started once: call mcp_tools again.")
        listed: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()
        begun = threading.Event()

        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._serving = self._loop.create_task(self._serve(listed))
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), name="mlxengine-mcp", daemon=True)
        self._thread.start()
        begun.wait()
        return listed

    def _stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it ended by itself
            self._loop.call_soon_threadsafe(self._serving.cancel)
        if self._thread is not None:
            self._thread.join()

    async def _serve(self, listed: concurrent.futures.Future[list[Any]]) -> None:
        from mcp import Client, StdioServerParameters, stdio_client

        parameters = StdioServerParameters(command="/bin/sh", args=self._words, env=self._env, cwd=self._cwd)
        try:
            async with contextlib.AsyncExitStack() as stack:
                errors = await stack.enter_async_context(self._reading_stderr())
                async with asyncio.timeout(self._start_timeout):
                    client = Client(stdio_client(parameters, errors))
                    await stack.enter_async_context(client)
                    found = await _all_tools(client)
                self._client = client
                listed.set_result(found)
                await asyncio.Event().wait()
        except Exception as error:
            if not listed.done():
                listed.set_exception(self._not_started(error))
            else:
                log.debug("%s: %r", self.name, error)
        finally:
            self._client = None
            listed.cancel()

    @contextlib.asynccontextmanager
    async def _reading_stderr(self) -> AsyncIterator[TextIO]:
        reading, writing = os.pipe()
        with os.fdopen(writing, "w") as errors:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: self._stderr, os.fdopen(reading, "rb", buffering=0)
            )
            try:
                yield errors
            finally:
                transport.close()

    def _not_started(self, error: Exception) -> ToolServerError:
        if isinstance(error, TimeoutError):
            what = f"did not list its tools within {self._start_timeout:g} s"
        else:
            what = f"could not be used: {_reason(error)}"
        made = ToolServerError(f"The MCP server {self.name!r} {what}.{self._said()}", hint=_TRY)
        made.__cause__ = error
        return made

    def _gone(self) -> ToolServerError:
        return ToolServerError(f"The MCP server {self.name!r} has ended.{self._said()}", hint=_TRY)

    def _said(self) -> str:
        lines = self._stderr.text.decode(errors="replace").strip().splitlines()[-5:]
        return f" It wrote: {' / '.join(lines)}" if lines else ""

    def _function(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            future = self._submit(name, arguments)
            try:
                return future.result()
            except concurrent.futures.CancelledError:
                raise self._gone() from None
            finally:
                future.cancel()  # Ctrl-C: the server is told to stop too

        return call

    def _coroutine(self, name: str) -> Any:
        async def call(**arguments: Any) -> Any:
            return await asyncio.wrap_future(self._submit(name, arguments))

        return call

    def _submit(self, name: str, arguments: dict[str, Any]) -> concurrent.futures.Future[Any]:
        coroutine = self._call(name, arguments)
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise self._gone() from None

    async def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT

        if self._client is None:
            raise self._gone()
        try:
            result = await self._client.call_tool(name, arguments, read_timeout_seconds=self._timeout)
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:
                with contextlib.suppress(asyncio.CancelledError):  # the loop ends with the server
                    await asyncio.sleep(_LAST_WORDS)
                raise self._gone() from error
            if error.code == REQUEST_TIMEOUT:
                raise ToolError(f"{name} did not answer within {self._timeout:g} s.") from error
            raise ToolError(error.message) from error
        except Exception as error:  # what it sent is no result of a call, or not of the tool's own schema
            raise ToolError(f"The result of {name} cannot be read: {_reason(error)}") from error
        found = list(_read(result))
        text = "\n".join(item for item in found if isinstance(item, str))
        if result.is_error:
            raise ToolError(text)
        return found if any(isinstance(item, ImagePart) for item in found) else text


class _Tail(asyncio.Protocol):
    """Keeps the end of what a server writes to stderr, and logs all of it."""

    def __init__(self) -> None:
        self.text = b""

    def data_received(self, data: bytes) -> None:
        self.text = (self.text + data)[-_KEPT:]
        log.info("%s", data.decode(errors="replace").rstrip())


async def _all_tools(client: Any) -> list[Any]:
    page = await client.list_tools()
    found = list(page.tools)
    while page.next_cursor:
        page = await client.list_tools(cursor=page.next_cursor)
        found += page.tools
    return found


def _description(tool: Any) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description or tool.title or "",
        "parameters": tool.input_schema,
    }
    return {"type": "function", "function": function}


def _read(result: Any) -> Iterator[str | ImagePart]:
    """A call's result as texts and pictures; of what is neither, what it is."""
    for block in result.content:
        if block.type == "text":
            yield block.text
        elif block.type == "image":
            yield ImagePart(base64.b64decode(block.data))
        elif block.type == "resource" and hasattr(block.resource, "text"):
            yield block.resource.text
        elif block.type == "resource_link":
            yield f"{block.name}: {block.uri}"
        else:
            kind = getattr(getattr(block, "resource", block), "mime_type", None) or block.type
            yield f"({kind}, which cannot be shown)"
    if not result.content and result.structured_content is not None:
        yield json.dumps(result.structured_content)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error).strip().rstrip(".") or type(error).__name__


_TRY = "Start it by hand to see what it says."

__all__ = ["ToolServer", "mcp_tools"]
