"""The handles of language and vision-language models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..contract.requests import Request
from ..errors import InvalidParameterError
from ..handle import AsyncModelHandle, ModelHandle, Result
from ..streams import AsyncEventStream, EventStream
from .messages import Message, as_messages
from .outputs import TextScore
from .params import GenerateParams
from .replies import TextReply
from .requests import LoadAdapterRequest, ScoreRequest, TextRequest, UnloadAdapterRequest

if TYPE_CHECKING:
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


__all__ = ["AsyncTextHandle", "Prompt", "TextHandle", "text_request"]
