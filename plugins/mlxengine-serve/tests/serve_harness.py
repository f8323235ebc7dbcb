"""A server on loopback, a model that says what a test planned, and a client that reads raw bytes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from attrs import define, field
from mlxengine import (
    AsyncInferenceEngine,
    Claim,
    Event,
    Finished,
    FinishReason,
    Fit,
    Loaded,
    MemoryEstimate,
    Request,
    TextDelta,
    TokenUsage,
    hookimpl,
)
from mlxengine_serve import ServerOptions, create_app
from mlxengine_serve._uvicorn import WRITE_SECONDS, Runner, bind, config

Plan = Callable[[Request], Iterator[Event | None]]


def said(*texts: str, reason: FinishReason = FinishReason.STOP, prompt: int = 3) -> Plan:
    """A plan that says these texts, one a step."""

    def plan(_request: Request) -> Iterator[Event]:
        for number, text in enumerate(texts):
            yield TextDelta(text=text, token_ids=(number,))
        yield Finished(
            reason=reason,
            usage=TokenUsage(prompt_tokens=prompt, completion_tokens=len(texts), cached_tokens=1),
        )

    return plan


def planned(*events: Event) -> Plan:
    """A plan of these events."""
    return lambda _request: iter(events)


@define(eq=False)
class Scripted:
    """A plugin whose models do what ``plan`` says, and keep what they were asked.

    ``alive`` counts the iterators that were made and not closed yet.
    """

    plan: Plan = field(factory=lambda: said("Hello", " world"))
    asked: list[Request] = field(factory=list)
    alive: int = 0
    loads: list[str] = field(factory=list)
    load_seconds: float = 0.0
    kind: str = "llm"

    @property
    def last(self) -> Any:
        return self.asked[-1]

    @hookimpl
    def claim_model(self, card: Any) -> Claim | None:
        if card.architecture != "scripted":
            return None
        return Claim(
            kind=card.config.get("kind", "llm"),
            fit=Fit.NATIVE,
            files=("config.json",),
            estimate=lambda _workload: MemoryEstimate(weights=card.config.get("bytes", 0)),
            uses_mlx=False,
            capabilities=frozenset({"text", "chat", "tools"}),
        )

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Loaded:
        until = time.monotonic() + self.load_seconds
        while time.monotonic() < until:
            if context.cancelled():
                from mlxengine.errors import CancelledError

                raise CancelledError("given up")
            time.sleep(0.005)
        self.loads.append(card.id)
        return Loaded(model=card.id, info={"context_length": 4096})

    @hookimpl
    def generate(self, model: object, request: Request, context: Any) -> Iterator[Event | None]:
        self.asked.append(request)
        return _Counted(self, self.plan(request))


class _Counted:
    """An iterator that its plugin knows of, with what the engine asks of one besides."""

    def __init__(self, plugin: Scripted, steps: Any) -> None:
        self._plugin, self._steps, self._open = plugin, iter(steps), True
        plugin.alive += 1

    @property
    def waiting(self) -> bool:
        return bool(getattr(self._steps, "waiting", False))

    @property
    def usage(self) -> TokenUsage:
        return getattr(self._steps, "usage", TokenUsage())

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> Event | None:
        try:
            return next(self._steps)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()
        self._end()

    def _end(self) -> None:
        self._plugin.alive -= self._open
        self._open = False


def write_model(folder: Path, **config: Any) -> Path:
    """A model of the scripted plugin's, as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "scripted", **config}))
    return folder


@define(eq=False)
class Served:
    """A server that runs, and a client of it."""

    url: str
    engine: AsyncInferenceEngine
    client: httpx2.Client
    plugin: Scripted | None = None

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=body, **options)

    def lines(self, path: str, body: Any) -> list[str]:
        """The lines of a stream."""
        with self.client.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200, answer.read()
            return list(answer.iter_lines())

    def frames(self, path: str, body: Any) -> list[Any]:
        """The data of a stream's frames, decoded; ``[DONE]`` as it is."""
        data = [line.removeprefix("data: ") for line in self.lines(path, body) if line.startswith("data: ")]
        return [item if item == "[DONE]" else json.loads(item) for item in data]

    def wait_until(self, true: Callable[[], bool], seconds: float = 5.0) -> float:
        """Wait for something to become true; how long it took."""
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < seconds, "it did not come true"
            time.sleep(0.002)
        return time.monotonic() - began


@contextmanager
def serving(
    options: ServerOptions,
    plugin: Scripted | None = None,
    failed: Callable[[BaseException], None] | None = None,
    write_seconds: float = WRITE_SECONDS,
    **engine: Any,
) -> Iterator[Served]:
    """A server on a free port of loopback, on a thread of its own."""
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    if plugin is not None:
        engine["plugins"] = [("scripted", plugin)]
    started: list[tuple[Runner, AsyncInferenceEngine]] = []
    ready = threading.Event()

    class Quiet(Runner):
        def capture_signals(self) -> Any:  # signals are for the main thread
            from contextlib import nullcontext

            return nullcontext()

    async def main() -> None:
        async with AsyncInferenceEngine(**engine) as made:
            runner = Quiet(config(create_app(made, options, failed=failed), write_seconds=write_seconds))
            runner.config.timeout_graceful_shutdown = 1
            started.append((runner, made))
            asyncio.get_running_loop().call_later(0, ready.set)
            await runner.serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(10)
    [(runner, made)] = started
    url = f"http://127.0.0.1:{port}"
    with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
        yield Served(url, made, client, plugin)
    runner.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
