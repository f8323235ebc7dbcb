"""A plugin that fetches holds up nobody: not other requests, not a cancel, not the end of the engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine import (
    Claim,
    Event,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    ModelHandle,
    Request,
    TextDelta,
    errors,
    hookimpl,
)
from mlxengine.hub import Bytes, Ready

from .server import HubServer

SLOW = 3.0


class Fetch(Request):
    """Answers with what ``org/voice`` holds."""


class Talk(Request):
    """Says a word each few milliseconds until it is cancelled."""


class Voices:
    """Serves folders with ``{"voices": "load"}``, which fetch when they are loaded, or ``"later"``."""

    @hookimpl
    def claim_model(self, card: Any) -> Claim | None:
        if "voices" not in card.config:
            return None
        return Claim(kind="voices", fit=Fit.NATIVE, uses_mlx=False)

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Loaded:
        if card.config["voices"] == "load":
            context.fetch("org/voice", ["*"])
        return Loaded(model=[], setup=lambda: [Fetch()])

    @hookimpl
    def generate(self, model: Any, request: Any, context: Any) -> Iterator[Event | None]:
        return self._fetch(context) if isinstance(request, Fetch) else self._talk()

    def _fetch(self, context: Any) -> Iterator[Event | None]:
        folder = yield from context.fetch("org/voice", ["*"])
        yield TextDelta(text=(folder / "voice.txt").read_text())
        yield Finished()

    def _talk(self) -> Iterator[Event | None]:
        while True:
            time.sleep(0.002)
            yield TextDelta(text="word ")


@pytest.fixture
def slow_hub(hub: HubServer) -> HubServer:
    """A hub that has the voice, and takes three seconds to say so."""
    hub.repos.add("org/voice", {"voice.txt": b"hello"})
    hub.faults.add("delay", "/api/models/", seconds=SLOW)
    return hub


@pytest.fixture
def engine(slow_hub: HubServer, tmp_path: Path) -> Iterator[InferenceEngine]:
    with InferenceEngine(
        plugins=[("voices", Voices())], endpoint=slow_hub.endpoint, cache_dir=tmp_path / "cache"
    ) as made:
        yield made


def model(engine: InferenceEngine, folder: Path, when: str = "later", **options: Any) -> ModelHandle:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"voices": when}))
    return engine.load(folder, **options)


def said(handle: ModelHandle) -> str:
    return "".join(event.text for event in handle.run(Fetch()).events if isinstance(event, TextDelta))


def longest_gap(handle: ModelHandle, until: threading.Event) -> float:
    """The longest time, in seconds, between two words of a stream that goes on until ``until`` is set."""
    gaps = []
    with handle.stream(Talk()) as stream:
        before = time.monotonic()
        while not until.is_set():
            next(stream)
            gaps.append(time.monotonic() - before)
            before += gaps[-1]
    return max(gaps)


def test_a_fetch_in_a_request_leaves_the_device_to_others(engine: InferenceEngine, tmp_path: Path) -> None:
    done = threading.Event()
    threading.Timer(0.5, done.set).start()
    talking = model(engine, tmp_path / "talking")
    quiet = longest_gap(talking, done)
    fetching = model(engine, tmp_path / "fetching")
    done.clear()
    answers: list[str] = []

    def ask() -> None:
        answers.append(said(fetching))
        done.set()

    began = time.monotonic()
    threading.Thread(target=ask).start()
    gap = longest_gap(talking, done)
    assert answers == ["hello"]
    assert time.monotonic() - began >= SLOW
    assert gap < quiet + 0.5


def test_a_request_that_fetches_ends_with_the_hubs_own_error(
    engine: InferenceEngine, slow_hub: HubServer, tmp_path: Path
) -> None:
    slow_hub.faults.clear()
    slow_hub.faults.add("status", "/api/models/", status=404, times=None)
    with pytest.raises(errors.HubUnavailableError, match="404 for org/voice"):
        said(model(engine, tmp_path / "model"))


def test_a_request_that_fetches_is_cancelled_at_once_and_so_is_the_fetch(
    engine: InferenceEngine, slow_hub: HubServer, tmp_path: Path
) -> None:
    handle = model(engine, tmp_path / "model")
    stream = handle.stream(Fetch())
    while not slow_hub.log.entries("/api/models/"):
        time.sleep(0.01)
    began = time.monotonic()
    stream.close()
    while any("fetch" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() - began < 1.5
        time.sleep(0.01)


def test_what_was_set_up_by_a_fetch_is_fetched_beside_the_device_when_the_model_comes_back(
    slow_hub: HubServer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"endpoint": slow_hub.endpoint, "cache_dir": tmp_path / "cache"}
    with InferenceEngine(plugins=[("voices", Voices())], idle_ttl=0.2, **options) as engine:
        evicted = model(engine, tmp_path / "evicted")
        while not engine.memory().evictions:
            time.sleep(0.01)
        done = threading.Event()
        talking = model(engine, tmp_path / "talking")
        threading.Thread(target=lambda: (said(evicted), done.set())).start()
        assert longest_gap(talking, done) < SLOW / 2


def test_a_fetch_in_a_load_shows_its_progress(engine: InferenceEngine, tmp_path: Path) -> None:
    events: list[Event] = []
    model(engine, tmp_path / "model", "load", on_progress=events.append)
    told = [event for event in events if isinstance(event, Bytes | Ready)]
    assert {event.repo for event in told} == {"org/voice"}
    assert [event.done for event in told if isinstance(event, Bytes)][-1] == 5


def test_a_fetch_in_a_load_ends_with_the_load(
    engine: InferenceEngine, slow_hub: HubServer, tmp_path: Path
) -> None:
    ended: list[BaseException] = []

    def load() -> None:
        try:
            model(engine, tmp_path / "model", "load")
        except errors.MLXEngineError as error:
            ended.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    while not slow_hub.log.entries("/api/models/"):
        time.sleep(0.01)
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 1.5
    loading.join(1)
    assert [type(error) for error in ended] == [errors.CancelledError]
