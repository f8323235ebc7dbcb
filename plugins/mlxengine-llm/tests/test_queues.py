"""Requests that wait for a row: how many may, who is served first, and what deadlines do to others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from llm_harness import raw, tokens_of
from mlxengine import Finished, InferenceEngine, Request
from mlxengine.errors import QueueFullError, RunTimeoutError, WaitTimeoutError

ROWS = 2
# Quiet, so that nobody has to read it for it to keep its row.
LONG = attrs.evolve(
    raw("a long one", max_tokens=100_000, temperature=0, ignore_eos=True),
    features=(("llm.streaming", False),),
)


@pytest.fixture(scope="module")
def engine() -> Iterator[InferenceEngine]:
    with InferenceEngine(features={"llm.max_batch": ROWS, "core.max_waiting": 64}) as found:
        yield found


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def short(number: int, **options: Any) -> Request:
    request = raw(f"request {number % 7}", max_tokens=3 + number % 4, temperature=0, ignore_eos=True)
    return attrs.evolve(request, **options)


@pytest.mark.feature("core.max_waiting")
def test_of_300_requests_64_are_served_by_priority_as_each_alone(engine: InferenceEngine, tiny: Path) -> None:
    with engine.load_text(str(tiny)) as model:
        alone = {number: tokens_of(list(model.stream(short(number)))) for number in range(28)}
        busy = [model.stream(LONG) for _ in range(ROWS)]
        until(lambda: not model._live.waiting)
        taken: dict[int, Any] = {}
        refused, began = 0, time.perf_counter()
        for number in range(300):
            try:
                taken[number] = model.stream(short(number, priority=number % 5))
            except QueueFullError:
                refused += 1
        assert (len(taken), refused) == (64, 236)
        assert time.perf_counter() - began < 5.0
        until(lambda: len(model._live.loaded.model.batch) == ROWS + 64)
        with pytest.raises(QueueFullError):  # rows that were begun and have no place in the batch wait too
            model.stream(short(0))
        for stream in busy:
            stream.cancel()
        ends = {}
        for number, stream in taken.items():
            events = list(stream)
            assert tokens_of(events) == alone[number % 28]
            ends[number] = events[-1].metrics.queue_seconds
        order = [number % 5 for number in sorted(ends, key=ends.__getitem__)]
        # What enters in the same step waited the same time but for its place in the round.
        assert all(earlier >= later for earlier, later in zip(order[:-ROWS], order[ROWS:], strict=True)), (
            order
        )


def test_rows_and_the_bytes_that_their_caches_fill_are_told(engine: InferenceEngine, tiny: Path) -> None:
    with engine.load_text(str(tiny)) as model:
        streams = [model.stream(LONG) for _ in range(ROWS + 3)]
        batch = model._live.loaded.model.batch
        until(lambda: batch.inside == ROWS and all(len(row.tokens) > 280 for row in batch.caching))

        def both() -> tuple[int, int]:
            layers = batch._decoder._batch.layers
            return sum(layer.nbytes for layer in layers), model._live.state.kv_used

        measured, told = engine._scheduler.run(both)
        assert told == pytest.approx(measured, rel=0.15)
        (queue,) = engine.status().queues
        assert (queue.running, queue.waiting, queue.rows) == (ROWS, 3, ROWS)
        (held,) = engine.memory().models
        assert told <= held.kv_used <= held.kv_total
        for stream in streams:
            stream.cancel()
        until(lambda: not model._live.tasks)
        assert engine.memory().models[0].kv_used == 0


def test_a_deadline_takes_out_its_own_row_and_no_other_is_changed(
    engine: InferenceEngine, tiny: Path
) -> None:
    with engine.load_text(str(tiny)) as model:
        steady = attrs.evolve(LONG, params=attrs.evolve(LONG.params, max_tokens=150), features=())
        alone = tokens_of(list(model.stream(steady)))
        other = model.stream(steady)
        running = model.stream(attrs.evolve(LONG, run_timeout=0.1))
        until(lambda: not model._live.waiting)
        waiting = model.stream(attrs.evolve(LONG, wait_timeout=0.03))
        with pytest.raises(WaitTimeoutError):
            list(waiting)
        with pytest.raises(RunTimeoutError):
            list(running)
        assert tokens_of(list(other)) == alone
        assert not len(model._live.loaded.model.batch)
        assert isinstance(list(model.stream(short(1)))[-1], Finished)
