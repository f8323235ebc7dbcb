"""Loads that wait for memory: in order, beside steady traffic, given up in every phase, nothing lost."""

import json
import math
import random
import threading
import time

import pytest
from mlxengine import InferenceEngine, Request, errors

from .kept import Kept, text, wait_for


@pytest.fixture(autouse=True)
def reservations(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXENGINE_RESERVATIONS", str(tmp_path / "reservations.json"))


@pytest.fixture
def plugin():
    return Kept()


@pytest.fixture
def make(tmp_path):
    def write(name, **behaviour):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(behaviour))
        return folder

    return write


@pytest.fixture
def engine(plugin):
    with InferenceEngine(plugins=[("kept", plugin)], memory_budget="600MB") as made:
        yield made


class Thread(threading.Thread):
    """One that keeps what its work returned or raised."""

    def __init__(self, work):
        super().__init__()
        self.work, self.result, self.error = work, None, None
        self.start()

    def run(self):
        try:
            self.result = self.work()
        except Exception as error:
            self.error = error


def busy(engine, folder, **options):
    """A model with a request that runs until its stream is closed."""
    handle = engine.load(folder, **options)
    stream = handle.stream(Request())
    next(stream)
    return handle, stream


def test_a_load_that_may_wait_is_done_when_what_kept_the_memory_ends(engine, plugin, make):
    folder, seen = make("b"), []
    _, stream = busy(engine, make("a", steps=10**6))
    with pytest.raises(errors.InsufficientMemoryError, match="more than is free") as refused:
        engine.load(folder)
    assert "wait_for_memory" in refused.value.hint
    loading = Thread(lambda: engine.load(folder, wait_for_memory=30, on_progress=seen.append))
    wait_for(lambda: any(event.stage == "memory" for event in seen))
    assert [item.id for item in engine.loads] == [str(folder)]
    stream.close()
    loading.join(10)
    assert text(loading.result) == "00"
    assert plugin.loads == ["a", "b"]
    assert plugin.frees == ["a"]


def test_patience_ends_with_what_holds_the_memory_and_how_long_was_waited(engine, make):
    folder = make("b")
    _, stream = busy(engine, make("a", steps=10**6))
    began = time.monotonic()
    with pytest.raises(errors.InsufficientMemoryError, match="more than is free") as refused:
        engine.load(folder, wait_for_memory=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    assert "It waited for memory for 0.3 s." in refused.value.__notes__
    assert not engine.loads
    stream.close()
    assert text(engine.load(folder)) == "00"


def test_a_model_that_can_never_fit_is_refused_at_once_however_patient(engine, make):
    with pytest.raises(errors.InsufficientMemoryError, match="whole budget"):
        engine.load(make("giant", megabytes=700), wait_for_memory=math.inf)


@pytest.mark.parametrize("seconds", [-1, float("nan"), "60", True, None])
def test_a_patience_that_is_no_number_of_seconds_is_refused(engine, make, seconds):
    with pytest.raises(errors.InvalidParameterError, match="wait_for_memory"):
        engine.load(make("a"), wait_for_memory=seconds)


def test_those_who_wait_come_in_their_order_also_where_a_later_one_would_fit(engine, plugin, make):
    _, large = busy(engine, make("a", steps=10**6))
    _, small = busy(engine, make("z", steps=10**6, megabytes=150))
    loading = []
    for name, megabytes in (("b", 400), ("c", 150)):
        folder = make(name, megabytes=megabytes)
        loading.append(Thread(lambda folder=folder: engine.load(folder, wait_for_memory=30)))
        wait_for(lambda: len(engine._pool.ledger.line) == len(loading))
    small.close()
    time.sleep(0.2)
    assert plugin.loads == ["a", "z"]
    large.close()
    for item in loading:
        item.join(10)
    assert plugin.loads == ["a", "z", "b", "c"]


def test_steady_traffic_stands_back_for_a_load_that_waits_and_is_answered_after_it(engine, plugin, make):
    first = engine.load(make("a", steps=20, seconds=0.005), wait_for_memory=30)
    over = threading.Event()

    def ask():
        said = []
        while not over.is_set():
            said.append(text(first))
        return said

    asking = [Thread(ask) for _ in range(4)]  # so that the model is never idle
    wait_for(lambda: len(engine._pool.live()[0].tasks) == 4)
    began = time.monotonic()
    second = engine.load(make("b", steps=20, seconds=0.005), wait_for_memory=30)
    waited = time.monotonic() - began
    answers = [text(second) for _ in range(3)]
    over.set()
    for item in asking:
        item.join(20)
        assert item.error is None
        assert set(item.result) == {"0" * 20}
    assert answers == ["0" * 20] * 3
    assert waited < 5
    assert plugin.loads[:2] == ["a", "b"]
    assert len(plugin.loads) > 2, "the first came back for those who stood back"


def test_requests_over_models_that_do_not_fit_together_are_all_answered(engine, plugin, make):
    handles = [
        engine.load(make(name, steps=3, megabytes=megabytes), wait_for_memory=60)
        for name, megabytes in (("a", 400), ("b", 250), ("c", 300))
    ]
    rng = random.Random(0)
    most = []

    def watch():
        while not done.is_set():
            most.append(engine.memory().reserved)
            time.sleep(0.01)

    done = threading.Event()
    watching = Thread(watch)
    asking = []
    for _ in range(200):
        handle = rng.choice(handles)
        asking.append(Thread(lambda handle=handle: text(handle)))
        time.sleep(0.002)
    for item in asking:
        item.join(60)
    done.set()
    watching.join()
    assert [item.error for item in asking] == [None] * 200
    assert {item.result for item in asking} == {"000"}
    assert max(most) <= 600 * 10**6
    assert len(plugin.frees) >= len(plugin.loads) - 2


def test_giving_up_while_a_load_waits_and_closing_the_engine_leave_nothing(engine, make):
    _, stream = busy(engine, make("a", steps=10**6))
    folder = make("b")
    loading = Thread(lambda: engine.load(folder, wait_for_memory=math.inf))
    wait_for(lambda: len(engine._pool.ledger.line) == 1)
    began = time.monotonic()
    engine.close()
    loading.join(10)
    assert isinstance(loading.error, errors.CancelledError)
    assert time.monotonic() - began < 5
    assert len(engine._pool.ledger.line) == 0
    stream.close()


def held(engine, make):
    """A model whose next requests stand back, the stream that keeps it in memory, and the load that waits."""
    handle, stream = busy(engine, make("a", steps=10**6), wait_for_memory=30)
    folder = make("b")
    loading = Thread(lambda: engine.load(folder, wait_for_memory=30))
    wait_for(lambda: engine._pool.ledger.line.pressing)
    return handle, stream, loading


def test_a_request_that_stands_back_can_be_cancelled_and_has_its_deadline(engine, make):
    handle, stream, loading = held(engine, make)
    cancelled, late = handle.stream(Request()), handle.stream(Request(wait_timeout=0.2))
    (queue,) = engine.status().queues
    assert (queue.running, queue.waiting) == (1, 2)
    cancelled.close()
    with pytest.raises(errors.WaitTimeoutError):
        list(late)
    assert engine.status().queues[0].waiting == 0
    stream.close()
    loading.join(10)
    assert loading.error is None


def test_requests_that_stand_back_end_with_their_model(engine, make):
    handle, stream, loading = held(engine, make)
    waiting = handle.stream(Request())
    handle.close()
    with pytest.raises(errors.CancelledError, match="was closed"):
        list(waiting)
    with pytest.raises(errors.CancelledError):
        list(stream)
    loading.join(10)
    assert loading.error is None


def test_requests_go_on_when_the_load_that_they_stand_back_for_gives_up(engine, make):
    handle, stream = busy(engine, make("a", steps=10**6), wait_for_memory=30)
    folder = make("b")
    loading = Thread(lambda: engine.load(folder, wait_for_memory=1.5))
    wait_for(lambda: engine._pool.ledger.line.pressing)
    waiting = handle.stream(Request())
    loading.join(10)
    assert isinstance(loading.error, errors.InsufficientMemoryError)
    assert next(waiting).text == "0"
    waiting.close()
    stream.close()
