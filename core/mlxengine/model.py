"""Handles: what ``load`` returns. Each kind's handle only builds requests and gathers events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import attrs

from .configuration import ModelCard, ModelConfiguration
from .errors import InvalidParameterError
from .features import Explanation, Feature
from .messages import Message, as_messages
from .outputs import TextScore
from .params import GenerateParams
from .replies import Result, TextReply
from .requests import LoadAdapterRequest, Request, ScoreRequest, TextRequest, UnloadAdapterRequest
from .streams import AsyncEventStream, EventStream

if TYPE_CHECKING:
    from ._live import LiveModel
    from .engine import InferenceEngine
    from .session import AsyncSession, Session

Prompt = str | Message | Iterable[Message] | Request


def text_request(
    prompt: Prompt,
    params: GenerateParams | None = None,
    *,
    instructions: str | None = None,
    tools: Sequence[Any] = (),
) -> Request:
    """A prompt as a request: a text or messages with parameters, or a request as it is.

    Raises:
        InvalidParameterError: the prompt has the wrong type, or a request comes with parameters beside it.
    """
    if isinstance(prompt, Request):
        if params is not None or instructions is not None or tools:
            raise InvalidParameterError(
                "A request carries its own parameters.",
                hint="Put params, instructions and tools into the request: attrs.evolve(request, params=…).",
            )
        return prompt
    if params is not None and not isinstance(params, GenerateParams):
        raise InvalidParameterError(
            f"params must be GenerateParams, found {type(params).__name__}.",
            hint="Write GenerateParams(max_tokens=64, …).",
        )
    return TextRequest(
        messages=as_messages(prompt),
        params=params or GenerateParams(),
        instructions=instructions,
        tools=tuple(tools),
    )


class _Handle:
    """What the sync and the async handles share."""

    def __init__(self, engine: InferenceEngine, live: LiveModel) -> None:
        self._engine = engine
        self._live = live
        self._closed = False

    @property
    def id(self) -> str:
        """Repository id, or local path."""
        return self._live.card.id

    @property
    def kind(self) -> str:
        """The kind that the plugin claimed."""
        return self._live.claim.kind

    @property
    def plugin(self) -> str:
        """The plugin that serves the model."""
        return self._live.record.name

    @property
    def card(self) -> ModelCard:
        """What was found out about the model."""
        return self._live.card

    @property
    def configuration(self) -> ModelConfiguration:
        """What was asked for."""
        return self._live.configuration

    @property
    def capabilities(self) -> frozenset[str]:
        """Facts about the loaded model, for example ``"vision"`` or ``"tools"``."""
        return self._live.capabilities

    @property
    def info(self) -> Mapping[str, Any]:
        """What the plugin says about the loaded model."""
        return self._live.info

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self._closed

    def pin(self, on: bool = True) -> None:
        """Never evict the model while this is on (and somebody holds it)."""
        self._live.pinned = on
        self._engine._pool.changed()

    @contextmanager
    def keep(self, name: str) -> Iterator[None]:
        """Keep the model in memory while the block runs; ``name`` tells others why it cannot go."""
        held = self._live.inhibitors
        held[name] = held.get(name, 0) + 1
        self._engine._pool.changed()
        try:
            yield
        finally:
            held[name] -= 1
            if not held[name]:
                del held[name]
            self._engine._pool.changed()

    def explain(self, feature: str | Feature[Any]) -> Explanation:
        """Value, source, availability and reason of a feature for this model."""
        return self._live.features.explain(feature)

    def _release(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine._release(self._live)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {self.id} kind={self.kind} plugin={self.plugin} {state}>"


class ModelHandle(_Handle):
    """A loaded model of any kind: `stream` events, or `run` to the end.

    Close it (or leave its ``with`` block) to free the model when nobody else holds it.
    """

    def stream(self, request: Request) -> EventStream:
        """Start a request; its events come as they happen.

        Raises:
            ModelClosedError, EngineClosedError: the handle or its engine was closed.
            InvalidParameterError: ``request`` is not a request, or one that this model cannot take.
        """
        return EventStream(*self._engine._open(self._live, request, self._closed))

    def run(self, request: Request) -> Result:
        """Run a request to its end.

        Raises:
            MLXEngineError: what the request ended with.
        """
        return Result.of(self.stream(request))

    def close(self) -> None:
        """Give the model up. It is freed when no other handle holds it. May be called twice."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TextHandle(ModelHandle):
    """A language or vision-language model."""

    def stream(
        self,
        request: Prompt,
        params: GenerateParams | None = None,
        *,
        instructions: str | None = None,
        tools: Sequence[Any] = (),
    ) -> EventStream:
        """Start an answer to a text, a message, messages, or a request.

        Args:
            request: the prompt.
            params: how to generate; ``None`` is the model's own defaults.
            instructions: a system message put before the conversation.
            tools: tools that the model may call.
        """
        return super().stream(text_request(request, params, instructions=instructions, tools=tools))

    def generate(
        self,
        prompt: Prompt,
        params: GenerateParams | None = None,
        *,
        instructions: str | None = None,
        tools: Sequence[Any] = (),
    ) -> TextReply:
        """The whole answer.

        Raises:
            MLXEngineError: what the request ended with.
        """
        return TextReply.of(self.stream(prompt, params, instructions=instructions, tools=tools))

    def score(self, text: str) -> TextScore:
        """How probable the text is to the model, token by token.

        Raises:
            MLXEngineError: the model does not score texts, or the text is too short or too long.
        """
        return _scored(self.run(ScoreRequest(text=text)))

    def load_adapter(self, source: str, name: str, *, scale: float = 1.0, default: bool = False) -> None:
        """Load a LoRA or DoRA adapter; requests choose it with ``GenerateParams(adapter=name)``.

        Raises:
            MLXEngineError: it does not fit the model, or the model takes no adapters.
        """
        self.run(LoadAdapterRequest(name=name, source=source, scale=scale, default=default))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        self.run(UnloadAdapterRequest(name=name))

    def session(
        self,
        *,
        instructions: str | None = None,
        params: GenerateParams | None = None,
        tools: Sequence[Any] = (),
        tool_rounds: int = 0,
        history: Iterable[Message] = (),
    ) -> Session:
        """A conversation that keeps its history; see `Session`."""
        from .session import Session

        return Session(
            self,
            instructions=instructions,
            params=params,
            tools=tools,
            tool_rounds=tool_rounds,
            history=history,
        )


def _scored(result: Result) -> TextScore:
    return next(event for event in result.events if isinstance(event, TextScore))


class AsyncModelHandle(_Handle):
    """The same as `ModelHandle`, for asyncio."""

    def stream(self, request: Request) -> AsyncEventStream:
        """Start a request; iterate its events with ``async for``."""
        return AsyncEventStream(*self._engine._open(self._live, request, self._closed))

    async def run(self, request: Request) -> Result:
        """Run a request to its end."""
        return Result.of([event async for event in self.stream(request)])

    async def close(self) -> None:
        """Give the model up. May be called twice."""
        self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncTextHandle(AsyncModelHandle):
    """The same as `TextHandle`, for asyncio."""

    def stream(
        self,
        request: Prompt,
        params: GenerateParams | None = None,
        *,
        instructions: str | None = None,
        tools: Sequence[Any] = (),
    ) -> AsyncEventStream:
        """Start an answer; iterate its events with ``async for``."""
        return super().stream(text_request(request, params, instructions=instructions, tools=tools))

    async def generate(
        self,
        prompt: Prompt,
        params: GenerateParams | None = None,
        *,
        instructions: str | None = None,
        tools: Sequence[Any] = (),
    ) -> TextReply:
        """The whole answer."""
        stream = self.stream(prompt, params, instructions=instructions, tools=tools)
        return TextReply.of([event async for event in stream])

    async def load_adapter(
        self, source: str, name: str, *, scale: float = 1.0, default: bool = False
    ) -> None:
        """Load a LoRA or DoRA adapter; requests choose it with ``GenerateParams(adapter=name)``."""
        await self.run(LoadAdapterRequest(name=name, source=source, scale=scale, default=default))

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        await self.run(UnloadAdapterRequest(name=name))

    async def score(self, text: str) -> TextScore:
        """How probable the text is to the model, token by token."""
        return _scored(await self.run(ScoreRequest(text=text)))

    def session(
        self,
        *,
        instructions: str | None = None,
        params: GenerateParams | None = None,
        tools: Sequence[Any] = (),
        tool_rounds: int = 0,
        history: Iterable[Message] = (),
    ) -> AsyncSession:
        """A conversation that keeps its history; see `AsyncSession`."""
        from .session import AsyncSession

        return AsyncSession(
            self,
            instructions=instructions,
            params=params,
            tools=tools,
            tool_rounds=tool_rounds,
            history=history,
        )


def with_features(request: Request, features: Mapping[str, object]) -> Request:
    """The same request with feature flags for this call."""
    return attrs.evolve(request, features=tuple(features.items()))


__all__ = [
    "AsyncModelHandle",
    "AsyncTextHandle",
    "ModelHandle",
    "Prompt",
    "TextHandle",
    "text_request",
    "with_features",
]
