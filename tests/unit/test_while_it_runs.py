"""Bad moments while an engine runs: callbacks, readers, storms of cancels, forks, steps that never return."""

import asyncio
import gc
import json
import logging
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import attrs
import mlxengine
import pytest
from attrs import frozen
from mlxengine import (
    AsyncInferenceEngine,
    Claim,
    Event,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    Request,
    TextDelta,
    errors,
    hookimpl,
)
from mlxengine._scheduling.channel import weight
from mlxengine.contract.hookspecs import MemoryEstimate

GiB = 2**30


@frozen(kw_only=True)
class Remember(Request):
    """Sets a word that later requests say."""

    word: str


@frozen(kw_only=True)
class Chunk(Event):
    data: bytes


class Talk:
    """A kind whose models say the word that they were told; what goes wrong is set from outside."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.loads = 0
        self.closes = 0
        self.made = 0
        self.refuses = False
        self.stuck_in = None
        self.ended = 0

    def wait(self, where):
        if self.stuck_in == where:
            self.entered.set()
            self.gate.wait(60)

    @hookimpl
    def claim_model(self, card):
        if "talk" not in card.config:
            return None
        self.wait("claim_model")
        size = card.config["talk"]
        return Claim(
            kind="talk", fit=Fit.NATIVE, uses_mlx=False, estimate=lambda _work: MemoryEstimate(weights=size)
        )

    @hookimpl
    def load_model(self, card, context):
        self.loads += 1
        self.wait("load_model")
        words = []

        def warm():
            self.wait("warm")
            time.sleep(0.02)
            yield

        def close():
            self.closes += 1

        def setup():
            if self.refuses:
                raise ValueError("forgotten")
            return [Remember(word=word) for word in words]

        return Loaded(model=words, warm=warm(), close=close, setup=setup)

    @hookimpl
    def generate(self, model, request, context):
        self.made += 1
        if isinstance(request, Remember):
            return self._remember(model, request)
        return self._say(model)

    def _remember(self, model, request):
        model[:] = [request.word]
        yield Finished()

    def _say(self, model):
        try:
            yield TextDelta(text=model[0] if model else "plain")
            for _ in range(20):
                self.wait("generate")
                time.sleep(0.0005)
                yield None
            yield Finished()
        finally:
            self.ended += 1


@pytest.fixture
def talk():
    made = Talk()
    yield made
    made.gate.set()


@pytest.fixture
def make(tmp_path):
    def made(name="model", size=GiB):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"talk": size}))
        return folder

    return made


def said(handle):
    return "".join(event.text for event in handle.run(Request()).events if isinstance(event, TextDelta))


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def others():
    """Threads of engines that other tests hold for longer."""
    _others.clear()
    _others.update(threading.enumerate())


_others = set()


def engine_threads():
    return [
        item for item in threading.enumerate() if item.name.startswith("mlxengine") and item not in _others
    ]


# -- what requests set up --------------------------------------------------------------------------------


def test_what_a_request_set_up_is_there_again_after_an_idle_eviction(talk, make):
    with InferenceEngine(plugins=[("talk", talk)], idle_ttl=0.05) as engine:
        handle = engine.load(make())
        handle.run(Remember(word="hello"))
        until(lambda: talk.closes == 1)
        assert said(handle) == "hello"
        assert talk.loads == 2


def test_requests_that_come_while_a_model_is_brought_back_wait_for_its_set_up(talk, make):
    with InferenceEngine(plugins=[("talk", talk)], idle_ttl=0.2) as engine:
        handle = engine.load(make())
        handle.run(Remember(word="hello"))
        until(lambda: talk.closes == 1)
        with ThreadPoolExecutor(16) as pool:
            answers = [
                pool.submit(lambda at=at: (time.sleep(at * 0.003), said(handle))[1]) for at in range(16)
            ]
            assert {answer.result() for answer in answers} == {"hello"}
        assert talk.loads == 2


def test_a_model_that_cannot_say_what_was_set_up_refuses_instead_of_forgetting(talk, make):
    with InferenceEngine(plugins=[("talk", talk)], idle_ttl=0.05) as engine:
        handle = engine.load(make())
        handle.run(Remember(word="hello"))
        talk.refuses = True
        until(lambda: talk.closes == 1)
        for _ in range(2):
            with pytest.raises(errors.PluginCrashedError, match="setup"):
                said(handle)


# -- memory ----------------------------------------------------------------------------------------------


def test_a_model_that_needs_nothing_loads_where_others_fill_the_budget(talk, make):
    with InferenceEngine(plugins=[("talk", talk)], memory_budget="1GB") as engine:
        big = engine.load(make("big", 10**9))
        big.pin()
        other = InferenceEngine(plugins=[("talk", talk)], memory_budget="0.5GB")
        with other, other.load(make("nothing", 0)) as small:
            assert said(small) == "plain"


def test_events_that_wait_for_a_reader_are_weighed(make, talk):
    class Loud(Talk):
        def _say(self, model):
            for _ in range(64):
                self.made += 1
                yield Chunk(data=bytes(10_000_000))
            yield Finished()

    loud = Loud()
    with (
        InferenceEngine(plugins=[("talk", loud)]) as engine,
        engine.load(make()).stream(Request()) as stream,
    ):
        next(stream)
        until(lambda: loud.made >= 3)
        time.sleep(0.2)
        assert loud.made <= 5  # 16 MiB and one event more, where 64 of them fit by their number
        assert sum(isinstance(event, Chunk) for event in stream) == 63


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        (TextDelta(text="x" * 1000), 1000, 1100),
        (Chunk(data=bytes(10**6)), 10**6, 10**6 + 100),
        ({"a": [b"12345678", memoryview(bytes(100))]}, 108, 108),
        (object(), 0, 8),
    ],
    ids=["text", "bytes", "nested", "unknown"],
)
def test_an_events_weight_is_what_it_holds(value, least, most):
    assert least <= weight(value) <= most


# -- a step that never returns ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["claim_model", "load_model", "warm", "generate"])
@pytest.mark.parametrize("leave", ["close", "with"])
def test_closing_comes_back_from_a_step_that_never_returns_and_names_it(talk, make, where, leave):
    talk.stuck_in = where
    talk.gate.clear()
    engine = InferenceEngine(plugins=[("talk", talk)], close_timeout=0.5)
    told = []

    def work():
        try:
            said(engine.load(make()))
        except BaseException as error:
            told.append(error)

    waiting = threading.Thread(target=work)
    waiting.start()
    assert talk.entered.wait(10)
    began = time.monotonic()
    with pytest.raises(errors.PluginContractError) as caught:
        if leave == "close":
            engine.close()
        else:
            with engine:
                pass
    assert time.monotonic() - began < 5
    hook = "load_model" if where == "warm" else where
    assert (caught.value.plugin, caught.value.hook) == ("talk", hook)
    assert "has not returned" in str(caught.value)
    waiting.join(5)
    assert not waiting.is_alive()
    assert [type(error) for error in told] in ([errors.PluginContractError], [errors.CancelledError])
    engine.close()
    talk.gate.set()  # where it does return in the end, its thread ends and the model is freed
    until(lambda: not engine_threads())
    assert talk.closes == (where == "generate")  # elsewhere there was no handle yet: garbage took it
    with InferenceEngine(plugins=[("talk", talk)]) as after:
        assert after.memory().others == 0


def test_why_a_with_block_was_left_is_not_hidden_by_what_closing_says(talk, make):
    talk.stuck_in = "generate"
    talk.gate.clear()
    engine = InferenceEngine(plugins=[("talk", talk)], close_timeout=0.2)
    with pytest.raises(KeyboardInterrupt) as caught, engine:
        stream = engine.load(make()).stream(Request())
        assert talk.entered.wait(10)
        raise KeyboardInterrupt
    assert "has not returned" in caught.value.__notes__[0]
    del stream


# -- callbacks, readers, cancels -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [ValueError("x"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_progress_callback_that_raises_is_left_out_and_the_load_goes_on(talk, make, fault, caplog):
    calls = []

    def report(event):
        calls.append(event)
        raise fault

    with InferenceEngine(plugins=[("talk", talk)]) as engine:
        assert said(engine.load(make(), on_progress=report)) == "plain"
    assert len(calls) == 1
    assert "callback" in caplog.text


def test_200_streams_that_are_dropped_leave_nothing_behind(talk, make):
    with InferenceEngine(plugins=[("talk", talk)]) as engine:
        handle = engine.load(make())
        for _ in range(200):
            next(handle.stream(Request()))
        gc.collect()
        until(lambda: engine.status().tasks == 0)
        assert talk.made == talk.ended == 200
        assert said(handle) == "plain"


def test_a_storm_of_cancels_from_eight_threads_ends_every_request_once(talk, make):
    with InferenceEngine(plugins=[("talk", talk)]) as engine:
        handle = engine.load(make())
        streams = [handle.stream(Request()) for _ in range(100)]

        def storm(seed):
            for at in range(100):
                streams[(at * 37 + seed) % 100].cancel()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(storm, range(8)))
        ends = []
        for stream in streams:
            try:
                ends.append(type(list(stream)[-1]))
            except errors.CancelledError as error:
                ends.append(type(error))
        assert set(ends) <= {errors.CancelledError, Finished}
        assert engine.status().tasks == 0
        assert said(handle) == "plain"


@pytest.mark.parametrize("delay", [0, 0.001, 0.005, 0.01, 0.02, 0.03])
def test_closing_during_a_load_ends_it_with_a_typed_error_and_every_thread(talk, make, delay):
    engine = InferenceEngine(plugins=[("talk", talk)])
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(engine.load, make())
        time.sleep(delay)
        engine.close()
        error = loading.exception(5)
    assert error is None or isinstance(error, errors.CancelledError | errors.EngineClosedError)
    until(lambda: not engine_threads())
    assert talk.loads == talk.closes


def test_one_model_from_16_threads_answers_each_of_them(talk, make):
    folder = make()
    with InferenceEngine(plugins=[("talk", talk)]) as engine:

        def work(_):
            with engine.load(folder) as handle:
                return [said(handle) for _ in range(5)]

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(work, range(16))) == [["plain"] * 5] * 16
    assert talk.loads == talk.closes


# -- asyncio ---------------------------------------------------------------------------------------------


def test_cancelling_an_async_load_leaves_no_exception_that_nobody_asked_for(talk, make, caplog):
    async def main():
        async with AsyncInferenceEngine(plugins=[("talk", talk)]) as engine:
            for at in range(10):
                loading = asyncio.create_task(engine.load(make(f"m{at}")))
                await asyncio.sleep(0.005)
                loading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await loading

    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        asyncio.run(main())
        gc.collect()
    assert "never retrieved" not in caplog.text
    assert talk.loads == talk.closes


def test_a_loop_that_is_closed_in_mid_stream_disturbs_nobody(talk, make):
    engine = InferenceEngine(plugins=[("talk", talk)])
    handle = engine.load(make())
    for _ in range(20):
        made = AsyncInferenceEngine.__new__(AsyncInferenceEngine)
        made.sync = engine
        loop = asyncio.new_event_loop()
        asynchronous = loop.run_until_complete(made.load(make()))
        stream = asynchronous.stream(Request())
        loop.run_until_complete(stream.__anext__())
        reading = loop.create_task(stream.__anext__())
        loop.run_until_complete(asyncio.sleep(0))
        reading.cancel()
        loop.close()
        del stream, reading
    gc.collect()
    until(lambda: engine.status().tasks == 0)
    assert said(handle) == "plain"
    engine.close()
    assert not engine_threads()


# -- fork ------------------------------------------------------------------------------------------------


def test_a_fork_of_a_running_engine_refuses_every_use_by_a_typed_error_and_ends(talk, make):
    engine = InferenceEngine(plugins=[("talk", talk)])
    handle = engine.load(make())
    stream = handle.stream(Request())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child():
        engine._scheduler._wake.acquire(blocking=False)  # as a thread of the parent may hold it for ever
        tries = [
            lambda: engine.load(make()),
            lambda: handle.run(Request()),
            lambda: handle.stream(Request()),
            engine.memory,
            lambda: handle.close(),
            lambda: stream.close(),
            engine.close,
        ]
        found = []
        for attempt in tries:
            try:
                attempt()
                found.append(None)
            except BaseException as error:
                found.append((type(error).__name__, str(os.getppid()) in str(error)))
        queue.put(found)

    process = context.Process(target=child)
    process.start()
    found = queue.get(timeout=20)
    process.join(20)
    assert process.exitcode == 0
    assert found[:3] == [("EngineClosedError", True)] * 3
    assert {item[0] for item in found[3:] if item} <= {"EngineClosedError"}
    assert said(handle) == "plain"  # the parent goes on
    engine.close()


# -- values that cross processes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_survives_pickling(name):
    kind = getattr(errors, name)
    named = {"plugin": "p", "distribution": "d", "hook": "h"} if issubclass(kind, errors.PluginError) else {}
    more = {"hint": "Do it.", "recoverable": True} if issubclass(kind, errors.MLXEngineError) else {}
    error = kind("what", **named, **more)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.args, again.__dict__, str(again)) == (error.args, error.__dict__, str(error))


def _kinds(base):
    public = (getattr(mlxengine, name) for name in dir(mlxengine))
    found = [value for value in public if isinstance(value, type) and issubclass(value, base)]
    return sorted(found, key=lambda kind: kind.__name__)


SAMPLES = {
    "str": "text",
    "int": 3,
    "float": 0.5,
    "bool": True,
    "bytes": b"\x00\x01",
    "FinishReason": mlxengine.FinishReason.STOP,
}


def _sample(kind):
    """One of a kind, with a value for each field that has no default."""
    asked = [mlxengine.Message.user("Hi")]
    vectors = mlxengine.Array(data=bytes(8), shape=(1, 2), dtype="float32")
    own = {
        "PredictRequest": {"pairs": [("a", "b")]},
        "SearchRequest": {"queries": vectors, "corpus": vectors},
        "TextRequest": {"messages": asked, "params": mlxengine.GenerateParams(seed=0)},
        "ScoreRequest": {"text": "Hi"},
    }.get(kind.__name__, {})
    values = {
        item.name: SAMPLES[str(item.type)] if str(item.type) in SAMPLES else _other(str(item.type))
        for item in kind.__attrs_attrs__
        if item.default is attrs.NOTHING and item.name not in own
    }
    return kind(**values, **own)


def _other(wanted):
    array = mlxengine.Array(data=bytes(8), shape=(1, 2), dtype="float32")
    if "Array" in wanted:
        return (array,) if "tuple" in wanted else array
    if "tuple[float" in wanted:
        return (0.25, 0.5)
    if "tuple[str" in wanted:
        return ("a", "b")
    if "Mapping" in wanted:
        return {"a": 1}
    return "text"


@pytest.mark.parametrize("kind", [*_kinds(Event), *_kinds(Request)], ids=lambda kind: kind.__name__)
def test_every_event_and_request_survives_pickling(kind):
    value = _sample(kind)
    again = pickle.loads(pickle.dumps(value))
    assert type(again) is kind
    assert again == value
