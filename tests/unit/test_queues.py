"""Requests that wait for a model of anybody's kind: how many may, for how long, and what is said of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import pytest
from attrs import frozen
from mlxengine import (
    AsyncInferenceEngine,
    Claim,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    ModelState,
    Request,
    TextDelta,
    Usage,
    hookimpl,
    openmetrics,
)
from mlxengine.errors import (
    InvalidParameterError,
    QueueFullError,
    RunTimeoutError,
    WaitTimeoutError,
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families

PLACES = 2


@frozen(kw_only=True)
class Said(Usage):
    words: int = 0


class Clerk:
    """Serves ``PLACES`` requests at once, of whoever waits the one of the highest priority first."""

    def __init__(self) -> None:
        self.served: list[int] = []  # priorities, in the order in which they had a place
        self.steps = 10
        self.broken = False
        self.open = threading.Event()
        self.open.set()
        self.inside: list[Visit] = []
        self.line: list[Visit] = []

    @hookimpl
    def claim_model(self, card: Any) -> Claim:
        return Claim(kind="counter", fit=Fit.NATIVE, uses_mlx=False)

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Loaded:
        return Loaded(model=self, state=self.state)

    def state(self) -> ModelState:
        return ModelState(rows=len(self.inside), kv_used=10 * len(self.inside), kv_total=100)

    @hookimpl
    def generate(self, model: Any, request: Request) -> Any:
        return Visit(self, request.priority)

    def call_in(self) -> None:
        while self.line and len(self.inside) < PLACES:
            best = max(self.line, key=lambda item: item.priority)
            self.line.remove(best)
            self.inside.append(best)
            self.served.append(best.priority)


class Visit:
    def __init__(self, clerk: Clerk, priority: int) -> None:
        self.clerk, self.priority, self.done = clerk, priority, 0
        clerk.line.append(self)

    def __iter__(self) -> Visit:
        return self

    @property
    def waiting(self) -> bool:
        return self in self.clerk.line

    def __next__(self) -> Any:
        self.clerk.call_in()
        if self.waiting:
            return None
        if not self.clerk.open.is_set():
            time.sleep(0.001)
            return None
        self.done += 1
        if self.done > self.clerk.steps:
            self.close()
            return Finished(usage=Said(words=self.clerk.steps))
        return TextDelta(text="x")

    @property
    def usage(self) -> Said:
        if self.clerk.broken:
            raise ZeroDivisionError
        return Said(words=self.done)

    def close(self) -> None:
        for place in (self.clerk.line, self.clerk.inside):
            if self in place:
                place.remove(self)


class Steps:
    """A plain generator: it knows of no places, and runs from its first step."""

    @hookimpl
    def claim_model(self, card: Any) -> Claim:
        return Claim(kind="counter", fit=Fit.NATIVE, uses_mlx=False)

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Loaded:
        return Loaded(model=self)

    @hookimpl
    def generate(self, model: Any, request: Request) -> Any:
        while True:
            time.sleep(0.001)
            yield TextDelta(text="x")


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def until(holds: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_of_300_requests_64_wait_236_are_refused_at_once_and_the_first_served_rank_highest(
    folder: Any,
) -> None:
    clerk = Clerk()
    clerk.open.clear()
    with InferenceEngine(plugins=[("clerk", clerk)]) as engine:
        model = engine.load(folder, features={"core.max_waiting": 64})
        before = [model.stream(Request()) for _ in range(PLACES)]
        until(lambda: len(clerk.inside) == PLACES and not model._live.waiting)
        taken, refusals, slowest = [], [], 0.0
        for number in range(300):
            began = time.perf_counter()
            try:
                taken.append(model.stream(Request(priority=number % 5)))
            except QueueFullError as error:
                refusals.append(error)
            slowest = max(slowest, time.perf_counter() - began)
        assert (len(taken), len(refusals)) == (64, 236)
        assert all(error.recoverable and error.hint for error in refusals)
        assert slowest < 1.0, "a refusal waited for a place"
        until(lambda: len(clerk.line) == 64)
        clerk.open.set()
        for stream in (*before, *taken):
            assert sum(isinstance(event, TextDelta) for event in stream) == 10
        assert clerk.served[PLACES:] == sorted(clerk.served[PLACES:], reverse=True)
        (counted,) = engine.metrics()
        assert counted.requests == {"done": 66, "QueueFullError": 236}
        assert model.run(Request()).finished, "there is room again"


def sample(text: str, name: str, **labels: str) -> float:
    """The value that prometheus-client's own parser finds."""
    [found] = [
        item.value
        for family in text_string_to_metric_families(text)
        for item in family.samples
        if item.name == name and labels.items() <= item.labels.items()
    ]
    return float(found)


def test_what_runs_and_waits_is_told_by_model_in_values_and_in_openmetrics(folder: Any) -> None:
    clerk = Clerk()
    clerk.open.clear()
    with InferenceEngine(plugins=[("clerk", clerk)]) as engine:
        model = engine.load(folder, features={"core.max_waiting": 64})
        streams = [model.stream(Request()) for _ in range(PLACES + 5)]
        until(lambda: len(clerk.inside) == PLACES and engine.status().queues[0].running == PLACES)
        (queue,) = engine.status().queues
        assert (queue.id, queue.kind, queue.most_waiting) == (model.id, "counter", 64)
        assert (queue.running, queue.waiting, queue.rows) == (PLACES, 5, PLACES)
        (held,) = engine.memory().models
        assert (held.running, held.waiting, held.kv_used, held.kv_total) == (PLACES, 5, 20, 100)
        text = openmetrics(engine)
        which = {"model": model.id, "kind": "counter"}
        assert sample(text, "mlxengine_model_requests", state="running", **which) == PLACES
        assert sample(text, "mlxengine_model_requests", state="waiting", **which) == 5
        assert sample(text, "mlxengine_model_most_waiting", **which) == 64
        assert sample(text, "mlxengine_model_rows", **which) == PLACES
        assert sample(text, "mlxengine_model_kv_bytes", of="used", **which) == 20
        assert sample(text, "mlxengine_model_kv_bytes", of="total", **which) == 100
        for stream in streams:
            stream.cancel()
        until(lambda: not model._live.tasks)
        (queue,) = engine.status().queues
        assert (queue.running, queue.waiting, queue.rows) == (0, 0, 0)


def test_what_cancelled_and_late_requests_used_is_counted_apart(folder: Any) -> None:
    clerk = Clerk()
    with InferenceEngine(plugins=[("clerk", clerk)], queue_size=4) as engine:
        model = engine.load(folder)
        model.run(Request())
        stream = model.stream(Request())
        until(lambda: clerk.inside and clerk.inside[0].done == 4)  # so many wait to be read
        stream.cancel()
        clerk.open.clear()
        with pytest.raises(RunTimeoutError):
            model.run(Request(run_timeout=0.05))
        (counted,) = engine.metrics()
        assert counted.requests == {"done": 1, "CancelledError": 1, "RunTimeoutError": 1}
        assert dict(counted.usage) == {"words": 10}
        assert dict(counted.unfinished) == {"words": 4}
        text = openmetrics(engine)
        assert sample(text, "mlxengine_unfinished_usage_total", unit="words") == 4


def test_an_iterator_that_cannot_say_what_it_used_is_closed_all_the_same(folder: Any) -> None:
    clerk = Clerk()
    clerk.open.clear()
    clerk.broken = True
    with InferenceEngine(plugins=[("clerk", clerk)]) as engine:
        model = engine.load(folder)
        stream = model.stream(Request())
        until(lambda: clerk.inside)
        stream.cancel()
        until(lambda: not model._live.tasks)
        assert not clerk.inside
        assert not engine.metrics()[0].unfinished


def test_asyncio_is_refused_alike_and_the_engine_has_a_default(folder: Any) -> None:
    async def main() -> None:
        clerk = Clerk()
        clerk.open.clear()
        async with AsyncInferenceEngine(
            plugins=[("clerk", clerk)], features={"core.max_waiting": 3}
        ) as engine:
            model = await engine.load(folder)
            streams = [model.stream(Request()) for _ in range(2)]
            while model._live.waiting:
                await asyncio.sleep(0.001)
            tasks = [asyncio.ensure_future(model.run(Request())) for _ in range(10)]
            await asyncio.wait(tasks, timeout=0.2)
            ended = Counter(type(task.exception()).__name__ for task in tasks if task.done())
            assert ended == {"QueueFullError": 7}
            with pytest.raises(QueueFullError):
                model.stream(Request())
            late = model.stream(Request(features=(("core.max_waiting", 4),)))  # a call's own bound
            clerk.open.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            for stream in (*streams, late):
                assert [event async for event in stream]

    asyncio.run(main())


def test_without_a_bound_any_number_waits(folder: Any) -> None:
    clerk = Clerk()
    clerk.steps = 1
    with InferenceEngine(plugins=[("clerk", clerk)]) as engine:
        model = engine.load(folder)
        streams = [model.stream(Request()) for _ in range(300)]
        assert sum(isinstance(list(stream)[-1], Finished) for stream in streams) == 300


@pytest.mark.parametrize("bound", [0, -1, True, "many", 2.5])
def test_a_bound_that_is_no_number_of_requests_is_refused(folder: Any, bound: Any) -> None:
    with InferenceEngine(plugins=[("clerk", Clerk())]) as engine:
        with pytest.raises(InvalidParameterError, match=r"core\.max_waiting"):
            engine.load(folder, features={"core.max_waiting": bound})
        model = engine.load(folder)
        with pytest.raises(InvalidParameterError, match=r"core\.max_waiting"):
            model.stream(Request(features=(("core.max_waiting", bound),)))


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), "1"])
def test_a_deadline_is_a_positive_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(InvalidParameterError, match="wait_timeout"):
        Request(wait_timeout=seconds)
    with pytest.raises(InvalidParameterError, match="run_timeout"):
        Request(run_timeout=seconds)


def test_who_waits_too_long_leaves_the_line_and_nobody_else_does(folder: Any) -> None:
    clerk = Clerk()
    clerk.open.clear()
    with InferenceEngine(plugins=[("clerk", clerk)]) as engine:
        model = engine.load(folder)
        running = [model.stream(Request(wait_timeout=0.05)) for _ in range(PLACES)]
        until(lambda: not model._live.waiting)
        short, long = model.stream(Request(wait_timeout=0.05)), model.stream(Request(wait_timeout=60))
        began = time.perf_counter()
        with pytest.raises(WaitTimeoutError) as caught:
            list(short)
        assert 0.03 < time.perf_counter() - began < 5
        assert caught.value.recoverable
        assert (len(clerk.line), len(clerk.inside)) == (1, PLACES)
        clerk.open.set()
        for stream in (*running, long):
            assert isinstance(list(stream)[-1], Finished)
        assert engine.metrics()[0].requests == {"done": 3, "WaitTimeoutError": 1}


@pytest.mark.parametrize("plugin", [Clerk, Steps])
def test_who_runs_too_long_ends_with_what_was_said_and_counts(folder: Any, plugin: Any) -> None:
    made = plugin()
    made.steps = 10**9
    with InferenceEngine(plugins=[("made", made)]) as engine:
        model, said = engine.load(folder), []
        with pytest.raises(RunTimeoutError) as caught:
            for event in model.stream(Request(run_timeout=0.1)):
                said.append(event)
        assert said
        assert not caught.value.recoverable
        (counted,) = engine.metrics()
        assert counted.requests == {"RunTimeoutError": 1}
        assert counted.device_seconds > 0


def test_a_reader_that_stopped_reading_does_not_hold_up_its_deadline(folder: Any) -> None:
    with InferenceEngine(plugins=[("steps", Steps())], queue_size=4) as engine:
        model = engine.load(folder)
        stream = model.stream(Request(run_timeout=0.1))
        until(lambda: not model._live.running)  # nothing is runnable: the loop wakes for the deadline
        with pytest.raises(RunTimeoutError):
            list(stream)


def test_the_deadline_of_waiting_holds_while_an_evicted_model_is_loaded(folder: Any) -> None:
    again = threading.Event()

    class Slow(Clerk):
        loads = 0

        @hookimpl
        def load_model(self, card: Any, context: Any) -> Loaded:
            self.loads += 1
            if self.loads > 1:
                again.wait(20)
            return Loaded(model=self)

    with InferenceEngine(plugins=[("slow", Slow())]) as engine:
        model = engine.load(folder)
        assert engine._pool.ledger.evict(model._live, "to see it come back")
        stream = model.stream(Request(wait_timeout=0.05))
        patient = model.stream(Request())
        with pytest.raises(WaitTimeoutError):
            list(stream)
        again.set()
        assert isinstance(list(patient)[-1], Finished)


def test_a_request_that_is_tried_again_keeps_its_deadline(folder: Any) -> None:
    class Late(Steps):
        began = 0

        @hookimpl
        def generate(self, model: Any, request: Request) -> Any:
            self.began += 1
            visit = Visit(Clerk(), 0)
            visit.clerk.inside = [visit, visit]  # there is never a place
            return visit

    late = Late()
    with InferenceEngine(plugins=[("late", late)]) as engine:
        model = engine.load(folder)
        with pytest.raises(WaitTimeoutError):
            list(model.stream(Request(wait_timeout=0.05)))
        assert late.began == 1, "it was tried again when its time was over"
