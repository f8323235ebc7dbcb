"""``mlxengine serve --replicas N``: a server in each of N Ray actors, and one front before them.

Ray starts the processes, gives each its GPU, and replaces those that end. Requests do not go through it: Ray
Serve's proxy ends the stream of a replica that was killed as if it were whole, and collects without a bound
what a slow client does not read (``asyncio.Queue()`` in ray 2.60's ``serve/_private/http_util.py``).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from attrs import frozen
from mlxengine import InferenceEngine
from mlxengine.errors import MLXEngineError
from mlxengine_serve.front import Behind, Figures, Gone, Member, create_front
from mlxengine_serve.options import ServerOptions

from ._cluster import Places, cause, cluster

log = logging.getLogger("mlxengine.serve")
Failed = Callable[[BaseException], None]
_LOOK_SECONDS = 0.5
_AGAIN_SECONDS = 10.0
_PATIENCE = 3  # times the seconds after which a step's requests are ended: then its process is


class Ended(Exception):
    """The process of a replica is gone; another takes its place."""


@frozen(kw_only=True)
class Actor:
    """A replica's process: ``ask`` it for its figures, or ``end`` it, so that another starts."""

    ask: Callable[[], Awaitable[Figures]]
    end: Callable[[], None]


@contextmanager
def replicas(
    count: int, options: ServerOptions, engine: Mapping[str, Any]
) -> Iterator[Callable[[Failed], AbstractAsyncContextManager[Any]]]:
    """So many replicas on this machine; what makes an application of them. They end with the block.

    Args:
        count: how many.
        options: of each server.
        engine: what the engine of each is made with.

    Raises:
        FeatureUnavailableError: Ray is not installed.
        MLXEngineError: there is no room for them, or a model cannot be had.
    """
    places = _places(count, options, engine)
    with cluster(places, None, "serve") as ray:
        folder = Path(tempfile.mkdtemp(prefix="mlxengine-"))  # nobody else may enter it
        try:
            kind = ray.remote(num_cpus=1, num_gpus=int(places.gpu), max_restarts=-1)(Behind)
            actors = [_actor(ray, kind.remote(options, folder, engine)) for _ in range(count)]
            yield lambda failed: _application(actors, options, failed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _places(count: int, options: ServerOptions, engine: Mapping[str, Any]) -> Places:
    with InferenceEngine(**engine) as made:
        needs = [made.fit(model.ref) for model in options.models]
        budgets = [item.budget for item in needs if item.budget is not None]
        return Places(
            count=count,
            needed=sum(item.needed for item in needs),
            budget=min(budgets, default=None),
            gpu=made.device.backend == "cuda",
        )


def _actor(ray: Any, handle: Any) -> Actor:
    async def ask() -> Figures:
        try:
            found: Figures = await handle.figures.remote()
        except ray.exceptions.RayTaskError as error:
            raise cause(error) from error
        except ray.exceptions.RayError as error:
            raise Ended(str(error)) from error
        return found

    return Actor(ask=ask, end=lambda: ray.kill(handle, no_restart=False))


@asynccontextmanager
async def _application(actors: Sequence[Actor], options: ServerOptions, failed: Failed) -> AsyncIterator[Any]:
    members = [Member(number) for number in range(len(actors))]

    @asynccontextmanager
    async def tended() -> AsyncIterator[None]:
        tending = [
            asyncio.ensure_future(tend(*item, options, failed)) for item in zip(actors, members, strict=True)
        ]
        try:
            yield
        finally:
            for task in tending:
                task.cancel()
            await asyncio.gather(*tending, return_exceptions=True)

    yield create_front(members, options, tended)


async def tend(actor: Actor, member: Member, options: ServerOptions, failed: Failed) -> None:
    """Keep what is known of a replica up to date, and end its process where nothing gets on; until cancelled.

    Args:
        actor: the replica.
        member: what the front knows of it.
        options: of the servers: a process that does not answer, or whose device is in one step, for three
            times ``stuck_seconds`` is ended, and another takes its place.
        failed: told why models cannot be loaded, unless they were once: then it is tried again.
    """
    patience, proved = _PATIENCE * options.stuck_seconds, False
    while True:
        look = asyncio.ensure_future(_look(actor, member))
        try:
            await asyncio.wait((look,), timeout=options.ready_seconds + 1)
            if not look.done():
                member.trouble = "it does not answer"
                await asyncio.wait((look,), timeout=patience)
            if not look.done():
                _end(actor, member, f"it did not answer for {patience:g} s")
            else:
                look.result()
                proved = proved or member.trouble is None
                if member.figures is not None and member.figures.step_seconds > patience:
                    _end(actor, member, f"a step did not return for {patience:g} s")
        except Ended as error:
            member.left(str(error))
        except MLXEngineError as error:
            if not proved:
                failed(error)
            _end(actor, member, f"it cannot be started: {error}")
            await asyncio.sleep(_AGAIN_SECONDS)
        except Exception as error:  # whatever it is, the next look may tell more
            log.exception("replica %d", member.number)
            member.trouble = f"it was not understood: {error}"
        finally:
            look.cancel()
        await asyncio.sleep(_LOOK_SECONDS)


async def _look(actor: Actor, member: Member) -> None:
    figures = await actor.ask()
    member.arrived(figures)
    try:
        member.trouble = await member.ready()
    except (Gone, httpx2.TransportError) as error:
        raise Ended("its process is gone") from error


def _end(actor: Actor, member: Member, why: str) -> None:
    log.error("replica %d is started anew: %s", member.number, why)
    member.left(why)
    actor.end()


__all__ = ["Actor", "Ended", "replicas", "tend"]
