"""The models that a server offers: by name, loaded when first asked for, and let go."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mlxengine import hub
from mlxengine.errors import MLXEngineError

from ._refusals import Refusal
from .options import ServedModel, ServerOptions

if TYPE_CHECKING:
    from mlxengine import AsyncInferenceEngine, AsyncModelHandle, Event

H = TypeVar("H", bound="AsyncModelHandle")
_LOOK_SECONDS = 5.0


class Models:
    """Which models there are, and the handles of those that were loaded.

    A handle is kept until the model is unloaded: what the engine evicts comes back with its next request.

    Args:
        engine: loads them.
        options: which ones, and what else they are called.
        local: the ids of the models that are complete on this machine.
    """

    def __init__(
        self,
        engine: AsyncInferenceEngine,
        options: ServerOptions,
        local: Callable[[], list[str]] | None = None,
    ) -> None:
        self._engine = engine
        self._options = options
        self._local = local or _complete_here
        self._seen: tuple[float, list[str]] = (float("-inf"), [])
        self._handles: dict[str, AsyncModelHandle] = {}

    async def served(self) -> list[ServedModel]:
        """The models that may be asked for now."""
        if self._options.models:
            return list(self._options.models)
        when, names = self._seen
        if time.monotonic() - when > _LOOK_SECONDS:
            names = await asyncio.to_thread(self._local)
            self._seen = (time.monotonic(), names)
        return [ServedModel(name=name, ref=name) for name in names]

    async def named(self, name: str | None) -> ServedModel:
        """The model that a request means.

        Raises:
            Refusal: 404, there is no such model; 400, none is named and none is the first.
        """
        served = await self.served()
        if name is None:
            if self._options.models:
                return served[0]
            raise Refusal(400, "The request names no model.", param="model", code="missing_value")
        wanted = self._options.renamed(name)
        for item in served:
            if item.name == wanted:
                return item
        raise Refusal(
            404,
            f"There is no model {name!r} here. GET /v1/models lists those that are served.",
            param="model",
            code="model_not_found",
        )

    async def get(self, name: str | None) -> AsyncModelHandle:
        """The handle of a model, which is loaded first where it has to be; cancelling gives the load up.

        Raises:
            Refusal: as `named` says.
            MLXEngineError: it cannot be loaded.
        """
        return await self.load(await self.named(name))

    async def get_as(self, handle: type[H], name: str | None, what: str) -> H:
        """`get`, for a model of a kind with such handles.

        Raises:
            Refusal: 400, the model is of another kind.
        """
        model = await self.named(name)
        found = await self.load(model)
        if not isinstance(found, handle):
            raise Refusal(
                400,
                f"The model {name or model.name!r} is of kind {found.kind!r}, which gives no {what}.",
                param="model",
                code="model_not_supported",
            )
        return found

    async def load(
        self, model: ServedModel, on_progress: Callable[[Event], None] | None = None
    ) -> AsyncModelHandle:
        """Load a model that is served. Who asks for one that is being loaded waits for the same load."""
        kept = self._handles.get(model.name)
        if kept is not None:
            return kept
        made = await self._engine.load(
            model.ref, on_progress=on_progress, wait_for_memory=self._options.wait_seconds or math.inf
        )
        kept = self._handles.setdefault(model.name, made)
        if kept is not made:
            await made.close()
        return kept

    async def bring(
        self, model: ServedModel, on_progress: Callable[[Event], None] | None = None
    ) -> AsyncModelHandle:
        """`load`, of a model too that was evicted and that its next request would bring back."""
        kept = self._handles.get(model.name)
        if kept is not None and kept.evicted:
            await self.unload(model.name)
        return await self.load(model, on_progress)

    async def unload(self, name: str) -> bool:
        """Let a model go once its requests have ended; whether it was in memory."""
        model = await self.named(name)
        handle = self._handles.pop(model.name, None)
        if handle is None:
            return False
        there = not handle.evicted
        await handle.close(drain=float("inf"))
        return there

    def name_of(self, model_id: str) -> str:
        """What clients call a loaded model; its id may be a path of this machine."""
        return next((name for name, handle in self._handles.items() if handle.id == model_id), model_id)

    def renamed(self, message: str, model_id: str) -> str:
        """An error's text with the clients' name of a model; an id that is a part of another word stays."""
        return re.sub(
            rf"(?<![\w.-]){re.escape(model_id)}(?![\w-])", lambda _: self.name_of(model_id), message
        )

    def loaded(self) -> dict[str, AsyncModelHandle]:
        """The handles by the names of their models."""
        return dict(self._handles)


def _complete_here() -> list[str]:
    try:
        return [item.id for item in hub.list_local() if item.ready]
    except (MLXEngineError, OSError):
        return []


__all__ = ["Models"]
