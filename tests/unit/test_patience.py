"""A step that hangs is told from one that is only long: by earlier steps, or by what is said of it."""

import threading
import time

import pytest
from mlxengine import InferenceEngine
from mlxengine._scheduling import patience
from mlxengine._scheduling.channel import Channel
from mlxengine._scheduling.scheduler import Scheduler
from mlxengine._scheduling.task import SchedulerStatus, Task
from mlxengine.contract.events import Finished, Progress
from mlxengine.contract.plugins import PluginRecord
from mlxengine.errors import EngineClosedError
from mlxengine.text.outputs import TextDelta
from mlxengine.toolkit.pace import Pace
from mlxengine.toolkit.row import Drawn, Row, Stepped
from mlxengine.toolkit.rows import SharedBatch

RECORD = PluginRecord(name="fake", distribution="fake-dist")
QUICK, LONG = 0.005, 0.5  # seconds of a step; a step of `LONG` is a hundred usual ones


@pytest.fixture
def scheduler(monkeypatch):
    monkeypatch.setattr(patience, "LEAST", 0.15)
    made = Scheduler()
    yield made
    made.close()


def run(scheduler, *steps, group="model", hold=None):
    """Begin a request whose steps are ``(seconds, event)``; its events are read by nobody."""

    def iterate():
        for seconds, event in steps:
            time.sleep(seconds)
            yield event
        if hold is not None:
            hold.wait(5)
        yield Finished()

    channel = Channel(10_000, scheduler.nudge)
    scheduler.submit(Task(group=group, record=RECORD, start=iterate, sink=channel))
    return channel


def was_hung(scheduler, seconds):
    """Whether a step was called hung within so many seconds, and after how many of its own."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        status = scheduler.status()
        if status.hung:
            return status.running_seconds
        time.sleep(0.005)
    return None


def word(seconds=QUICK):
    return (seconds, TextDelta(text="a"))


def denoised(done, seconds=QUICK):
    return (seconds, Progress(stage="denoise", done=done, total=6))


def test_a_step_that_takes_far_longer_than_those_before_it_is_called_hung(scheduler):
    hold = threading.Event()
    run(scheduler, *[word() for _ in range(8)], hold=hold)
    assert 0.15 < was_hung(scheduler, 2) < 0.4
    hold.set()
    time.sleep(0.05)
    assert not scheduler.status().hung


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([word(LONG), word()], id="first word: the prompt is read, the device compiles"),
        pytest.param([(QUICK, None), (QUICK, None), (LONG, None), word()], id="a prompt read in pieces"),
        pytest.param([word(), word(), word(LONG), word()], id="too few words to know"),
        pytest.param([*map(denoised, range(1, 7)), word(LONG)], id="what follows a picture's last step"),
        pytest.param([denoised(1, LONG), *[denoised(n, LONG) for n in (2, 3)]], id="long steps of a picture"),
        pytest.param([*[word(0.1) for _ in range(4)], word(LONG)], id="five usual steps"),
    ],
)
def test_a_long_step_is_not_called_hung_where_nothing_says_how_long_it_may_take(scheduler, steps):
    channel = run(scheduler, *steps)
    assert was_hung(scheduler, sum(seconds for seconds, _ in steps) + 0.1) is None
    assert channel.ended


def test_a_denoising_step_that_hangs_is_told_by_those_before_it(scheduler):
    hold = threading.Event()
    run(scheduler, *map(denoised, range(1, 6)), hold=hold)
    assert was_hung(scheduler, 2) is not None
    hold.set()


def test_steps_are_not_judged_while_another_request_of_the_model_has_just_come(scheduler):
    run(scheduler, *[word() for _ in range(5)], *[word(LONG) for _ in range(2)])
    run(scheduler, *[(0.001, None) for _ in range(200)])
    assert was_hung(scheduler, 1) is None


class Stating:
    """An iterator that says what its step should take, and takes longer."""

    def __init__(self, stated, seconds):
        self.step_seconds, self.seconds, self.over = stated, seconds, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.over:
            raise StopIteration
        time.sleep(self.seconds)
        self.over = True
        return Finished()


@pytest.mark.parametrize(("stated", "hung"), [(0.01, True), (0.2, False), (None, False), ("soon", False)])
def test_what_an_iterator_says_of_its_step_goes_before_what_is_usual(scheduler, stated, hung):
    channel = Channel(10, scheduler.nudge)
    scheduler.submit(Task(group="model", record=RECORD, start=lambda: Stating(stated, LONG), sink=channel))
    assert (was_hung(scheduler, LONG + 0.1) is not None) is hung


def test_an_engine_whose_step_hangs_is_unhealthy_at_once_and_says_what_is_known():
    with InferenceEngine(plugins=[]) as engine:
        status = SchedulerStatus(
            alive=True, running="fake", running_seconds=2.0, tasks=1, died=None, patience=0.75
        )
        engine._scheduler.status = lambda: status
        health = engine.health()
    assert (health.state, health.hung) == ("unhealthy", True)
    assert health.reason == (
        "a step of fake has not returned for 2.0 s; by what is known of it, 0.8 s are long"
    )


def test_what_the_engine_does_between_steps_is_timed_too(scheduler):
    hold = threading.Event()
    scheduler.call(lambda: hold.wait(5))
    time.sleep(0.1)
    status = scheduler.status()
    assert (status.running, status.running_seconds > 0.05, status.hung) == (None, True, False)
    hold.set()
    time.sleep(0.05)
    assert scheduler.status().running_seconds == 0.0
    scheduler.close()
    with pytest.raises(EngineClosedError):
        scheduler.call(lambda: None)


# -- what the batch of a language model says -----------------------------------------------------------------

ROW = Drawn(None, 1, None)


def test_a_pace_expects_what_it_measured_and_says_nothing_of_what_it_did_not():
    pace = Pace()
    assert (pace.expected(0), pace.expected(64)) == (None, None)
    for seconds in (0.01, 0.08, 0.01):
        pace.observe(Stepped(drawn=(ROW,)), seconds)
    assert pace.expected(0) == 0.02, "a quarter of the longest"
    for seconds in (0.03, 0.03, 0.03):
        pace.observe(Stepped(drawn=(ROW,)), seconds)
    assert pace.expected(0) == 0.03, "the usual one"
    assert pace.expected(64) is None, "no prompt was read yet"
    pace.observe(Stepped(prompt_tokens=100), 0.2)
    assert pace.expected(200) == pytest.approx(0.03 + 200 * 0.002)


def test_a_pace_expects_nothing_of_reading_where_the_device_compiles_for_new_shapes():
    pace = Pace()
    pace.observe(Stepped(prompt_tokens=100, new_shape=True), 3.0)
    pace.observe(Stepped(prompt_tokens=100), 0.1)
    pace.observe(Stepped(drawn=(ROW,)), 0.01)
    assert (pace.expected(100), pace.expected(0)) == (None, 0.01)


def test_a_batch_says_what_its_step_should_take_while_that_runs_and_more_for_more_rows():
    said = []

    class Told(Row):
        def take(self, token, logprobs):
            self.done = len(self.tokens) == 4

    class Decoder:
        spare = 0

        def __init__(self):
            self.rows = []

        insert = property(lambda self: self.rows.append)

        def step(self, _plan):
            said.append(batch.step_seconds)
            time.sleep(0.01)
            return Stepped(drawn=[Drawn(row, 1, None) for row in self.rows])

        def remove(self, rows):
            self.rows = [row for row in self.rows if row not in rows]

        def tidy(self):
            """Every place is somebody's."""

        def close(self):
            """Nothing is held."""

    batch = SharedBatch(lambda _rows: Decoder())
    batch.admit(Told([1]))
    while len(batch):
        batch.advance(100)
    assert said[0] is None, "its prompt is read in this step, and nothing was measured"
    assert 0.01 <= said[2] < 0.1
    assert batch.step_seconds is None, "no step runs"
    for _ in range(3):
        batch.admit(Told([1]))
    batch.pace._costs.append(1e-9)  # of tokens that cost nothing
    said.clear()
    batch.advance(100)
    assert said[0] >= 3 * 0.01
