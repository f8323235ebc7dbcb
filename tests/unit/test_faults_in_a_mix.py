"""Eight streams at once, and what goes wrong in one of them: who is told what, how soon, and who goes on."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from mlxengine import Claim, Finished, Fit, InferenceEngine, Loaded, Request, TextDelta, errors, hookimpl

STEPS = 400


@pytest.fixture(autouse=True)
def reservations(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXENGINE_RESERVATIONS", str(tmp_path / "reservations.json"))


class Steps:
    """Streams of words, one of which goes wrong at its fifth step when it is told to."""

    def __init__(self) -> None:
        self.fault: Any = None
        self.armed = threading.Event()

    @hookimpl
    def claim_model(self, card):
        return Claim(kind="steps", fit=Fit.NATIVE, uses_mlx=False)

    @hookimpl
    def load_model(self, card, context):
        return Loaded(model=card.config)

    @hookimpl
    def generate(self, model, request, context):
        step = 0
        while step < STEPS or not self.armed.is_set():
            if model.get("faulty") and self.armed.is_set():
                self.fault()
            yield TextDelta(text=f"{step} ")
            step += 1
            time.sleep(0.0005)
        yield Finished()


@pytest.fixture
def plugin():
    return Steps()


@pytest.fixture
def mix(plugin, tmp_path):
    """An engine with seven streams over three models, and an eighth on a model of its own that goes wrong."""
    with InferenceEngine(plugins=[("steps", plugin)], features={"core.degrade": False}) as engine:
        handles = []
        for name in ("a", "b", "c", "faulty"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps({"faulty": name == "faulty"}))
            handles.append(engine.load(tmp_path / name))
        *good, faulty = handles
        readers = [Reader(good[index % 3].stream(Request())) for index in range(7)]
        readers.append(Reader(faulty.stream(Request())))
        for reader in readers:
            assert reader.began.wait(30)
        yield engine, readers[:7], readers[7]
        for reader in readers:
            reader.thread.join(60)


class Reader:
    """A caller on a thread of its own: what it read, when, and how that ended."""

    def __init__(self, stream: Any) -> None:
        self.words: list[str] = []
        self.moments: list[float] = []
        self.error: BaseException | None = None
        self.ended: float | None = None
        self.began = threading.Event()
        self._stream = stream
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            for event in self._stream:
                if isinstance(event, TextDelta):
                    self.words.append(event.text)
                    self.moments.append(time.monotonic())
                    self.began.set()
        except BaseException as error:
            self.error = error
        self.ended = time.monotonic()

    @property
    def whole(self) -> bool:
        """Whether it read every word once, in order, to the end."""
        return self.error is None and self.words == [f"{index} " for index in range(len(self.words))]


def arm(plugin: Steps, fault: Any) -> float:
    plugin.fault = fault
    plugin.armed.set()
    return time.monotonic()


def raising(error: BaseException) -> Any:
    def fault() -> None:
        raise error

    return fault


@pytest.mark.parametrize(
    ("error", "typed"),
    [
        (ValueError("boom"), errors.PluginCrashedError),
        (MemoryError(), errors.InsufficientMemoryError),
        (RuntimeError("[malloc] Unable to allocate 8 bytes."), errors.InsufficientMemoryError),
    ],
)
def test_the_failing_one_of_eight_is_told_at_once_and_seven_go_on_to_their_end(plugin, mix, error, typed):
    engine, others, faulty = mix
    began = arm(plugin, raising(error))
    faulty.thread.join(30)
    assert type(faulty.error) is typed
    assert faulty.error.__cause__ is error
    assert faulty.ended - began < 1
    for reader in others:
        reader.thread.join(60)
    assert all(reader.whole and len(reader.words) >= STEPS for reader in others)
    assert engine.health().ok


def through_a_long_step(plugin: Steps, mix: Any, seconds: float) -> None:
    engine, others, faulty = mix
    steps: list[float] = []

    def slow() -> None:
        if not steps:
            steps.append(time.monotonic())
            time.sleep(seconds)
            steps.append(time.monotonic())

    arm(plugin, slow)
    while not steps:
        time.sleep(0.001)
    while engine.health().ok and len(steps) < 2:
        time.sleep(0.005)
    noticed = time.monotonic() - steps[0]
    health = engine.health()
    assert noticed < 1
    # Whether it is taken for hung depends on how many steps came before, which tell what is usual.
    assert health.state == ("unhealthy" if health.hung else "degraded")
    assert "a step of steps has" in health.reason
    for reader in (*others, faulty):
        reader.thread.join(60)
        assert reader.whole
        assert len(reader.words) >= STEPS
        after = next((moment for moment in reader.moments if moment > steps[1]), None)
        assert after is None or after - steps[1] < 1
    assert engine.health().ok


def test_through_a_long_step_health_says_so_within_a_second_and_all_eight_go_on(plugin, mix):
    through_a_long_step(plugin, mix, 1.5)


@pytest.mark.slow
def test_through_a_step_of_five_seconds_too(plugin, mix):
    through_a_long_step(plugin, mix, 5.0)


def test_when_the_loop_dies_all_eight_are_told_within_a_second_and_the_engine_serves_again(
    plugin, mix, monkeypatch
):
    engine, others, faulty = mix
    scheduler = engine._scheduler
    before, serve, died = scheduler._thread, scheduler._rounds._serve, []

    def broken(*arguments: Any, **more: Any) -> float:
        if not died:
            died.append(time.monotonic())
            raise SystemExit("planted in the loop")
        return serve(*arguments, **more)

    plugin.fault = lambda: None
    monkeypatch.setattr(scheduler._rounds, "_serve", broken)
    for reader in (*others, faulty):
        reader.thread.join(30)
        assert isinstance(reader.error, errors.GenerationError)
        assert "planted in the loop" in str(reader.error)
        assert reader.ended - died[0] < 1
    assert engine.health().state == "unhealthy"
    plugin.armed.set()
    again = engine._pool.live()[0]
    handle = engine.load(again.card.path)
    assert len([event for event in handle.run(Request()).events if isinstance(event, TextDelta)]) == STEPS
    assert scheduler._thread is not before
    assert engine.health().state == "degraded"
    assert "was replaced" in engine.health().reason
