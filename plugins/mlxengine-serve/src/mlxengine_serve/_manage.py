"""Loading and unloading over HTTP, for operators: where the server's options allow it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from attrs import define
from mlxengine import AsyncModelHandle, Event, Progress

from ._chat_stream import COMMENT, frame
from ._fields import Fields
from ._http import CALLER, EventWriter, Receive, Scope, Send, read_json, send_json, until_gone
from ._refusals import Refusal, openai_form, refusal_of
from ._server import Server
from .options import ServedModel


@define(eq=False)
class Manage:
    """``POST /v1/models/load`` and ``/v1/models/unload``: ``{"model": NAME}``.

    A load with ``"stream": true`` tells how far it is. It ends when its client leaves and nobody else waits.
    An unload waits for the model's requests; those that come meanwhile load it again.
    """

    server: Server
    unload: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["mlxengine_serve.route"] = f"/v1/models/{'unload' if self.unload else 'load'}"
        if not self.server.options.manage:
            raise Refusal(
                403, "Clients may not load or unload models here; --manage lets them.", code="not_allowed"
            )
        fields = Fields(await read_json(scope, receive, self.server.options))
        model = await self.server.models.named(fields.need("model"))
        if self.unload:
            work = self._unload(model, send)
        elif fields.flag("stream"):
            work = self._load_streamed(model, send, scope[CALLER].id)
        else:
            work = self._load(model, send)
        await until_gone(receive, work)

    async def _unload(self, model: ServedModel, send: Send) -> None:
        was_loaded = await self.server.models.unload(model.name)
        await send_json(send, {"id": model.name, "loaded": False, "was_loaded": was_loaded})

    async def _load(self, model: ServedModel, send: Send) -> None:
        began = time.monotonic()
        await send_json(send, _loaded(model, await self.server.models.bring(model), began))

    async def _load_streamed(self, model: ServedModel, send: Send, request_id: str) -> None:
        options, began = self.server.options, time.monotonic()
        out = EventWriter(
            send,
            headers={},
            first_seconds=options.first_byte_seconds,
            beat_seconds=options.heartbeat_seconds,
            opening=frame({"stage": "load", "done": 0, "total": None, "unit": "steps"}),
            beat=lambda: COMMENT,
        )
        async with out:
            try:
                async with aclosing(self._loading(model)) as said:
                    async for item in said:
                        if isinstance(item, Progress):
                            await out.write(frame(_progress(item)))
                        elif isinstance(item, AsyncModelHandle):
                            await out.write(frame(_loaded(model, item, began)))
            except Exception as error:
                refusal = refusal_of(error)
                if not out.started:
                    raise refusal from error
                await out.write(frame(openai_form(refusal, request_id)))
        await out.end()

    async def _loading(self, model: ServedModel) -> AsyncGenerator[Event | AsyncModelHandle]:
        """The load's events, and its handle last; closing it gives the load up."""
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[Event | None]()

        def hear(event: Event) -> None:  # on another thread
            loop.call_soon_threadsafe(heard.put_nowait, event)

        task = loop.create_task(self.server.models.bring(model, hear))
        task.add_done_callback(lambda _task: heard.put_nowait(None))
        try:
            while (event := await heard.get()) is not None:
                yield event
            yield task.result()
        finally:
            task.cancel()
            await asyncio.wait((task,))


def _loaded(model: ServedModel, handle: AsyncModelHandle, began: float) -> dict[str, Any]:
    seconds = round(time.monotonic() - began, 3)
    return {"id": model.name, "loaded": True, "kind": handle.kind, "seconds": seconds}


def _progress(event: Progress) -> dict[str, Any]:
    return {"stage": event.stage, "done": event.done, "total": event.total, "unit": event.unit}


__all__ = ["Manage"]
