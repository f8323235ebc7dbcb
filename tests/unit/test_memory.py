"""The ledger, eviction, switching, recovery and health, on a kind that needs no model library."""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest
from mlxengine import (
    AsyncInferenceEngine,
    Claim,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    MemoryEstimate,
    Request,
    TextDelta,
    errors,
    hookimpl,
)
from mlxengine._memory.reservations import Reservations
from mlxengine._units import parse_bytes

MB = 10**6


@pytest.fixture(autouse=True)
def reservations(tmp_path, monkeypatch):
    path = tmp_path / "shared" / "reservations.json"
    monkeypatch.setenv("MLXENGINE_RESERVATIONS", str(path))
    return path


class Sized:
    """Serves folders whose config says how big a model they pretend to be, and how it behaves."""

    def __init__(self):
        self.loads, self.frees, self.warmed = [], [], []

    @hookimpl
    def claim_model(self, card):
        size = card.config["megabytes"] * MB
        return Claim(
            kind="sized", fit=Fit.NATIVE, uses_mlx=False, estimate=lambda _: MemoryEstimate(weights=size)
        )

    @hookimpl
    def load_model(self, card, context):
        name = context.path.name
        self.loads.append(name)

        def warm():
            for _ in range(card.config.get("slices", 1)):
                time.sleep(0.005)
                yield

        def warm_up():
            for _ in range(card.config["warm_up"]):
                self.warmed.append(name)
                if card.config.get("crash"):
                    raise ValueError("boom")
                yield

        return Loaded(
            model=card.config,
            warm=warm(),
            close=lambda: self.frees.append(name),
            warm_up=warm_up if "warm_up" in card.config else None,
        )

    @hookimpl
    def generate(self, model, request, context):
        for _ in range(model.get("steps", 2)):
            time.sleep(model.get("seconds", 0.001))
            if model.get("crash"):
                raise ValueError("boom")
            yield TextDelta(text="x")
        yield Finished()


@pytest.fixture
def plugin():
    return Sized()


@pytest.fixture
def make(tmp_path):
    def write(name, megabytes=400, **behaviour):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"megabytes": megabytes, **behaviour}))
        return folder

    return write


@pytest.fixture
def engine(plugin):
    with InferenceEngine(plugins=[("sized", plugin)], memory_budget="1GB") as made:
        yield made


def text(handle):
    return "".join(item.text for item in handle.run(Request()).events)


def test_an_idle_model_makes_room_and_its_next_request_loads_it_again(engine, plugin, make):
    a, b = engine.load(make("a")), engine.load(make("b"))
    text(a), text(b)
    c = engine.load(make("c"))
    assert plugin.frees == ["a"]
    report = engine.memory()
    assert (report.budget, report.reserved) == (1000 * MB, 800 * MB)
    assert [(item.id.rpartition("/")[2], item.reason.split()[0]) for item in report.evictions] == [
        ("a", "to")
    ]
    assert text(a) == "xx"
    assert plugin.loads == ["a", "b", "c", "a"]
    assert plugin.frees == ["a", "b"]
    assert text(c) == text(b) == "xx"


def test_what_is_busy_pinned_or_kept_stays_and_the_error_names_it(engine, make):
    a, b = engine.load(make("a")), engine.load(make("b"))
    a.pin()
    with b.keep("indexing"):
        with pytest.raises(errors.InsufficientMemoryError, match=r"381 MiB.*pinned.*indexing"):
            engine.load(make("c"))
        assert engine.memory().reserved == 800 * MB
    assert engine.load(engine.models[0].path.parent / "c")
    assert not engine.memory().models[0].evicted or engine.memory().evictions


def test_a_running_request_is_never_evicted(engine, plugin, make):
    a, b = engine.load(make("a", steps=40, seconds=0.01)), engine.load(make("b", steps=40, seconds=0.01))
    streams = [a.stream(Request()), b.stream(Request())]
    for stream in streams:
        next(stream)
    with pytest.raises(errors.InsufficientMemoryError, match="1 running"):
        engine.load(make("c"))
    assert [len(list(stream)) for stream in streams] == [40, 40]
    assert plugin.frees == []


def test_a_model_larger_than_the_budget_is_refused_before_it_is_loaded(engine, plugin, make):
    with pytest.raises(errors.InsufficientMemoryError, match=r"1\.9 GiB.*954 MiB"):
        engine.load(make("big", 2000))
    assert plugin.loads == []


def test_loads_at_once_never_overbook(engine, make):
    folders = [make(str(index), 300, slices=5) for index in range(8)]
    peak, failures, stop = [0], [], threading.Event()

    def watch():
        while not stop.is_set():
            peak[0] = max(peak[0], engine._pool.ledger.reserved)
            time.sleep(0.0005)

    def work(seed):
        for turn in range(6):
            try:
                with engine.load(folders[(seed * 5 + turn * 3) % 8]) as handle:
                    assert text(handle) == "xx"
            except errors.MLXEngineError as error:
                failures.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    watcher.join()
    assert not any(thread.is_alive() for thread in threads)
    assert 0 < peak[0] <= 1000 * MB
    assert all(type(error) is errors.InsufficientMemoryError for error in failures), failures
    assert engine.memory().reserved == 0


def test_an_idle_model_leaves_after_its_time_and_comes_back(plugin, make):
    with InferenceEngine(plugins=[("sized", plugin)], idle_ttl=0.2) as engine:
        handle = engine.load(make("a"))
        deadline = time.monotonic() + 5
        while not engine.memory().evictions and time.monotonic() < deadline:
            time.sleep(0.02)
        assert plugin.frees == ["a"]
        assert "0.2 s without a request" in engine.memory().evictions[0].reason
        assert text(handle) == "xx"


def test_another_process_of_the_same_user_counts_and_a_dead_one_does_not(plugin, make, reservations):
    program = (
        "import sys, time; from mlxengine._memory.reservations import Reservations; "
        "Reservations().set(700_000_000); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ)
    try:
        assert other.stdout.readline().strip() == b"held"
        with InferenceEngine(plugins=[("sized", plugin)], memory_budget="1GB") as engine:
            with pytest.raises(errors.InsufficientMemoryError, match=r"other processes \(668 MiB\)"):
                engine.load(make("a"))
            other.kill()
            other.wait()
            engine.load(make("b"))
            assert Reservations().others() == 400 * MB
        assert Reservations().others() == 0
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_a_damaged_or_unusable_reservations_file_stops_nobody(plugin, make, reservations):
    reservations.parent.mkdir()
    reservations.write_text("not json")
    with InferenceEngine(plugins=[("sized", plugin)], memory_budget="1GB") as engine:
        engine.load(make("a"))
    reservations.unlink()
    reservations.mkdir()
    with InferenceEngine(plugins=[("sized", plugin)], memory_budget="1GB") as engine:
        engine.load(make("b"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1000, 1000), ("8GB", 8 * 10**9), ("512 MiB", 512 * 2**20), ("1.5gb", 15 * 10**8), (None, None)],
)
def test_amounts_of_memory_are_read(value, expected):
    assert parse_bytes(value) == expected


@pytest.mark.parametrize("value", [0, -1, "-3GB", "lots", "", True, 1.5, "nan", "1e99GB"])
def test_what_is_not_an_amount_of_memory_is_an_invalid_parameter(value):
    with pytest.raises(errors.InvalidParameterError):
        InferenceEngine(plugins=[], memory_budget=value)


@pytest.mark.parametrize("ttl", [0, -1, float("nan")])
def test_a_ttl_that_is_not_positive_is_an_invalid_parameter(ttl):
    with pytest.raises(errors.InvalidParameterError):
        InferenceEngine(plugins=[], idle_ttl=ttl)


def test_switching_stops_frees_and_replaces_and_the_last_one_wins(engine, plugin, make):
    first = engine.switch(make("a", 900, steps=1000, seconds=0.005))
    stream = first.stream(Request())
    next(stream)
    second = engine.switch(make("b", 900))
    assert plugin.frees == ["a"]
    with pytest.raises(errors.CancelledError):
        list(stream)
    with pytest.raises(errors.ModelClosedError):
        first.stream(Request())
    assert text(second) == "xx"

    slow, outcome = make("slow", 500, slices=200), []

    def overtaken():
        try:
            outcome.append(engine.switch(slow))
        except errors.CancelledError as error:
            outcome.append(error)

    thread = threading.Thread(target=overtaken)
    thread.start()
    while "slow" not in plugin.loads:
        time.sleep(0.005)
    last = engine.switch(make("last", 900))
    thread.join(10)
    assert isinstance(outcome[0], errors.CancelledError)
    assert text(last) == "xx"
    assert [card.path.name for card in engine.models] == ["last"]


def test_switching_in_asyncio_does_the_same_and_a_cancelled_one_leaves_nothing(plugin, make):
    async def main():
        async with AsyncInferenceEngine(plugins=[("sized", plugin)], memory_budget="1GB") as engine:
            first = await engine.switch(make("a", 900, steps=1000, seconds=0.005))
            stream = first.stream(Request())
            await anext(stream)
            await engine.switch(make("b", 900))
            assert plugin.frees == ["a"]
            with pytest.raises(errors.CancelledError):
                [event async for event in stream]

            slow = asyncio.create_task(engine.switch(make("slow", 500, slices=200)))
            while "slow" not in plugin.loads:
                await asyncio.sleep(0.005)
            last = await engine.switch(make("last", 900))
            with pytest.raises(errors.CancelledError):
                await slow
            assert len((await last.run(Request())).events) == 2

            given_up = asyncio.create_task(engine.switch(make("given up", 500, slices=2000)))
            while "given up" not in plugin.loads:
                await asyncio.sleep(0.005)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            while "given up" not in plugin.frees:
                await asyncio.sleep(0.005)
            assert engine.sync.models == ()
            assert (await engine.memory()).reserved == 0

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_switch_that_cannot_be_meant_leaves_the_model_in_use(engine, plugin, make):
    first = engine.switch(make("a"))
    with pytest.raises(errors.InvalidParameterError):
        engine.switch(make("b"), verify="shallow")
    with pytest.raises(errors.InvalidModelRefError):
        engine.switch("org/name/more")
    assert text(first) == "xx"
    assert plugin.frees == []


@pytest.mark.parametrize("given_up", [True, False])
def test_a_switch_that_ends_early_leaves_a_load_that_others_wait_for(plugin, make, given_up):
    async def main():
        async with AsyncInferenceEngine(plugins=[("sized", plugin)], memory_budget="1GB") as engine:
            folder = make("shared", 500, slices=100)
            other = asyncio.create_task(engine.load(folder))
            switching = asyncio.create_task(engine.switch(folder))
            while "shared" not in plugin.loads:
                await asyncio.sleep(0.005)
            if given_up:
                switching.cancel()
                await asyncio.sleep(0.1)
            await engine.switch(make("next", 100))
            assert len((await (await other).run(Request())).events) == 2
            [ended] = await asyncio.gather(switching, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError if given_up else errors.CancelledError)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_model_that_is_switched_to_can_be_warmed_up_and_goes_where_that_fails(plugin, make):
    async def main():
        async with AsyncInferenceEngine(plugins=[("sized", plugin)]) as engine:
            await engine.switch(make("fine", warm_up=2), warm_up=True)
            assert plugin.warmed == ["fine"] * 2
            with pytest.raises(errors.PluginCrashedError):
                await engine.switch(make("crashes", warm_up=2, crash=True), warm_up=True)
            assert plugin.frees == ["fine", "crashes"]
            plain = engine.sync
            plain.switch(make("too", warm_up=1), warm_up=True)
            assert plugin.warmed == ["fine"] * 2 + ["crashes", "too"]
            with pytest.raises(errors.PluginCrashedError):
                plain.switch(make("again", warm_up=1, crash=True), warm_up=True)
            assert plain.models == ()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_process_that_is_forked_while_the_reservations_are_locked_holds_up_nobody(reservations):
    shared, context = Reservations(reservations), multiprocessing.get_context("fork")
    over = context.Event()
    with shared._locked():
        child = context.Process(target=over.wait, args=(20,))
        child.start()
    try:
        asked = threading.Thread(target=shared.others, daemon=True)
        asked.start()
        asked.join(5)
        assert not asked.is_alive()
    finally:
        over.set()
        child.join(20)


def test_health_says_what_really_ran_last(engine, plugin, make):
    assert engine.health().ok
    good = engine.load(make("good", 100))
    bad = engine.load(make("bad", 100, crash=True))
    text(good)
    assert engine.health().state == "healthy"
    with pytest.raises(errors.PluginCrashedError):
        text(bad)
    health = engine.health()
    assert health.state == "unhealthy"
    assert "boom" in health.reason
    text(good)
    assert engine.health().state == "healthy"


def test_a_long_step_is_degraded_within_a_second_and_streams_go_on_afterwards(engine, make):
    models = engine.load(make("slow", 100, steps=1, seconds=1.6)), engine.load(make("good", 100, steps=20))
    slow, good = (model.stream(Request()) for model in models)
    began = time.monotonic()
    while engine.health().ok and time.monotonic() - began < 3:
        time.sleep(0.02)
    health = engine.health()
    assert health.state == "degraded"
    assert "sized has been running" in health.reason
    assert time.monotonic() - began < 1.2
    assert len([item for item in good if isinstance(item, TextDelta)]) == 20
    assert len(list(slow)) == 2
    assert engine.health().ok


def test_a_model_that_crashes_again_and_again_is_loaded_afresh(engine, plugin, make):
    handle = engine.load(make("bad", 100, crash=True))
    for _ in range(4):
        with pytest.raises(errors.PluginCrashedError):
            text(handle)
    assert plugin.loads == ["bad", "bad"]
    assert "3 crashes in a row" in engine.memory().evictions[0].reason


def test_when_the_thread_dies_silent_requests_are_tried_again_and_others_are_told(engine, make, monkeypatch):
    spoken = engine.load(make("spoken", 100, steps=10**6)).stream(Request())
    next(spoken)
    scheduler = engine._scheduler
    serve, deaths = scheduler._rounds._serve, []

    def broken(*arguments, **more):
        if not deaths:
            deaths.append(1)
            raise KeyboardInterrupt
        return serve(*arguments, **more)

    silent = engine.load(make("silent", 100, steps=3, seconds=0.3)).stream(Request())
    monkeypatch.setattr(scheduler._rounds, "_serve", broken)
    began = time.monotonic()
    with pytest.raises(errors.GenerationError, match="thread failed"):
        list(spoken)
    assert time.monotonic() - began < 1
    assert len([item for item in silent if isinstance(item, TextDelta)]) == 3
    assert engine.health().state == "degraded"
    assert "was replaced" in engine.health().reason
