"""How long a model stays: its own idle time, out at once with its handles kept, closing with a drain,
and what is being loaded."""

import argparse
import asyncio
import json
import math
import random
import threading
import time

import pytest
from mlxengine import (
    AsyncInferenceEngine,
    InferenceEngine,
    Progress,
    Request,
    errors,
)
from mlxengine.cli import ps
from mlxengine.cli._output import Output

from .kept import SETUP, Kept, text, wait_for


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
    with InferenceEngine(plugins=[("kept", plugin)], memory_budget="1GB") as made:
        yield made


# -- idle time per model -------------------------------------------------------------------------------


def test_each_model_leaves_after_its_own_time_and_one_without_stays(plugin, make):
    with InferenceEngine(plugins=[("kept", plugin)], memory_budget="8GB", idle_ttl=600) as engine:
        short, usual = engine.load(make("short"), idle_ttl=0.05), engine.load(make("usual"))
        never = engine.load(make("never"), idle_ttl=None)
        assert (short.idle_ttl, usual.idle_ttl, never.idle_ttl) == (0.05, 600, None)
        wait_for(lambda: engine.memory().evictions)
        assert plugin.frees == ["short"]
        assert "0.05 s without a request" in engine.memory().evictions[0].reason
        assert text(short) == "00"
        assert short.idle_ttl == 0.05, "it is the same when the model has come back"


def test_a_handle_changes_the_idle_time_of_its_model_for_all_who_share_it(engine, plugin, make):
    folder = make("a")
    first, second = engine.load(folder), engine.load(folder)
    assert first.idle_ttl is None
    second.idle_ttl = 0.05
    assert first.idle_ttl == 0.05
    wait_for(lambda: plugin.frees == ["a"], seconds=5)
    assert engine.load(folder).idle_ttl == 0.05, "a load that says nothing leaves it"
    assert engine.load(folder, idle_ttl=None).idle_ttl is first.idle_ttl is None


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "60", True])
def test_an_idle_time_that_is_not_positive_is_refused_at_load_and_on_the_handle(
    engine, plugin, make, seconds
):
    folder = make("a")
    for ask in (engine.load, engine.switch):
        with pytest.raises(errors.InvalidParameterError, match="idle_ttl"):
            ask(folder, idle_ttl=seconds)
    assert plugin.loads == []
    handle = engine.load(folder, idle_ttl=5)
    with pytest.raises(errors.InvalidParameterError, match="idle_ttl"):
        handle.idle_ttl = seconds
    assert handle.idle_ttl == 5


# -- out at once ---------------------------------------------------------------------------------------


def test_evicting_frees_the_weights_and_the_next_request_finds_what_others_had_set_up(engine, plugin, make):
    handle = engine.load(make("a"))
    assert text(handle, SETUP) == text(handle) == "11"
    assert handle.evict() is True
    assert plugin.frees == ["a"]
    assert engine.memory().reserved == 0
    assert [item.reason for item in engine.memory().evictions] == ["because its holder asked for it"]
    assert handle.evict() is True, "it is out already"
    assert plugin.frees == ["a"]
    assert text(handle) == "11"
    assert plugin.loads == ["a", "a"]


def test_what_is_busy_pinned_or_kept_is_not_evicted_on_demand(engine, plugin, make):
    handle = engine.load(make("a", steps=1000, seconds=0.005))
    stream = handle.stream(Request())
    next(stream)
    assert handle.evict() is False
    stream.close()
    wait_for(lambda: not engine.memory().models[0].running)
    with handle.keep("indexing"):
        assert handle.evict() is False
    handle.pin()
    assert handle.evict() is False
    handle.pin(False)
    assert plugin.frees == []
    assert handle.evict() is True


def test_a_model_that_is_being_brought_back_is_not_evicted_though_who_asked_has_given_up(
    engine, plugin, make
):
    handle = engine.load(make("a", slices=100))
    handle.evict()
    given_up = handle.stream(Request())
    wait_for(lambda: handle._live.loaded is not None)
    given_up.close()
    wait_for(lambda: not handle._live.tasks, seconds=1)
    assert handle.evict() is False
    waiting = handle.stream(Request())
    assert len(list(waiting)) == 3
    assert plugin.frees == ["a"]


def test_a_closed_handle_or_engine_evicts_nothing_and_says_so(engine, plugin, make):
    folder = make("a")
    first, second = engine.load(folder), engine.load(folder)
    first.close()
    with pytest.raises(errors.ModelClosedError):
        first.evict()
    engine.close()
    with pytest.raises(errors.EngineClosedError):
        second.evict()


def test_in_asyncio_a_model_has_its_own_idle_time_and_is_evicted_on_demand(plugin, make):
    async def main():
        async with AsyncInferenceEngine(plugins=[("kept", plugin)], memory_budget="1GB") as engine:
            handle = await engine.load(make("a"), idle_ttl=300)
            assert handle.idle_ttl == 300
            assert await handle.evict() is True
            assert plugin.frees == ["a"]
            assert len((await handle.run(Request())).events) == 2
            switched = await engine.switch(make("b"), idle_ttl=0.05)
            while "b" not in plugin.frees:
                await asyncio.sleep(0.005)
            await handle.close()
            with pytest.raises(errors.ModelClosedError):
                await handle.evict()
            assert len((await switched.run(Request())).events) == 2

    asyncio.run(asyncio.wait_for(main(), 20))


# -- drain ---------------------------------------------------------------------------------------------


class Closing:
    """Calls something on a thread, and says when it has returned."""

    def __init__(self, call):
        self.seconds, self._thread = None, threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call):
        began = time.monotonic()
        call()
        self.seconds = time.monotonic() - began

    def wait(self):
        self._thread.join(20)
        assert self.seconds is not None
        return self.seconds


def started(handle):
    stream = handle.stream(Request())
    next(stream)
    return stream


def test_a_handle_that_drains_lets_its_requests_end_and_takes_no_new_ones(engine, plugin, make):
    handle = engine.load(make("a", steps=40, seconds=0.01))
    stream = started(handle)
    closing = Closing(lambda: handle.close(drain=math.inf))
    wait_for(lambda: handle.closed)
    with pytest.raises(errors.ModelClosedError):
        handle.stream(Request())
    assert plugin.frees == []
    assert len(list(stream)) == 40
    closing.wait()
    assert plugin.frees == ["a"]
    assert engine.memory().reserved == 0


def test_a_drain_ends_after_its_seconds_and_what_still_runs_is_told(engine, plugin, make):
    handle = engine.load(make("a", steps=10**6))
    stream = started(handle)
    assert 0.2 <= Closing(lambda: handle.close(drain=0.2)).wait() < 5
    with pytest.raises(errors.CancelledError, match="closed while the request was running"):
        list(stream)
    assert plugin.frees == ["a"]


def test_of_two_handles_that_drain_at_once_the_last_one_waits_and_no_request_is_cut(engine, plugin, make):
    folder = make("a", steps=40, seconds=0.01)
    handles = [engine.load(folder), engine.load(folder)]
    streams = [started(handle) for handle in handles]
    closing = [Closing(lambda handle=handle: handle.close(drain=20)) for handle in handles]
    assert [len(list(stream)) for stream in streams] == [40, 40]
    assert max(item.wait() for item in closing) > 0.1
    assert plugin.frees == ["a"]


def test_what_a_handle_drains_is_not_cut_by_another_that_just_closes(engine, plugin, make):
    folder = make("a", steps=40, seconds=0.01)
    first, second = engine.load(folder), engine.load(folder)
    stream = started(first)
    closing = Closing(lambda: first.close(drain=20))
    wait_for(lambda: first.closed)
    second.close()
    assert len(list(stream)) == 40
    closing.wait()
    assert plugin.frees == ["a"]


def test_who_loads_a_model_that_drains_shares_it_and_it_stays(engine, plugin, make):
    folder = make("a", steps=30, seconds=0.01)
    first = engine.load(folder)
    stream = started(first)
    closing = Closing(lambda: first.close(drain=20))
    wait_for(lambda: first.closed)
    second = engine.load(folder)
    closing.wait()
    assert len(list(stream)) == 30
    assert len(text(second)) == 30
    assert plugin.loads == ["a"]
    assert plugin.frees == []


def test_an_engine_that_drains_refuses_requests_and_loads_and_lets_what_runs_end(engine, plugin, make):
    first = engine.load(make("a", steps=40, seconds=0.01))
    second = engine.load(make("b"))
    stream = started(first)
    closing = Closing(lambda: engine.close(drain=20))
    wait_for(lambda: engine._draining)
    for refused in (
        lambda: second.stream(Request()),
        lambda: engine.load(make("c")),
        second.evict,
    ):
        with pytest.raises(errors.EngineClosedError, match="is closing"):
            refused()
    assert not engine.closed
    assert len(list(stream)) == 40
    assert closing.wait() < 10
    assert engine.closed
    assert sorted(plugin.frees) == ["a", "b"]


def test_a_drain_of_an_engine_brings_back_the_model_that_a_request_waits_for(engine, plugin, make):
    handle = engine.load(make("a", slices=50))
    handle.evict()
    stream = handle.stream(Request())
    engine.close(drain=20)
    assert len(list(stream)) == 3
    assert plugin.loads == plugin.frees == ["a", "a"]


def test_closing_meanwhile_ends_the_drain_of_engine_and_handle(engine, plugin, make):
    handle, other = engine.load(make("a", steps=10**6)), engine.load(make("b", steps=10**6))
    streams = [started(handle), started(other)]
    closing = [Closing(lambda: other.close(drain=600)), Closing(lambda: engine.close(drain=600))]
    wait_for(lambda: engine._draining and other.closed)
    engine.close()
    for stream in streams:
        with pytest.raises(errors.CancelledError):
            list(stream)
    assert all(item.wait() < 15 for item in closing)
    assert sorted(plugin.frees) == ["a", "b"]


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", None, True])
def test_a_drain_that_is_no_number_from_0_on_is_refused_and_nothing_is_closed(engine, make, seconds):
    handle = engine.load(make("a"))
    for close in (handle.close, engine.close):
        with pytest.raises(errors.InvalidParameterError, match="drain"):
            close(drain=seconds)
    assert text(handle) == "00"


def test_in_asyncio_engine_and_handle_drain_without_blocking_the_loop(plugin, make):
    async def main():
        engine = AsyncInferenceEngine(plugins=[("kept", plugin)], memory_budget="1GB")
        handle = await engine.load(make("a", steps=30, seconds=0.01))
        reading = asyncio.create_task(handle.run(Request()))
        while not engine.sync.status().tasks:
            await asyncio.sleep(0.001)
        await handle.close(drain=20)
        assert len((await reading).events) == 30
        assert plugin.frees == ["a"]
        other = await engine.load(make("b", steps=30, seconds=0.01))
        reading = asyncio.create_task(other.run(Request()))
        while not engine.sync.status().tasks:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(engine.close(drain=20))
        while not engine.sync._draining:
            await asyncio.sleep(0.001)
        with pytest.raises(errors.EngineClosedError, match="is closing"):
            await other.run(Request())
        assert len((await reading).events) == 30
        await closing
        assert plugin.frees == ["a", "b"]

    asyncio.run(asyncio.wait_for(main(), 20))


# -- loads under way -----------------------------------------------------------------------------------


def told(capsys, *, as_json=True):
    ps.run(argparse.Namespace(), Output(json=as_json))
    shown = capsys.readouterr().out
    return json.loads(shown)["engines"] if as_json else shown


def test_loads_are_listed_with_their_progress_here_and_to_other_processes(engine, plugin, make, capsys):
    assert engine.loads == ()
    folder = make("a", parts=2)
    loading = Closing(lambda: engine.load(folder))
    wait_for(lambda: engine.loads and (said := engine.loads[0].progress) and said.stage == "unpack")
    plugin.parts = 1
    wait_for(lambda: engine.loads[0].progress == Progress(stage="unpack", done=1, total=4, unit="parts"))
    [load] = engine.loads
    assert load.id == str(folder)
    assert 0 < load.seconds < 10
    wait_for(lambda: any(item["done"] == 1 for entry in told(capsys) for item in entry["loads"]))
    [entry] = told(capsys)
    seconds = entry["loads"][0].pop("seconds")
    assert 0 <= seconds < 30
    assert entry["loads"] == [{"id": str(folder), "stage": "unpack", "done": 1, "total": 4, "unit": "parts"}]
    assert f"{folder}  loading: unpack 25%, " in told(capsys, as_json=False)
    plugin.parts = 2
    loading.wait()
    assert engine.loads == ()
    wait_for(lambda: told(capsys) and not told(capsys)[0]["loads"])


def test_a_model_that_is_brought_back_is_listed_too(engine, plugin, make):
    plugin.parts = 1
    handle = engine.load(make("a", parts=1))
    handle.evict()
    plugin.parts = 0
    stream = handle.stream(Request())
    wait_for(lambda: engine.loads and (said := engine.loads[0].progress) and said.stage == "unpack")
    assert engine.loads[0].id == handle.id
    plugin.parts = 1
    assert len(list(stream)) == 3
    assert engine.loads == ()


def test_a_load_that_fails_or_is_cut_off_by_closing_is_listed_no_more(engine, plugin, make, capsys):
    with pytest.raises(errors.InsufficientMemoryError):
        engine.load(make("big", megabytes=2000))
    assert engine.loads == ()

    folder = make("a", parts=1)

    def load():
        with pytest.raises(errors.CancelledError):
            engine.load(folder)

    loading = Closing(load)
    wait_for(lambda: str(folder) in told(capsys, as_json=False))
    engine.close()
    loading.wait()
    assert engine.loads == ()
    assert told(capsys) == []


# -- everything at once --------------------------------------------------------------------------------


def test_loads_evictions_closes_and_requests_from_threads_and_asyncio_race_without_a_loss(plugin, make):
    folders = [make(f"m{number}", megabytes=300, slices=3) for number in range(5)]
    whole, refused, surprises = [], [], []

    def note(error):
        (refused if type(error) is errors.InsufficientMemoryError else surprises).append(error)

    async def in_asyncio(engine, seed):
        chance = random.Random(seed)
        for _ in range(25):
            try:
                async with await engine.load(chance.choice(folders)) as handle:
                    running = asyncio.create_task(handle.run(Request()))
                    if chance.random() < 0.4:
                        await asyncio.sleep(chance.random() * 0.01)
                        running.cancel()
                    await handle.evict()
                    whole.append(len((await running).events))
            except asyncio.CancelledError:
                continue
            except BaseException as error:
                note(error)

    def in_a_thread(engine, seed):
        chance = random.Random(seed)
        for _ in range(25):
            try:
                handle = engine.load(chance.choice(folders), idle_ttl=chance.choice([0.01, None]))
            except BaseException as error:
                note(error)
                continue
            try:
                stream = handle.stream(Request())
                if chance.random() < 0.3:
                    stream.close()
                    handle.evict()
                    whole.append(len(text(handle)))
                elif chance.random() < 0.5:
                    handle.close(drain=5)
                    whole.append(len(list(stream)) - 1)
                else:
                    handle.evict()
                    whole.append(len(list(stream)) - 1)
            except BaseException as error:
                note(error)
            handle.close()

    async def main():
        async with AsyncInferenceEngine(plugins=[("kept", plugin)], memory_budget="1GB") as engine:
            await asyncio.gather(
                *(asyncio.to_thread(in_a_thread, engine.sync, seed) for seed in range(4)),
                *(in_asyncio(engine, seed) for seed in range(4, 8)),
            )
            assert (engine.sync.models, engine.sync.loads) == ((), ())
            assert (await engine.memory()).reserved == 0
            assert not engine.sync.status().tasks

    asyncio.run(asyncio.wait_for(main(), 60))
    assert surprises == []
    assert set(whole) == {2}, "a request gave a part of its answer"
    assert len(whole) > 40
    assert sorted(plugin.loads) == sorted(plugin.frees)
