"""Requests that wait for a row: how many may, who is served first, and what deadlines do to others."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import attrs
import pytest
from llm_harness import Plugin, raw, tokens_of
from mlxengine import Finished, InferenceEngine, Request, TokenUsage, Waiting
from mlxengine.errors import QueueFullError, RunTimeoutError, WaitTimeoutError
from mlxengine.toolkit.pace import Pace

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


def test_of_a_prompt_that_is_given_up_what_was_read_is_counted(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    model.batch.pace = Pace(1.0, 64)  # in small pieces
    running = plugin.start(model, raw("x", max_tokens=2000, ignore_eos=True))
    given_up = plugin.start(model, raw("words " * 500, max_tokens=1))
    with plugin.backend.stream():
        while not (rows := [row for row in model.batch.caching if len(row.prompt) == 3000 and row.read]):
            for stream in (running, given_up):
                if isinstance(event := next(stream), Waiting):
                    wait([event.until])
        read = given_up.usage.prompt_tokens
        (entry,) = model.batch._decoder._reading._entries
        assert entry.row is rows[0]
        assert 0 < read == len(entry.held) < 3000
        given_up.close()
        assert given_up.usage == TokenUsage(prompt_tokens=read)
        running.close()


def test_200_cancels_in_every_phase_leave_memory_where_it_was_and_their_tokens_counted(
    tiny: Path,
) -> None:
    many = 200
    long = raw("words " * 60, max_tokens=900, temperature=0, ignore_eos=True)
    cold = (("llm.prompt_cache", False), ("llm.streaming", False))
    steady = attrs.evolve(raw("steady", max_tokens=60, temperature=0, ignore_eos=True), features=cold)
    with InferenceEngine(features={"llm.max_batch": 4}) as engine:
        model = engine.load_text(str(tiny))
        batch = model._live.loaded.model.batch
        alone = tokens_of(list(model.stream(steady)))
        phases: Counter[str] = Counter()

        def phase(stream: Any) -> str:
            """Where the newest row is when it is cancelled; on the scheduler's thread."""
            stream.cancel()
            rows = [row for row in (*batch.caching, *batch._waiting) if len(row.prompt) > 300]
            if not rows:
                return "preparing"
            return "decoding" if rows[-1].tokens else "reading" if rows[-1].inside else "waiting"

        def cancel(number: int) -> None:
            stream = model.stream(attrs.evolve(long, features=cold))
            wanted = number % 4
            if wanted == 1:
                until(lambda: any(len(row.prompt) > 300 for row in batch.caching))
            elif wanted == 2:
                until(lambda: any(len(row.tokens) > 2 for row in batch.caching if len(row.prompt) > 300))
            phases[engine._scheduler.run(lambda: phase(stream))] += 1
            until(lambda: not [task for task in model._live.tasks if task.cancelled])

        for number in range(8):
            cancel(number)
        before = engine.memory().active
        phases.clear()
        counted = dict(engine.metrics()[0].unfinished)
        for number in range(many):
            beside = model.stream(steady) if number % 20 == 0 else None
            cancel(number)
            if beside is not None:
                assert tokens_of(list(beside)) == alone
        until(lambda: not model._live.tasks)
        after = engine.memory()
        assert after.active <= before + 2**16
        assert (len(batch), batch.cost, after.models[0].kv_used) == (0, 0, 0)
        (now,) = engine.metrics()
        assert now.requests["CancelledError"] == many + 8
        decoded = now.unfinished["completion_tokens"] - counted["completion_tokens"]
        read = now.unfinished["prompt_tokens"] - counted["prompt_tokens"]
        assert decoded >= 3 * phases["decoding"] > 0, phases
        assert read >= 360 * phases["decoding"], phases
        assert {"reading", "decoding"} < set(phases), phases


@pytest.mark.feature("llm.preemption")
@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1.0, "seed": 7}])
def test_an_answer_is_parked_for_one_of_a_higher_priority_and_goes_on_as_alone(
    plugin: Plugin, tiny: Path, params: dict[str, Any]
) -> None:
    model = plugin.load(tiny, flags={"max_batch": ROWS, "preemption": True})

    def ask(name: str, priority: int, tokens: int) -> Any:
        request = raw(name, max_tokens=tokens, ignore_eos=True, repetition_penalty=1.1, **params)
        return plugin.start(model, attrs.evolve(request, priority=priority), prompt_cache=False)

    asked = [("low one", 0, 60), ("low two", 0, 60), ("middle", 1, 20), ("high", 2, 20), ("same", 0, 5)]
    alone = [tokens_of(plugin.run([ask(*item)])[0]) for item in asked]
    ends: list[int] = []
    parked: list[str] = []
    park = model.batch._park

    def noted(decoder: Any, row: Any) -> None:
        parked.append(plugin_text(model, row))
        park(decoder, row)

    model.batch._park = noted
    streams = [Noted(ask(*item), number, ends) for number, item in enumerate(asked[:2])]
    later = [lambda n=n: Noted(ask(*asked[n]), n, ends) for n in range(2, 5)]
    found = plugin.run(streams, later={10: [later[0], later[2]], 14: [later[1]]})
    assert sorted(parked) == ["low one", "low two"], "the one of the same priority pushes nobody out"
    assert set(ends[:2]) == {2, 3}, "those of a higher priority end first"
    order = [0, 1, 2, 4, 3]  # as they came
    assert [tokens_of(events) for events in found] == [alone[number] for number in order]
    assert not len(model.batch)
    assert model.batch.cost == 0


def test_without_the_flag_nobody_is_pushed_out(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, flags={"max_batch": 1})
    ends: list[int] = []

    def ask(number: int, priority: int) -> Any:
        request = raw("x", max_tokens=20, temperature=0, ignore_eos=True)
        return Noted(plugin.start(model, attrs.evolve(request, priority=priority)), number, ends)

    plugin.run([ask(0, 0)], later={5: [lambda: ask(1, 9)]})
    assert ends == [0, 1]


def plugin_text(model: Any, row: Any) -> str:
    return str(model.tokenizer.decode(row.prompt))


class Noted:
    """A stream that notes when it is at its end."""

    def __init__(self, stream: Any, number: int, ends: list[int]) -> None:
        self.stream, self.number, self.ends = stream, number, ends

    def __next__(self) -> Any:
        event = next(self.stream)
        if isinstance(event, Finished):
            self.ends.append(self.number)
        return event


@pytest.mark.parametrize("seed", [0, 1])
def test_random_traffic_under_preemption_is_answered_as_each_alone(
    plugin: Plugin, tiny: Path, seed: int
) -> None:
    chance = random.Random(seed)
    model = plugin.load(tiny, flags={"max_batch": 3, "preemption": True})
    asked = [(chance.randrange(1000), chance.randrange(4)) for _ in range(24)]

    def ask(number: int, priority: int) -> Any:
        drawn = {"temperature": float(number % 2), "seed": number, "n": 2 if number % 5 == 0 else 1}
        request = raw("q" * (number % 40 + 1), max_tokens=5 + number % 37, ignore_eos=True, **drawn)
        return plugin.start(model, attrs.evolve(request, priority=priority), prompt_cache=bool(number % 3))

    def choices(events: list[Any]) -> list[list[int]]:
        return [tokens_of([event for event in events if event.index == at]) for at in (0, 1)]

    alone = [choices(plugin.run([ask(number, 0)])[0]) for number, _ in asked]
    parks: list[Any] = []
    park = model.batch._park
    model.batch._park = lambda decoder, row: (parks.append(row), park(decoder, row))
    later: dict[int, list[Any]] = {}
    for item, turn in zip(asked, sorted(chance.randrange(150) for _ in asked), strict=True):
        later.setdefault(turn, []).append(lambda item=item: ask(*item))
    assert [choices(events) for events in plugin.run([], later=later)] == alone
    assert len(parks) > 3
    assert (len(model.batch), model.batch.cost) == (0, 0)
