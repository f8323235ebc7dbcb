"""Units of rows over lanes. A lane is one model that takes a few requests at once, here or elsewhere.

A lane may die with all that it was asked (`LaneDied`). What it had is asked again, one unit at a time with
nothing beside it, so that what kills a lane is found by halving, and what was only beside it is not blamed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Protocol

from attrs import define, field
from mlxengine.errors import GenerationError, MLXEngineError

from ._outcomes import Outcome
from ._sources import Row
from .tasks import Task

_DEATHS = 2  # of a row that was alone: the first may have had another reason
_WITHOUT_SUCCESS = 3  # rows that killed a lane before any row succeeded: then it is not the rows


class LaneDied(Exception):
    """The process behind a lane ended; the next unit goes to its replacement."""


class Lane(Protocol):
    """One model: ``submit`` rows, of which ``at_once`` units may run."""

    at_once: int

    def submit(self, rows: Sequence[Row]) -> Future[list[Outcome]]:
        """Ask for rows; the future has one outcome for each, or raises `LaneDied`."""
        ...


class LocalLane:
    """A model in this process.

    Args:
        handle: the loaded model.
        task: what it is asked.
    """

    def __init__(self, handle: Any, task: Task) -> None:
        self.at_once = task.at_once
        self._handle = handle
        self._task = task
        self._threads = ThreadPoolExecutor(self.at_once, thread_name_prefix="mlxengine-batch")

    def submit(self, rows: Sequence[Row]) -> Future[list[Outcome]]:
        return self._threads.submit(self._task.run, self._handle, [row.values for row in rows])

    def close(self) -> None:
        """End the threads without waiting for what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@define
class _Unit:
    rows: Sequence[Row]
    suspect: bool = False
    deaths: int = 0


@define(eq=False)
class _State:
    """What lanes have in hand, which of them died, and what is to be asked again."""

    units: Iterator[_Unit]
    suspects: deque[_Unit] = field(factory=deque)
    running: dict[Future[list[Outcome]], tuple[Lane, _Unit]] = field(factory=dict)
    dead: set[Lane] = field(factory=set)
    succeeded: bool = False
    killed: int = 0

    def next_for(self, lane: Lane) -> _Unit | None:
        mine = [unit for other, unit in self.running.values() if other is lane]
        if len(mine) >= lane.at_once or any(unit.suspect for unit in mine):
            return None
        if self.suspects and (lane in self.dead or not mine):
            return None if mine else self.suspects.popleft()
        self.dead.discard(lane)
        return next(self.units, None)

    def died(self, lane: Lane, unit: _Unit) -> list[Row]:
        """Ask a dead lane's unit again, in halves if it was alone; or the row that is to blame."""
        self.dead.add(lane)
        if not unit.suspect:
            self.suspects.append(_Unit(unit.rows, suspect=True))
        elif len(unit.rows) > 1:
            half = len(unit.rows) // 2
            self.suspects.extendleft(
                _Unit(rows, suspect=True) for rows in (unit.rows[half:], unit.rows[:half])
            )
        elif unit.deaths + 1 < _DEATHS:
            self.suspects.appendleft(_Unit(unit.rows, suspect=True, deaths=unit.deaths + 1))
        else:
            self.killed += 1
            return list(unit.rows)
        return []


def work(rows: Iterator[Row], lanes: Sequence[Lane], size: int) -> Iterator[list[tuple[Row, Outcome]]]:
    """Ask lanes for rows, ``size`` at a time, and give outcomes as they come, in any order.

    Rows are read as lanes have room for them.

    Raises:
        MLXEngineError: what no row is to blame for.
    """
    state = _State(iter(lambda: _Unit(list(islice(rows, size))), _Unit([])))
    while True:
        for lane in lanes:
            while (unit := state.next_for(lane)) is not None:
                broken: list[tuple[Row, Outcome]] = [
                    (row, row.error) for row in unit.rows if row.error is not None
                ]
                if broken:
                    yield broken
                sound = [row for row in unit.rows if row.error is None]
                if sound:
                    unit.rows = sound
                    state.running[lane.submit(sound)] = lane, unit
        if not state.running:
            return
        done, _ = wait(state.running, return_when=FIRST_COMPLETED)
        for future in done:
            lane, unit = state.running.pop(future)
            try:
                outcomes = future.result()
            except LaneDied:
                if blamed := state.died(lane, unit):
                    yield [(row, _killed()) for row in blamed]
                if state.killed >= _WITHOUT_SUCCESS and not state.succeeded:
                    raise GenerationError(
                        f"The processes of this job die whatever row they are given: {state.killed} did.",
                        hint="See whether the model runs at all: mlxengine run; and whether memory is short.",
                    ) from None
                continue
            state.succeeded = True
            yield list(zip(unit.rows, outcomes, strict=True))


def _killed() -> MLXEngineError:
    return GenerationError(
        f"This row ended the process that it was given to, {_DEATHS} times, alone.",
        hint="Ask for it with mlxengine run; the crash is then to be seen.",
    )


__all__ = ["Lane", "LaneDied", "LocalLane", "work"]
