"""Whatever the hub does, whoever waits for it can leave: a cancel, a close, ^C, and a limit in time."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session
from mlxengine import (
    AsyncInferenceEngine,
    Claim,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    Request,
    errors,
    hookimpl,
)
from mlxengine import hub as client
from mlxengine._hub.access import Policy

from tests.hub.content import MIB, random_model, same
from tests.hub.processes import ROOT, until
from tests.hub.server import HubServer

FILES = random_model(30, MIB)

WHERE = {
    "the listing": "/api/models/",
    "a document": "/resolve/.*json",
    "a header": "/resolve/.*safetensors",
    "another origin": "/cdn/",
}
HOW: dict[str, tuple[str, dict[str, Any]]] = {
    "asks for a hundred seconds": ("status", {"status": 503, "headers": {"Retry-After": "100"}}),
    "is too busy for a hundred seconds": ("status", {"status": 429, "headers": {"Retry-After": "100"}}),
    "refuses again and again": ("status", {"status": 503}),
    "says nothing": ("delay", {"seconds": 60}),
    "drips its headers": ("drip", {"seconds": 0.4, "part": "headers"}),
    "drips its answer": ("drip", {"seconds": 0.4}),
    "stops within its answer": ("stall", {"after": 1}),
}
SITUATIONS = [(where, how) for where in WHERE for how in HOW]


def _hold_up(hub: HubServer, where: str, how: str) -> Callable[[], bool]:
    """Make the hub wait for ever; returns whether a request has run into it."""
    hub.repos.add("org/name", FILES)
    hub.cdn_mode = where == "another origin"
    kind, settings = HOW[how]
    fault = hub.faults.add(kind, WHERE[where], times=None, **settings)
    return lambda: fault.hits > 0


def _lines() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mlxengine-hub")]


class Words:
    """Serves a folder with ``{"words": …}``."""

    @hookimpl
    def claim_model(self, card: Any) -> Claim | None:
        if "words" not in card.config:
            return None
        return Claim(kind="words", fit=Fit.NATIVE, uses_mlx=False)

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Loaded:
        return Loaded(model=list(card.config["words"]))

    @hookimpl
    def generate(self, model: Any, request: Any, context: Any) -> Iterator[Finished]:
        return iter([Finished()])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "local"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"words": ["a"]}))
    return made


@pytest.fixture
def engine(hub: HubServer, tmp_path: Path) -> Iterator[InferenceEngine]:
    made = InferenceEngine(plugins=[("words", Words())], endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    yield made
    hub.stop()  # so that a test which fails is not held up here as well
    made.close()


def _in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException | None]]:
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, ended


def _left_within(thread: threading.Thread, seconds: float) -> float:
    """Seconds until the thread has ended; a test fails here and goes on, it does not hang."""
    start = time.monotonic()
    thread.join(seconds + 3)
    took = time.monotonic() - start
    assert not thread.is_alive(), f"still waiting after {took:.1f} s"
    assert took < seconds
    return took


@pytest.mark.parametrize(("where", "how"), SITUATIONS)
def test_a_cancel_is_felt_within_a_second(hub: HubServer, tmp_path: Path, where: str, how: str) -> None:
    held = _hold_up(hub, where, how)
    stop = threading.Event()
    thread, ended = _in_thread(
        lambda: client.fetch(
            "org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path, cancelled=stop.is_set
        )
    )
    assert until(held, 5)
    time.sleep(0.1)
    stop.set()
    _left_within(thread, 1.0)
    assert isinstance(ended[0], errors.CancelledError)
    assert until(lambda: not _lines(), 1), _lines()  # nobody is left behind, waiting for what nobody wants
    hub.faults.clear()
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    assert same(path, FILES)


@pytest.mark.parametrize("how", ["drips its headers", "drips its answer", "says nothing"])
def test_a_cancel_is_felt_on_a_connection_that_was_used_before(
    hub: HubServer, tmp_path: Path, how: str
) -> None:
    hub.repos.add("org/name", FILES)
    client.resolve("org/name", endpoint=hub.endpoint, cache_dir=tmp_path / "first")
    neighbour, progress = _slow_neighbour(hub, tmp_path)
    held = _hold_up(hub, "the listing", how)
    stop = threading.Event()
    thread, _ = _in_thread(
        lambda: client.resolve(
            "org/name", endpoint=hub.endpoint, cache_dir=tmp_path / "second", cancelled=stop.is_set
        )
    )
    assert until(held, 5)
    time.sleep(0.1)
    stop.set()
    _left_within(thread, 1.0)
    neighbour.join(20)
    assert progress == [None]  # another download of this process did not notice
    assert until(lambda: not _lines(), 1), _lines()


def _slow_neighbour(hub: HubServer, tmp_path: Path) -> tuple[threading.Thread, list[BaseException | None]]:
    hub.repos.add("org/slow", random_model(31, MIB))
    hub.faults.add("slow", "org/slow/resolve/.*safetensors", times=None, rate=600_000)
    events: list[client.HubEvent] = []

    def fetch() -> None:
        client.fetch(
            "org/slow", endpoint=hub.endpoint, cache_dir=tmp_path / "slow", report=events.append, files=["*"]
        )
        assert not [event for event in events if isinstance(event, client.Retry)]

    found = _in_thread(fetch)
    assert until(lambda: len(hub.log.entries("org/slow/resolve/.*safetensors")) > 1)
    return found


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("call", ["resolve", "plan", "search"])
def test_what_only_asks_can_be_cancelled_too(hub: HubServer, tmp_path: Path, call: str, how: str) -> None:
    hub.repos.add("org/name", FILES)
    kind, settings = HOW[how]
    fault = hub.faults.add(kind, "/api/models", times=None, **settings)
    stop = threading.Event()
    calls: dict[str, Callable[[], object]] = {
        "resolve": lambda: client.resolve(
            "org/name", endpoint=hub.endpoint, cache_dir=tmp_path, cancelled=stop.is_set
        ),
        "plan": lambda: client.plan(
            "org/name", endpoint=hub.endpoint, cache_dir=tmp_path, cancelled=stop.is_set
        ),
        "search": lambda: client.search("name", endpoint=hub.endpoint, cancelled=stop.is_set),
    }
    thread, ended = _in_thread(calls[call])
    assert until(lambda: fault.hits > 0, 5)
    stop.set()
    _left_within(thread, 1.0)
    assert isinstance(ended[0], errors.CancelledError)


@pytest.mark.parametrize(("where", "how"), SITUATIONS)
def test_an_engine_closes_within_two_seconds(
    hub: HubServer, engine: InferenceEngine, where: str, how: str
) -> None:
    held = _hold_up(hub, where, how)
    loading, ended = _in_thread(lambda: engine.load("org/name"))
    assert until(held, 5)
    closing, _ = _in_thread(engine.close)
    _left_within(closing, 2.0)
    _left_within(loading, 1.0)
    assert isinstance(ended[0], errors.CancelledError)
    assert until(lambda: not _lines(), 1), _lines()


def _no_answer_from_the_name_server(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> Callable[[], bool]:
    asked = threading.Event()

    def wait(*arguments: Any, **options: Any) -> Any:
        asked.set()
        hub.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    return asked.is_set


def _silent_peer() -> tuple[socket.socket, str]:
    """What accepts connections, and says nothing more: no TLS, no answer."""
    peer = socket.create_server(("127.0.0.1", 0))
    return peer, f"127.0.0.1:{peer.getsockname()[1]}"


@pytest.mark.parametrize("what", ["no name server", "no TLS", "a proxy that says nothing"])
def test_a_cancel_and_a_close_are_felt_before_there_is_a_connection(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    peer, place = _silent_peer()
    endpoint, reached = f"https://{place}", lambda: bool(_lines())
    if what == "no name server":
        endpoint, reached = "http://hub.example.org", _no_answer_from_the_name_server(monkeypatch, hub)
    elif what == "a proxy that says nothing":
        close_session()
        monkeypatch.setenv("HTTPS_PROXY", f"http://{place}")
        endpoint = "https://hub.example.org"
    try:
        stop = threading.Event()
        thread, ended = _in_thread(
            lambda: client.fetch("org/name", endpoint=endpoint, cache_dir=tmp_path, cancelled=stop.is_set)
        )
        assert until(reached, 5)
        time.sleep(0.2)
        stop.set()
        _left_within(thread, 1.0)
        assert isinstance(ended[0], errors.CancelledError)
        engine = InferenceEngine(plugins=[("words", Words())], endpoint=endpoint, cache_dir=tmp_path)
        loading, ended = _in_thread(lambda: engine.load("org/name"))
        time.sleep(0.3)
        closing, _ = _in_thread(engine.close)
        _left_within(closing, 2.0)
        _left_within(loading, 1.0)
        assert isinstance(ended[0], errors.CancelledError)
        if what != "no name server":  # which nothing can break off
            assert until(lambda: not _lines(), 1), _lines()
    finally:
        hub.stop()
        peer.close()
        close_session()


def test_a_refusal_whose_text_never_ends_is_a_refusal(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add("status", "/api/", status=403, times=None)
    hub.faults.add("drip", "/api/", seconds=0.4, times=None)
    start = time.monotonic()
    with pytest.raises(errors.HubAuthError):
        client.resolve("org/name", endpoint=hub.endpoint, cache_dir=tmp_path)
    assert time.monotonic() - start < 1.0


class Adapters(Words):
    """Needs another repository, to load or to answer."""

    def __init__(self, when: str) -> None:
        self.when = when

    @hookimpl
    def claim_model(self, card: Any) -> Claim | None:
        return super().claim_model(card)

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Loaded:
        if self.when == "load":
            context.fetch("org/name", ["*"])
        return Loaded(model=["a"])

    @hookimpl
    def generate(self, model: Any, request: Any, context: Any) -> Iterator[Finished]:
        yield from context.fetch("org/name", ["*"])
        yield Finished()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("when", ["load", "generate"])
def test_an_engine_closes_while_a_plugin_waits_for_an_adapter(
    hub: HubServer, tmp_path: Path, folder: Path, when: str, how: str
) -> None:
    held = _hold_up(hub, "the listing", how)
    engine = InferenceEngine(
        plugins=[("adapters", Adapters(when))], endpoint=hub.endpoint, cache_dir=tmp_path / "cache"
    )
    work, ended = _in_thread(lambda: engine.load(folder).run(Request()))
    assert until(held, 5)
    closing, _ = _in_thread(engine.close)
    _left_within(closing, 2.0)
    _left_within(work, 1.0)
    assert isinstance(ended[0], errors.CancelledError)


def test_an_answer_that_waits_for_an_adapter_can_be_given_up(
    hub: HubServer, engine: InferenceEngine, tmp_path: Path, folder: Path
) -> None:
    held = _hold_up(hub, "the listing", "drips its answer")
    engine.register(Adapters("generate"), "adapters")
    handle = engine.load(folder, plugin="adapters")
    stream = handle.stream(Request())
    assert until(held, 5)
    stream.close()
    other, done = _in_thread(lambda: engine.load(folder, plugin="words").run(Request()))
    _left_within(other, 1.5)
    assert done == [None]


@pytest.mark.parametrize("how", HOW)
def test_a_switch_to_a_local_model_is_not_held_up(
    hub: HubServer, engine: InferenceEngine, folder: Path, how: str
) -> None:
    held = _hold_up(hub, "the listing", how)
    first, ended = _in_thread(lambda: engine.switch("org/name"))
    assert until(held, 5)
    second, done = _in_thread(lambda: engine.switch(folder))
    _left_within(second, 2.0)
    assert done == [None]
    _left_within(first, 1.0)
    assert isinstance(ended[0], errors.CancelledError)


@pytest.mark.parametrize(
    ("what", "how"),
    [*(("load", how) for how in HOW), *((what, "says nothing") for what in ("switch", "resolve", "fit"))],
)
def test_an_asyncio_task_that_is_cancelled_lets_go_of_the_hub(
    hub: HubServer, tmp_path: Path, folder: Path, what: str, how: str
) -> None:
    held = _hold_up(hub, "the listing", how)

    async def main() -> None:
        engine = AsyncInferenceEngine(
            plugins=[("words", Words())], endpoint=hub.endpoint, cache_dir=tmp_path / "cache"
        )
        loading = asyncio.create_task(getattr(engine, what)("org/name"))
        assert await asyncio.to_thread(until, held, 5)
        start = time.monotonic()
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert time.monotonic() - start < 0.5
        assert await asyncio.to_thread(until, lambda: not _lines(), 1)
        await engine.load(folder)
        await engine.close()
        assert time.monotonic() - start < 2.0

    thread, ended = _in_thread(lambda: asyncio.run(main()))
    thread.join(12)
    assert ended == [None]


def test_a_load_that_was_given_up_does_not_end_the_next_one(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/words", {"config.json": b'{"words": ["a"]}'})
    fault = hub.faults.add("drip", "/api/models/", seconds=0.4)

    async def main() -> None:
        options = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache"}
        async with AsyncInferenceEngine(plugins=[("words", Words())], **options) as engine:
            loading = asyncio.create_task(engine.load("org/words"))
            assert await asyncio.to_thread(until, lambda: fault.hits > 0, 5)
            loading.cancel()
            again = asyncio.create_task(engine.load("org/words"))
            with pytest.raises(asyncio.CancelledError):
                await loading
            assert (await again).id == "org/words"

    asyncio.run(asyncio.wait_for(main(), 20))


PROGRAM = """
import sys
from mlxengine import InferenceEngine, hub
what, endpoint, cache = sys.argv[1:]
print("ready", flush=True)
if what == "fetch":
    hub.fetch("org/name", endpoint=endpoint, cache_dir=cache)
else:
    with InferenceEngine(plugins=[], endpoint=endpoint, cache_dir=cache) as engine:
        engine.load("org/name")
"""


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("what", ["fetch", "load", "pull"])
def test_ctrl_c_is_obeyed_within_two_seconds(hub: HubServer, tmp_path: Path, what: str, how: str) -> None:
    held = _hold_up(hub, "the listing", how)
    program = [sys.executable, "-c", PROGRAM, what, hub.endpoint, str(tmp_path)]
    if what == "pull":
        words = ["pull", "org/name", "--endpoint", hub.endpoint, "--cache-dir", str(tmp_path)]
        program = [sys.executable, "-m", "mlxengine", *words]
    process = subprocess.Popen(
        program, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert until(held, 20)
        time.sleep(0.2)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=6)
        except subprocess.TimeoutExpired:
            pytest.fail("it did not end within six seconds")
        assert time.monotonic() - start < 2.0
        assert process.returncode in (-signal.SIGINT, 130)
    finally:
        process.kill()
        process.communicate()


# ---- a limit for a whole request, beside the one between bytes


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for each request, and for what is slow."""
    from mlxengine._hub import access

    quick = Policy(answer=0.5, slowest=100_000, attempts=4, base=0.01, cap=0.02)
    monkeypatch.setattr(access, "usual_policy", lambda: quick)


@pytest.mark.parametrize("part", ["headers", "body"])
def test_an_answer_that_drips_without_end_is_given_up(
    hub: HubServer, tmp_path: Path, impatient: None, part: str
) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add("drip", "/api/models/", times=None, seconds=0.2, part=part)
    thread, ended = _in_thread(lambda: client.resolve("org/name", endpoint=hub.endpoint, cache_dir=tmp_path))
    _left_within(thread, 6.0)
    assert isinstance(ended[0], errors.HubUnavailableError)
    assert "0.5 s" in str(ended[0])


def test_one_answer_that_drips_is_asked_for_again(hub: HubServer, tmp_path: Path, impatient: None) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add("drip", "/api/models/", seconds=0.2)
    hub.faults.add("drip", "/resolve/.*json", seconds=0.2)
    thread, ended = _in_thread(
        lambda: client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    )
    _left_within(thread, 6.0)
    assert ended == [None]


@pytest.mark.parametrize(("kind", "settings"), [("drip", {"seconds": 0.2}), ("stall", {"after": 1})])
def test_a_file_that_drips_without_end_is_given_up_and_its_bytes_are_kept(
    hub: HubServer, tmp_path: Path, impatient: None, kind: str, settings: dict[str, Any]
) -> None:
    hub.repos.add("org/name", FILES)
    fault = hub.faults.add(kind, "/resolve/.*safetensors", times=None, **settings)
    thread, ended = _in_thread(
        lambda: client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    )
    thread.join(40)
    assert isinstance(ended[0], errors.DownloadError)
    assert fault.hits <= 5  # the header counts as well
    hub.faults.clear()
    hub.log.clear()
    assert same(client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path), FILES)
    assert all(entry.range for entry in hub.log.entries("safetensors"))


def test_what_is_slow_but_comes_is_waited_for(hub: HubServer, tmp_path: Path, impatient: None) -> None:
    files = {**random_model(32, MIB), **{f"notes/{number:0200}.txt": b"x" for number in range(1500)}}
    hub.repos.add("org/name", files)
    hub.faults.add("slow", "/resolve/.*safetensors|/api/", times=None, rate=600_000)
    events: list[client.HubEvent] = []
    start = time.monotonic()
    path = client.fetch(
        "org/name", files=["*.safetensors"], endpoint=hub.endpoint, cache_dir=tmp_path, report=events.append
    )
    assert time.monotonic() - start > 2.0
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert len(hub.log.entries("/api/")) == 1
    assert len(hub.log.entries("/resolve/.*safetensors")) == 2  # the header, and the rest
    assert not [event for event in events if isinstance(event, client.Retry)]


# ---- a model that is ready does not wait


@pytest.mark.parametrize("how", [*HOW, "is gone", "is a hole in the network", "has a name that nobody finds"])
def test_a_ready_model_is_there_at_once_whatever_the_hub_does(
    hub: HubServer,
    tmp_path: Path,
    how: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.repos.add("org/name", FILES)
    client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    endpoint = hub.endpoint
    if how in HOW:
        _hold_up(hub, "the listing", how)
    elif how == "is gone":
        hub.stop()
    elif how == "has a name that nobody finds":
        endpoint = "http://hub.example.org"
        _no_answer_from_the_name_server(monkeypatch, hub)
    else:
        endpoint = "http://192.0.2.1"  # TEST-NET-1: nobody answers there
    thread, ended = _in_thread(
        lambda: client.fetch("org/name", files=["*"], endpoint=endpoint, cache_dir=tmp_path)
    )
    _left_within(thread, 1.6)
    assert ended == [None]
    assert "Using org/name as it is here" in caplog.text


@pytest.mark.parametrize("how", HOW)
def test_a_ready_model_is_there_soon_though_a_newer_one_does_not_come(
    hub: HubServer, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repos.add("org/name", FILES)
    client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    hub.repos["org/name"].commit({"config.json": b'{"model_type": "newer"}'})
    kind, settings = HOW[how]
    hub.faults.add(kind, "/resolve/", times=None, **settings)
    start = time.monotonic()
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    assert time.monotonic() - start < 3.0
    assert same(path, FILES)
    assert "Using org/name as it is here" in caplog.text
    hub.faults.clear()
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    assert (path / "config.json").read_bytes() == b'{"model_type": "newer"}'


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"sha": 7}', b"<html>", b'{"sha": "%s", "siblings": 7}' % (b"a" * 40)]
)
def test_a_ready_model_does_not_mind_what_the_hub_says(hub: HubServer, tmp_path: Path, answer: bytes) -> None:
    hub.repos.add("org/name", FILES)
    client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    evil = b'{"sha": "%s", "siblings": [{"rfilename": "../x"}]}' % (b"b" * 40)
    for body in (answer, evil, b'{"sha": "%s", "siblings": []}' % (b"c" * 40)):
        hub.faults.clear()
        hub.faults.add("replace", "/api/models/", body=body, times=None)
        path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
        assert same(path, FILES)
        if body == evil:
            with pytest.raises(errors.CorruptFileError):
                client.fetch("org/name", endpoint=hub.endpoint, cache_dir=tmp_path / "other")


@pytest.mark.parametrize("how", HOW)
def test_an_engine_uses_a_ready_model_at_once_whatever_the_hub_does(
    hub: HubServer, engine: InferenceEngine, how: str
) -> None:
    hub.repos.add("org/words", {"config.json": b'{"words": ["a"]}'})
    engine.load("org/words").close()
    kind, settings = HOW[how]
    hub.faults.add(kind, times=None, **settings)
    thread, ended = _in_thread(lambda: engine.load("org/words"))
    _left_within(thread, 2.0)
    assert ended == [None]


@pytest.mark.parametrize("token", ["hf_a\nb", "hf_ä"])
def test_a_ready_model_needs_no_sound_token_or_endpoint(
    hub: HubServer, tmp_path: Path, hub_home: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    hub.repos.add("org/name", FILES)
    client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    monkeypatch.setenv("HF_TOKEN", token)
    assert same(client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path), FILES)
    monkeypatch.delenv("HF_TOKEN")
    assert same(client.fetch("org/name", files=["*"], endpoint="not a url", cache_dir=tmp_path), FILES)


def test_a_storm_of_cancels_leaves_no_thread_no_connection_and_no_lock(
    hub: HubServer, tmp_path: Path
) -> None:
    files = random_model(33, MIB, MIB, MIB)
    hub.repos.add("org/name", files)
    hub.cdn_mode = True
    hub.faults.add("slow", "/cdn/", times=None, rate=4 * MIB)
    hub.faults.add("delay", times=None, seconds=0.02)
    source = random.Random(5)
    opened: list[int] = []
    for _ in range(30):
        end = time.monotonic() + source.uniform(0, 0.6)
        with suppress(errors.CancelledError):
            client.fetch(
                "org/name",
                files=["*"],
                endpoint=hub.endpoint,
                cache_dir=tmp_path,
                cancelled=lambda end=end: time.monotonic() > end,
            )
        assert until(lambda: not _lines(), 1), _lines()
        opened.append(len(list(Path("/dev/fd").iterdir())))
        if source.random() < 0.3:
            shutil.rmtree(tmp_path)
    assert max(opened[10:]) <= max(opened[:10]) + 8
    assert same(client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path), files)


def test_a_small_file_that_takes_its_time_is_no_failure(hub: HubServer, tmp_path: Path) -> None:
    files = {**FILES, "notes.txt": b"x"}
    hub.repos.add("org/name", files)
    hub.faults.add("delay", "/resolve/", times=None, seconds=0.6)
    events: list[client.HubEvent] = []
    path = client.fetch(
        "org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path, report=events.append
    )
    assert same(path, files)
    assert not [event for event in events if isinstance(event, client.Retry)]
