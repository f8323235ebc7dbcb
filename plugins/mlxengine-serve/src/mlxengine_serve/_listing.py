"""``/v1/models``: what is served, and what is in memory now."""

from __future__ import annotations

import time
from typing import Any

from attrs import define, field

from ._http import Receive, Scope, Send, header, send_json
from ._server import Server
from .options import ServedModel


@define(eq=False)
class ListModels:
    """``GET /v1/models``, and ``GET /v1/models/NAME`` for one of them."""

    server: Server
    _since: int = field(factory=lambda: int(time.time()))

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        scope["mlxengine_serve.route"] = "/v1/models"
        name = scope["path_params"].get("name")
        entry = self._openai if header(scope, b"anthropic-version") is None else self._anthropic
        if name is not None:
            await send_json(send, entry(await self.server.models.named(name)))
            return
        entries = [entry(model) for model in await self.server.models.served()]
        ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
        await send_json(send, {"object": "list", "data": entries, "has_more": False, **ends})

    def _openai(self, model: ServedModel) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "id": model.name,
            "object": "model",
            "created": self._since,
            "owned_by": "mlxengine",
            "loaded": False,
        }
        handle = self.server.models.loaded().get(model.name)
        if handle is not None:
            entry |= {"loaded": not handle.evicted, "kind": handle.kind}
            entry["capabilities"] = sorted(handle.capabilities)
            entry["context_length"] = handle.info.get("context_length")
        return entry

    def _anthropic(self, model: ServedModel) -> dict[str, Any]:
        handle = self.server.models.loaded().get(model.name)
        return {
            "type": "model",
            "id": model.name,
            "display_name": model.name,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._since)),
            "lifecycle": "active",
            "max_input_tokens": None if handle is None else handle.info.get("context_length"),
        }


__all__ = ["ListModels"]
