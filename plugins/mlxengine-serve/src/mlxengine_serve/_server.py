"""What the routes share: the engine, its models, the bounds, and what is known of how it goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, field
from mlxengine.errors import MisuseError, MLXEngineError

from ._admission import Admission
from ._counts import Counts
from ._models import Models
from ._relays import Relays
from ._remote import Remote
from ._watch import Watch
from .options import ServerOptions

if TYPE_CHECKING:
    from mlxengine import AsyncInferenceEngine

log = logging.getLogger("mlxengine.serve")


@define(eq=False)
class Server:
    """The state of one application.

    ``failed`` is told why a model that was named could not be loaded.
    """

    engine: AsyncInferenceEngine
    options: ServerOptions
    models: Models
    failed: Callable[[BaseException], None] | None = None
    counts: Counts = field(factory=Counts, init=False)
    remote: Remote = field(init=False)
    admission: Admission = field(factory=Admission, init=False)
    loading: set[str] = field(factory=set, init=False)
    watch: Watch = field(init=False)
    relays: Relays | None = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self.remote = Remote(self.options)
        self.watch = Watch(self.engine.sync, self.options.stuck_seconds)
        seconds = self.options.resume_seconds
        self.relays = None if seconds is None else Relays(seconds, self.counts)

    def start(self) -> None:
        """Watch the device, and load the models that were named, one after the other, beside requests."""
        self.loading = {model.name for model in self.options.models}
        for work in (self.watch.run(), self._preload()):
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _preload(self) -> None:
        for model in self.options.models:
            try:
                await self.models.load(model)
            except (MLXEngineError, MisuseError) as error:
                log.error("%s cannot be loaded: %s", model.name, error)
                if self.failed is not None:
                    self.failed(error)
                return
            self.loading.discard(model.name)

    async def close(self) -> None:
        """Stop what was begun here; the engine is its owner's."""
        self.remote.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.relays is not None:
            await self.relays.close()


__all__ = ["Server"]
