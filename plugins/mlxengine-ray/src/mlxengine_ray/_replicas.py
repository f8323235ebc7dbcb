"""Lanes in other processes: Ray actors, each with a model of its own.

Ray Data's ``map_batches`` fails a whole job for one row that kills its worker, or loses whole blocks and says
that it has finished; so a job asks actors unit by unit, and keeps account itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from attrs import frozen
from mlxengine.contract.fit import FitReport
from mlxengine.errors import GenerationError

from ._cluster import Places, cause, cluster
from ._lanes import Lane, LaneDied
from ._outcomes import Outcome
from ._sources import Row
from .tasks import Task

_START_SECONDS = 300.0
_PAUSE = 0.2


@frozen(kw_only=True)
class Wanted:
    """What each replica loads, and what it takes.

    Args:
        model, plugin, features, offline: as `mlxengine_ray.model.BatchModel` has them.
        task: what it is asked.
        needs: the memory that one of them needs, reckoned on this machine.
        gpu: whether each needs a GPU of its own.
    """

    model: str
    task: Task
    plugin: str | None
    features: Mapping[str, object]
    offline: bool | None
    needs: FitReport
    gpu: bool


class Replica:
    """What runs in an actor: the model, loaded when it is first asked to start."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._model: Any = None

    def start(self) -> int:
        """Load the model if it is not; the process's id."""
        from .model import BatchModel

        if self._model is None:
            wanted = self._wanted
            self._model = BatchModel(
                wanted.model,
                wanted.task,
                plugin=wanted.plugin,
                features=wanted.features,
                offline=wanted.offline,
            )
        return os.getpid()

    def run(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """One outcome a row."""
        outcomes: list[Outcome] = self._model.outcomes(rows)
        return outcomes


class RayLane:
    """A replica in an actor; after its death the next unit waits for its replacement.

    Args:
        ray: the module.
        actor: a handle of the actor.
        at_once: most units that it is given at once.
    """

    def __init__(self, ray: Any, actor: Any, at_once: int) -> None:
        self.at_once = at_once
        self._ray = ray
        self._actor = actor
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="mlxengine-replica")
        self._starting = threading.Lock()
        self._started = False

    def submit(self, rows: Sequence[Row]) -> Future[list[Outcome]]:
        return self._threads.submit(self._ask, [row.values for row in rows])

    def start(self) -> None:
        """Wait until the replica has its model.

        Raises:
            MLXEngineError: it cannot be loaded, or the actor cannot be started.
        """
        with self._starting:
            until = time.monotonic() + _START_SECONDS
            while not self._started:
                try:
                    self._ray.get(self._actor.start.remote(), timeout=_START_SECONDS)
                    self._started = True
                except self._ray.exceptions.RayTaskError as error:
                    raise cause(error) from error
                except self._ray.exceptions.RayError as error:
                    if time.monotonic() > until or isinstance(error, self._ray.exceptions.ActorDiedError):
                        raise GenerationError(
                            f"A replica cannot be started: {error}.",
                            hint="Run the job again; fewer --replicas need less memory.",
                        ) from error
                    time.sleep(_PAUSE)

    def _ask(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        self.start()
        try:
            found: list[Outcome] = self._ray.get(self._actor.run.remote(rows))
        except self._ray.exceptions.RayTaskError as error:
            raise cause(error) from error
        except self._ray.exceptions.RayError as error:
            self._started = False
            raise LaneDied(str(error)) from error
        return found

    def close(self) -> None:
        """End the threads without waiting for what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@contextmanager
def replicas(wanted: Wanted, count: int, address: str | None) -> Iterator[Sequence[Lane]]:
    """So many lanes, each a Ray actor, on a cluster of its own on this machine or on one that runs.

    Args:
        wanted: what each is.
        count: how many.
        address: of a cluster; ``None`` starts one, which has a token of its own and ends with the block.

    Raises:
        FeatureUnavailableError: Ray is not installed.
        MLXEngineError: there is no room for them, or the model cannot be loaded.
    """
    places = Places(count=count, needed=wanted.needs.needed, budget=wanted.needs.budget, gpu=wanted.gpu)
    with cluster(places, address, "data") as ray:
        lanes: list[RayLane] = []
        try:
            kind = ray.remote(
                num_cpus=1,
                num_gpus=1 if wanted.gpu else 0,
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=wanted.task.at_once + 1,
            )(Replica)
            lanes = [RayLane(ray, kind.remote(wanted), wanted.task.at_once) for _ in range(count)]
            lanes[0].start()  # what is wrong with the model is said once, and it is fetched once
            yield lanes
        finally:
            for lane in lanes:
                lane.close()


__all__ = ["Replica", "Wanted", "replicas"]
