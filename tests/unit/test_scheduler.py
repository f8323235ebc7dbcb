"""The scheduler on iterators that need no model."""

import contextlib
import itertools
import threading
import time
from concurrent.futures import Future
from functools import partial

import pytest
from mlxengine._scheduling import channel as weighing
from mlxengine._scheduling import rounds
from mlxengine._scheduling.channel import Channel
from mlxengine._scheduling.scheduler import Scheduler
from mlxengine._scheduling.task import FutureSink, Task
from mlxengine.contract.events import Finished, Waiting
from mlxengine.contract.plugins import PluginRecord
from mlxengine.errors import (
    CancelledError,
    EngineClosedError,
    GenerationError,
    InsufficientMemoryError,
    PluginContractError,
    PluginCrashedError,
)
from mlxengine.text.outputs import Prepared, TextDelta

RECORD = PluginRecord(name="fake", distribution="fake-dist")


@pytest.fixture
def scheduler():
    made = Scheduler()
    yield made
    made.close()
    assert not [item for item in threading.enumerate() if item.name == "mlxengine-scheduler"]


def words(count, seconds=0.0, trace=None, name=""):
    for index in range(count):
        if seconds:
            time.sleep(seconds)
        if trace is not None:
            trace.append(name)
        yield TextDelta(text=f"{index} ")
    yield Finished()


def start(scheduler, iterator, group=None, limit=64, **options):
    channel = Channel(limit, scheduler.nudge, later=scheduler.later)
    task = Task(group=group or object(), record=RECORD, start=lambda: iterator, sink=channel, **options)
    scheduler.submit(task)
    return task, channel


def read(channel):
    events = []
    while (event := channel.get()) is not None:
        events.append(event)
    return events


def hold(scheduler, gate):
    """Keep the scheduler's thread until the gate opens; what is submitted meanwhile is taken in together."""
    held = threading.Event()
    scheduler.call(lambda: (held.set(), gate.wait()))
    assert held.wait(10)


def test_events_arrive_in_order_and_end_with_one_timed_finished(scheduler):
    _, channel = start(scheduler, words(3, 0.001))
    *deltas, last = read(channel)
    assert [event.text for event in deltas] == ["0 ", "1 ", "2 "]
    assert isinstance(last, Finished)
    metrics = last.metrics
    assert 0 < metrics.first_event_seconds < metrics.total_seconds
    assert 0.003 <= metrics.device_seconds <= metrics.total_seconds


def test_device_time_is_shared_between_models_not_steps(scheduler):
    trace, gate = [], threading.Event()
    hold(scheduler, gate)
    _, slow = start(scheduler, words(10, 0.02, trace, "slow"))
    _, fast = start(scheduler, words(300, 0.001, trace, "fast"), limit=400)
    gate.set()
    read(slow), read(fast)
    until_slow_ends = trace[: len(trace) - trace[::-1].index("slow")]
    # 200 ms of slow steps leave room for about as much time of fast ones: far more than one to one,
    # also where a busy machine makes a millisecond's sleep several
    assert until_slow_ends.count("fast") > 30


def test_a_long_step_delays_another_model_by_that_step_only(scheduler):
    trace, gate = [], threading.Event()
    hold(scheduler, gate)
    _, slow = start(scheduler, words(3, 0.05, trace, "slow"))
    _, fast = start(scheduler, words(100, 0.001, trace, "fast"), limit=200)
    gate.set()
    read(slow), read(fast)
    assert "slow slow" not in " ".join(trace[: trace.index("fast", trace.index("slow")) + 20])


class Simulated:
    """Models on a clock that only their steps move."""

    def __init__(self):
        self.now, self.loop, self.taken = 0.0, rounds.Rounds(lambda: None), []

    def perf_counter(self):
        return self.now

    def admit(self, **models):
        for name, seconds in models.items():
            start = partial(self._steps, name, seconds)
            self.loop.admit(Task(group=name, record=RECORD, start=start, sink=FutureSink()))

    def _steps(self, name, seconds):
        while True:
            self.taken.append(name)
            self.now += seconds
            yield None

    def run(self, turns):
        """Whose steps so many turns were."""
        del self.taken[:]
        for _ in range(turns):
            self.loop.turn()
        return list(self.taken)


@pytest.fixture
def simulated(monkeypatch):
    made = Simulated()
    monkeypatch.setattr(rounds, "time", made)
    return made


def steady(simulated, **models):
    simulated.admit(**models)
    simulated.run(200)  # by then it is known what a turn takes
    return simulated.run(2000)


def longest_without(name, taken, models):
    """The seconds that others had between two steps of a model, at most, and how many steps those were."""
    waits = [list(steps) for own, steps in itertools.groupby(taken, lambda item: item == name) if not own]
    return max(sum(models[item] for item in wait) for wait in waits), max(map(len, waits))


SEVERAL = {"chat": 0.005, "vectors": 0.05, "ranker": 0.06, "painter": 0.2}


def test_a_chat_waits_for_one_step_of_another_model_never_for_one_of_each(simulated):
    taken = steady(simulated, **SEVERAL)
    assert longest_without("chat", taken, SEVERAL) == (0.2, 1)
    shares = {name: taken.count(name) * seconds for name, seconds in SEVERAL.items()}
    assert min(shares.values()) > 0.8 * sum(shares.values()) / len(shares), "and all have their share"


def test_chats_with_each_other_let_a_long_step_have_its_turn(simulated):
    models = {"one": 0.005, "two": 0.005, "three": 0.006, "painter": 0.2}
    taken = steady(simulated, **models)
    for name in ("one", "two", "three"):
        assert longest_without(name, taken, models)[0] <= 0.2 + 2 * 0.016
    shares = [taken.count(name) * seconds for name, seconds in models.items()]
    assert min(shares) > 0.8 * sum(shares) / len(shares)


def test_a_chat_of_half_as_long_steps_is_not_let_go_so_often_that_others_starve(simulated):
    models = {"chat": 0.02, **{f"other {number}": 0.05 for number in range(4)}}
    taken = steady(simulated, **models)
    assert longest_without("chat", taken, models) == (0.05, 1)
    spent = {name: taken.count(name) * seconds for name, seconds in models.items()}
    assert spent["chat"] < 0.3 * sum(spent.values())
    assert min(spent.values()) > 0.17 * sum(spent.values())
    # and beside one with steps as short, which has had nothing, it pays for that by every other turn
    for number in range(4):
        simulated.loop.end_group(f"other {number}", CancelledError("It is over."))
    models["newcomer"] = 0.02
    simulated.admit(newcomer=0.02)
    assert longest_without("chat", simulated.run(100), models) == (0.04, 2)


def test_requests_of_one_model_take_turns(scheduler):
    trace, gate, group = [], threading.Event(), object()
    hold(scheduler, gate)
    channels = [start(scheduler, words(3, 0.012, trace, name), group)[1] for name in "abc"]
    gate.set()
    for channel in channels:
        read(channel)
    assert "".join(trace) == "abcabcabc"


def test_an_idle_model_saves_up_no_time(scheduler):
    trace, first, second = [], object(), object()
    read(start(scheduler, words(20, 0.005, trace, "early"), first)[1])
    gate = threading.Event()
    hold(scheduler, gate)
    one = start(scheduler, words(10, 0.005, trace, "x"), first)[1]
    two = start(scheduler, words(10, 0.005, trace, "y"), second)[1]
    gate.set()
    read(one), read(two)
    assert trace[20:30].count("x") >= 3


def test_a_reader_that_stops_pauses_only_its_own_request(scheduler):
    steps = []

    def endless():
        while True:
            steps.append(1)
            yield TextDelta(text="x")

    group = object()
    _, stuck = start(scheduler, endless(), group, limit=4)
    assert len(read(start(scheduler, words(500), group, limit=1000)[1])) == 501
    assert len(steps) == 4
    for _ in range(4):
        stuck.get()
    assert stuck.get().text == "x"


def test_who_waits_is_woken_once_all_that_a_turn_has_to_say_is_there(scheduler):
    gate, group, found = threading.Event(), object(), []
    hold(scheduler, gate)
    channels = [start(scheduler, words(1), group, predicted=0.0)[1] for _ in range(8)]
    for channel in channels:
        assert channel.poll(lambda: found.append([item._items.qsize() for item in channels])) == (False, None)
    gate.set()
    for channel in channels:
        read(channel)
    assert found[0] == [1] * 8


def test_who_waits_is_woken_before_a_further_step_that_takes_long(scheduler):
    gate, group, woken, seen = threading.Event(), object(), [], []
    hold(scheduler, gate)

    def long():
        other = threading.Thread(target=lambda: scheduler.later(lambda: woken.append("from elsewhere")))
        other.start()
        other.join()
        scheduler.later(lambda: woken.append("behind"))
        seen.append(list(woken))
        yield Finished()

    _, first = start(scheduler, words(1), group, predicted=0.0)
    _, second = start(scheduler, long(), group, predicted=0.005)
    first.poll(lambda: woken.append("first"))
    gate.set()
    read(first), read(second)
    assert seen == [["first", "from elsewhere"]]


def test_who_waits_is_told_of_the_end_though_noting_it_fails(scheduler):
    def note(_error):
        raise RuntimeError("planted")

    _, channel = start(scheduler, words(2), on_done=note)
    assert isinstance(read(channel)[-1], Finished)


def test_cancel_closes_the_iterator_before_its_next_step(scheduler):
    closed, steps = threading.Event(), []

    def endless():
        try:
            while True:
                steps.append(1)
                time.sleep(0.005)
                yield None
        finally:
            closed.set()

    task, channel = start(scheduler, endless())
    while not steps:
        time.sleep(0.001)
    scheduler.cancel(task)
    seen = len(steps)
    with pytest.raises(CancelledError):
        channel.get()
    assert closed.is_set()
    assert len(steps) <= seen + 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("boom"), PluginCrashedError),
        (MemoryError("big"), InsufficientMemoryError),
        (RuntimeError("[malloc] Unable to allocate"), InsufficientMemoryError),
        (GenerationError("typed"), GenerationError),
        (SystemExit(3), PluginCrashedError),
    ],
)
def test_a_failing_request_ends_with_its_own_typed_error_and_nobody_else_notices(scheduler, error, expected):
    def failing():
        yield TextDelta(text="before")
        raise error

    group = object()
    _, good = start(scheduler, words(50, 0.0005), group)
    _, bad = start(scheduler, failing(), group)
    assert bad.get().text == "before"
    with pytest.raises(expected) as caught:
        bad.get()
    assert caught.value is error or caught.value.__cause__ is error
    assert len(read(good)) == 51


@pytest.mark.parametrize(
    "iterator",
    [iter([TextDelta(text="x")]), iter(["rubbish"]), [1, 2], None],
    ids=["no Finished", "yields a str", "not an iterator", "None"],
)
def test_a_plugin_that_breaks_the_contract_is_named_with_its_distribution(scheduler, iterator):
    _, channel = start(scheduler, iterator)
    with pytest.raises(PluginContractError, match="fake-dist") as caught:
        read(channel)
    assert caught.value.plugin == "fake"


def test_nothing_is_asked_of_a_request_after_its_finished_event(scheduler):
    def chatty():
        yield Finished()
        raise AssertionError("asked again")

    assert len(read(start(scheduler, chatty())[1])) == 1


def test_work_that_only_ends_resolves_a_future(scheduler):
    sink = FutureSink()
    scheduler.submit(Task(group=1, record=RECORD, start=lambda: iter([None, None]), sink=sink, answers=False))
    assert sink.future.result(5) is None


def test_calls_run_on_the_one_thread_and_carry_their_exception(scheduler):
    assert scheduler.call(lambda: threading.current_thread().name).result(5) == "mlxengine-scheduler"
    with pytest.raises(ZeroDivisionError):
        scheduler.call(lambda: 1 / 0).result(5)


def test_closing_ends_waiting_readers_and_refuses_new_work():
    scheduler = Scheduler()

    def endless():
        while True:
            time.sleep(0.002)
            yield None

    _, channel = start(scheduler, endless())
    threading.Timer(0.05, scheduler.close).start()
    with pytest.raises(CancelledError):
        channel.get()
    with pytest.raises(EngineClosedError):
        start(scheduler, endless())


def test_when_the_loop_dies_every_waiter_is_told_and_a_new_thread_takes_over(scheduler, monkeypatch):
    channels = [start(scheduler, words(10**6, 0.001), limit=8)[1] for _ in range(3)]
    for channel in channels:
        channel.get()
    monkeypatch.setattr(
        scheduler._rounds, "_serve", lambda *_args, **_more: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    began = time.perf_counter()
    for channel in channels:
        with pytest.raises(GenerationError, match="thread failed") as caught:
            read(channel)
        assert caught.value.recoverable
    assert time.perf_counter() - began < 1
    monkeypatch.undo()
    assert len(read(start(scheduler, words(3))[1])) == 4
    assert "KeyboardInterrupt" in scheduler.status().died


def test_a_thread_that_dies_gives_up_its_streams_before_anyone_is_told(scheduler, monkeypatch):
    ended = []

    class Backend:
        stream = staticmethod(contextlib.nullcontext)
        synchronize = staticmethod(lambda: None)

        def end_thread(self):
            time.sleep(0.1)
            ended.append(threading.current_thread().name)

    scheduler.use(Backend)
    channel = start(scheduler, words(10**6, 0.001), limit=8)[1]
    channel.get()
    monkeypatch.setattr(
        scheduler._rounds, "_serve", lambda *_args, **_more: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    with pytest.raises(GenerationError, match="thread failed"):
        read(channel)
    assert len(ended) == 1


def test_status_names_the_plugin_whose_step_is_running(scheduler):
    _, channel = start(scheduler, words(1, 1.0))
    deadline = time.perf_counter() + 0.9
    while (status := scheduler.status()).running_seconds < 0.02 and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert status.alive
    assert status.running == "fake"
    read(channel)


def test_the_host_costs_microseconds_a_step(scheduler):
    count = 20_000
    began = time.process_time()
    assert len(read(start(scheduler, words(count), limit=count + 1)[1])) == count + 1
    per_step = (time.process_time() - began) / count * 1e6
    assert per_step < 200, f"{per_step:.0f} µs"


def test_a_task_that_waits_for_a_future_takes_no_step_and_the_caller_never_sees_it(scheduler):
    until = Future()
    steps = []

    def waits():
        steps.append("asked")
        yield Waiting(until=until)
        steps.append("resumed")
        yield TextDelta(text="late")
        yield Finished()

    waiting, channel = start(scheduler, waits())
    _, other = start(scheduler, words(50, 0.001), limit=100)
    assert len(read(other)) == 51
    assert steps == ["asked"]
    until.set_exception(ValueError("however it ended"))
    assert [type(event) for event in read(channel)] == [TextDelta, Finished]
    assert waiting.device_seconds < 0.05


def test_a_task_that_waits_is_cancelled_and_closed_at_once(scheduler):
    closed = threading.Event()

    def waits():
        try:
            yield Waiting(until=Future())
        finally:
            closed.set()

    task, channel = start(scheduler, waits())
    scheduler.run(lambda: None)
    scheduler.cancel(task)
    assert closed.wait(5)
    with pytest.raises(CancelledError):
        read(channel)


def test_an_event_of_many_token_ids_is_weighed_without_looking_at_each(monkeypatch):
    ids, looked = tuple(range(200_000)), []
    real = weighing.weight
    monkeypatch.setattr(weighing, "weight", lambda value: (looked.append(value), real(value))[1])
    told = Prepared(token_ids=ids, text="ab")
    assert weighing.weight(told) == sum(map(real, (told.index, told.mock))) + 8 * len(ids) + 2
    assert len(looked) < 10
    assert weighing.weight((*ids, "four")) == 8 * len(ids) + 4
