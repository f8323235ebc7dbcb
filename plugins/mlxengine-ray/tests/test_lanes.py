"""Units over lanes that die: nothing is lost, nothing is done twice, and the row that kills is found."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from attrs import define, field
from mlxengine.errors import GenerationError, InvalidParameterError
from mlxengine_ray._lanes import LaneDied, work
from mlxengine_ray._sources import Row


@define(eq=False)
class Mortal:
    """A lane that dies of the rows ``deadly``, with all that it has in hand; ``shots`` times of nothing.

    ``groups`` are the units that it had in hand together, in order.
    """

    deadly: frozenset[int] = frozenset()
    at_once: int = 1
    shots: int = 0
    stagger: float = 0.0
    groups: list[list[list[int]]] = field(factory=list)
    _hand: list[tuple[list[int], Future[Any]]] = field(factory=list)

    def submit(self, rows: Sequence[Row]) -> Future[Any]:
        future: Future[Any] = Future()
        self._hand.append(([row.number for row in rows], future))
        if len(self._hand) == 1:
            threading.Timer(0.001, self._end).start()
        return future

    def _end(self) -> None:
        hand, self._hand = self._hand, []
        self.groups.append([unit for unit, _ in hand])
        dies = self.shots > 0 or any(self.deadly.intersection(unit) for unit, _ in hand)
        self.shots -= self.shots > 0
        for unit, future in hand:
            time.sleep(self.stagger)
            if dies:
                future.set_exception(LaneDied())
            else:
                future.set_result([{"n": number} for number in unit])


def numbered(count: int) -> list[Row]:
    return [Row(number=number, source=f"t:{number}") for number in range(count)]


def done(rows: list[Row], lanes: list[Mortal], size: int) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for outcomes in work(iter(rows), lanes, size):
        for row, outcome in outcomes:
            assert row.number not in found
            found[row.number] = outcome
    return found


def test_every_row_has_its_own_outcome_and_rows_that_cannot_be_read_reach_no_lane() -> None:
    rows = numbered(100)
    broken = InvalidParameterError("no JSON")
    rows[7] = Row(number=7, source="t:7", error=broken)
    lanes = [Mortal(), Mortal()]
    found = done(rows, lanes, 8)
    assert found.pop(7) is broken
    assert found == {n: {"n": n} for n in range(100) if n != 7}
    assert 7 not in [n for lane in lanes for group in lane.groups for unit in group for n in unit]


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("deadly", [{37}, {0, 1}, {99}, {5, 50, 51, 90}])
def test_rows_that_kill_are_found_and_no_other_is_blamed(lanes: int, deadly: set[int]) -> None:
    found = done(numbered(100), [Mortal(frozenset(deadly)) for _ in range(lanes)], 16)
    assert {n for n, outcome in found.items() if isinstance(outcome, GenerationError)} == deadly
    assert len(found) == 100


def test_halving_takes_a_logarithm_of_deaths() -> None:
    lane = Mortal(frozenset({700}))
    done(numbered(1024), [lane], 256)
    deaths = sum(700 in unit for group in lane.groups for unit in group)
    assert deaths == 1 + 9 + 1  # in company, alone in units of 256 to 1, and once more


def test_a_lane_that_is_shot_from_outside_loses_nothing_and_blames_nobody() -> None:
    found = done(numbered(50), [Mortal(shots=3), Mortal()], 8)
    assert found == {n: {"n": n} for n in range(50)}


def test_a_unit_that_is_suspected_has_nothing_beside_it() -> None:
    lane = Mortal(frozenset({9}), at_once=2)
    found = done(numbered(16), [lane], 4)
    assert {n for n, outcome in found.items() if isinstance(outcome, GenerationError)} == {9}
    first, *later = [group for group in lane.groups if any(9 in unit for unit in group)]
    assert first == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert later == [[[8, 9, 10, 11]], [[8, 9]], [[9]], [[9]]]


def test_processes_that_die_of_every_row_end_the_job() -> None:
    with pytest.raises(GenerationError, match="whatever row"):
        done(numbered(100), [Mortal(frozenset(range(100)))], 8)


def test_a_lane_that_died_is_given_nothing_new_before_what_it_had_is_cleared_up() -> None:
    read = []

    def rows() -> Any:
        for row in numbered(4000):
            read.append(row.number)
            yield row

    lanes = [Mortal(frozenset(range(4000)), at_once=4, stagger=0.01)]
    with pytest.raises(GenerationError, match="whatever row"):
        list(work(rows(), lanes, 8))
    assert len(read) == 4 * 8


def test_rows_are_read_only_as_lanes_have_room() -> None:
    read = []

    def rows() -> Any:
        for row in numbered(1000):
            read.append(row.number)
            yield row

    outcomes = work(rows(), [Mortal()], 10)
    next(outcomes)
    assert len(read) <= 20
