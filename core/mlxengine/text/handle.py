"""The handles of language and vision-language models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from ..contract._convert import only
from ..contract.requests import Request
from ..errors import InvalidParameterError
from ..handle import AsyncModelHandle, ModelHandle, Result
from ..streams import AsyncEventStream, EventStream
from .messages import Message, as_messages
from .outputs import Prepared, TextScore
from .params import GenerateParams
from .replies import TextReply
from .requests import (
    LoadAdapterRequest,
    PrepareRequest,
    ScoreRequest,
    TextRequest,
    ToolChoice,
    UnloadAdapterRequest,
)

if TYPE_CHECKING:
    from .session import AsyncSession, Session, SessionOptions

Prompt = str | Message | Iterable[Message] | Request


class PromptOptions(TypedDict, total=False):
    """What may stand beside a prompt; `TextHandle.stream` says what each means."""

    instructions: str | None
    tools: Sequence[Any]
    tool_choice: ToolChoice | str
    parallel_tool_calls: bool | None
    chat_template_kwargs: Mapping[str, Any]
    continue_final_message: bool


def text_request(
    prompt: Prompt, params: GenerateParams | None = None, **options: Unpack[PromptOptions]
) -> Request:
    """A prompt as a request: a text or messages with parameters, or a request as it is.

    Raises:
        InvalidParameterError: the prompt has the wrong type, an option is unknown, or a request comes with
            parameters beside it.
    """
    only(options, PromptOptions, "params")
    if isinstance(prompt, Request):
        if params is not None or options:
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
        **options,
    )


class ScoreOptions(TypedDict, total=False):
    """What may stand beside texts to score; `ScoreRequest` says what each means."""

    context: str | Sequence[str] | None
    rolling: bool
    top_logprobs: int
    adapter: str | None


def _score_request(text: str | Sequence[str], options: ScoreOptions) -> ScoreRequest:
    only(options, ScoreOptions, "text")
    return ScoreRequest(text=text, **options)


def _scored(text: str | Sequence[str], result: Result) -> TextScore | tuple[TextScore, ...]:
    found = sorted(
        (item for item in result.events if isinstance(item, TextScore)), key=lambda item: item.index
    )
    return found[0] if isinstance(text, str) else tuple(found)


def _prepare_request(prompt: Prompt, options: PromptOptions) -> PrepareRequest:
    request = text_request(prompt, **options)
    if not isinstance(request, TextRequest):
        raise InvalidParameterError(f"Only a text request is prepared, found {type(request).__name__}.")
    return PrepareRequest(request=request)


def _prepared(result: Result) -> Prepared:
    return next(item for item in result.events if isinstance(item, Prepared))


def _text(found: Prepared) -> str:
    if found.text is None:
        raise InvalidParameterError("Token ids are given to the model as they are: there is no text of them.")
    return found.text


class TextHandle(ModelHandle):
    """A language or vision-language model."""

    def stream(
        self,
        request: Prompt,
        params: GenerateParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> EventStream:
        """Start an answer to a text, a message, messages, or a request.

        Args:
            request: the prompt.
            params: how to generate; ``None`` is the model's own defaults.
            instructions: a system message put before the conversation.
            tools: tools that the model may call.
            tool_choice, parallel_tool_calls, chat_template_kwargs, continue_final_message: see `TextRequest`.
        """
        return super().stream(text_request(request, params, **options))

    def generate(
        self,
        prompt: Prompt,
        params: GenerateParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> TextReply:
        """The whole answer.

        Raises:
            MLXEngineError: what the request ended with.
        """
        return TextReply.of(self.stream(prompt, params, **options))

    @overload
    def score(self, text: str, **options: Unpack[ScoreOptions]) -> TextScore: ...

    @overload
    def score(
        self, text: list[str] | tuple[str, ...], **options: Unpack[ScoreOptions]
    ) -> tuple[TextScore, ...]: ...

    def score(
        self, text: str | list[str] | tuple[str, ...], **options: Unpack[ScoreOptions]
    ) -> TextScore | tuple[TextScore, ...]:
        """How probable a text is to the model, token by token; or each of several, which are read together.

        Args:
            text: what to score.
            context: what stands before it, of which nothing is scored: one for all, or one for each. With
                ``""`` the text's own first token is scored too, behind the model's opening token.
            rolling: score a text that is longer than the model's context in windows.
            top_logprobs: tell the best alternatives to each token, 0 to 20.
            adapter: as in `GenerateParams`.

        Raises:
            MLXEngineError: the model does not score texts, or a text is too short or too long.
        """
        return _scored(text, self.run(_score_request(text, options)))

    def count(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> int:
        """How many tokens a prompt has: what ``usage.prompt_tokens`` of its answer will be.

        Nothing runs on the device for it. The arguments are those of `stream`.

        Raises:
            MLXEngineError: what a request for an answer would be refused with.
        """
        return len(_prepared(self.run(_prepare_request(prompt, options))).token_ids)

    def render(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> str:
        """The text that the model's chat template makes of a conversation; as `count`."""
        return _text(_prepared(self.run(_prepare_request(prompt, options))))

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as a prompt without a chat template, the model's opening tokens included."""
        return _prepared(self.run(_prepare_request(TextRequest(prompt=text), {}))).token_ids

    def load_adapter(self, source: str, name: str, *, scale: float = 1.0, default: bool = False) -> None:
        """Load a LoRA or DoRA adapter; requests choose it with ``GenerateParams(adapter=name)``.

        Raises:
            MLXEngineError: it does not fit the model, or the model takes no adapters.
        """
        self.run(LoadAdapterRequest(name=name, source=source, scale=scale, default=default))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        self.run(UnloadAdapterRequest(name=name))

    def session(self, **options: Unpack[SessionOptions]) -> Session:
        """A conversation that keeps its history; see `Session`."""
        from .session import Session

        return Session(self, **options)


class AsyncTextHandle(AsyncModelHandle):
    """A language or vision-language model, for asyncio."""

    def stream(
        self,
        request: Prompt,
        params: GenerateParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> AsyncEventStream:
        """Start an answer to a text, a message, messages, or a request; its events come to an ``async for``.

        Args:
            request: the prompt.
            params: how to generate; ``None`` is the model's own defaults.
            instructions: a system message put before the conversation.
            tools: tools that the model may call.
            tool_choice, parallel_tool_calls, chat_template_kwargs, continue_final_message: see `TextRequest`.
        """
        return super().stream(text_request(request, params, **options))

    async def generate(
        self,
        prompt: Prompt,
        params: GenerateParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> TextReply:
        """The whole answer; cancelling the task cancels the request.

        Raises:
            MLXEngineError: what the request ended with.
        """
        stream = self.stream(prompt, params, **options)
        return TextReply.of([event async for event in stream])

    async def count(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> int:
        """How many tokens a prompt has; the arguments are `stream`'s.

        Raises:
            MLXEngineError: what a request for an answer would be refused with.
        """
        return len(_prepared(await self.run(_prepare_request(prompt, options))).token_ids)

    async def render(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> str:
        """The text that the model's chat template makes of a conversation; as `count`."""
        return _text(_prepared(await self.run(_prepare_request(prompt, options))))

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as a prompt without a chat template, the model's opening tokens included."""
        return _prepared(await self.run(_prepare_request(TextRequest(prompt=text), {}))).token_ids

    async def load_adapter(
        self, source: str, name: str, *, scale: float = 1.0, default: bool = False
    ) -> None:
        """Load a LoRA or DoRA adapter; requests choose it with ``GenerateParams(adapter=name)``.

        Raises:
            MLXEngineError: it does not fit the model, or the model takes no adapters.
        """
        await self.run(LoadAdapterRequest(name=name, source=source, scale=scale, default=default))

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        await self.run(UnloadAdapterRequest(name=name))

    @overload
    async def score(self, text: str, **options: Unpack[ScoreOptions]) -> TextScore: ...

    @overload
    async def score(
        self, text: list[str] | tuple[str, ...], **options: Unpack[ScoreOptions]
    ) -> tuple[TextScore, ...]: ...

    async def score(
        self, text: str | list[str] | tuple[str, ...], **options: Unpack[ScoreOptions]
    ) -> TextScore | tuple[TextScore, ...]:
        """How probable a text is to the model, or each of several; the arguments are `TextHandle.score`'s.

        Raises:
            MLXEngineError: the model does not score texts, or a text is too short or too long.
        """
        return _scored(text, await self.run(_score_request(text, options)))

    def session(self, **options: Unpack[SessionOptions]) -> AsyncSession:
        """A conversation that keeps its history; see `AsyncSession`."""
        from .session import AsyncSession

        return AsyncSession(self, **options)


__all__ = ["AsyncTextHandle", "Prompt", "PromptOptions", "ScoreOptions", "TextHandle", "text_request"]
