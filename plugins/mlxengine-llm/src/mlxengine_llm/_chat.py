"""From a text request to token ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxengine import Event, Message, ModelCard, TextPart, TextRequest, ToolCallPart, ToolResultPart
from mlxengine.errors import InvalidParameterError, PromptTooLongError, UnsupportedInputError
from mlxengine.readonly import thaw
from mlxengine.toolkit.aside import Aside
from mlxengine.toolkit.plain_text import Markers, most_characters, with_marks
from mlxengine.toolkit.speech import tools_of
from mlxengine.toolkit.templates import TemplateBoundError, bind

_AT_ONCE = 1 << 14  # characters that are encoded in about a millisecond


class Prompts:
    """Makes token ids of requests; safe from any thread.

    Args:
        tokenizer: mlx-lm's wrapper around the tokenizer.
        card: the model's, for errors.
        context: longest context in tokens, or ``None``.
    """

    def __init__(self, tokenizer: Any, card: ModelCard, context: int | None) -> None:
        self._tokenizer = tokenizer
        self._card = card
        self._context = context
        inner = getattr(tokenizer, "_tokenizer", tokenizer)
        self._end_templates = bind(inner)
        template = getattr(tokenizer, "chat_template", None)
        self._markers = Markers(inner, str(template or ""))
        self._most = None if context is None else most_characters(inner, context)
        self._aside = Aside()

    def serve(
        self, request: TextRequest, plain: bool, then: Callable[[list[int]], Iterator[Event | None]]
    ) -> Iterator[Event | None]:
        """Go on with the request's tokens, once they are made: beside the device, unless that is quick.

        ``plain``: what the messages say never becomes a special token.
        """
        if request.messages or len(request.prompt or "") > _AT_ONCE:
            return self._aside.prepared(lambda: self.tokens(request, plain), then)
        return then(self.tokens(request, plain))

    def encoded(
        self,
        texts: Sequence[str],
        then: Callable[[list[list[int]]], Iterator[Event | None]],
        *,
        bounded: bool = True,
    ) -> Iterator[Event | None]:
        """Go on with the tokens of texts that are no prompts; as `serve`. ``bounded``: by the context."""

        def encode() -> list[list[int]]:
            if bounded:
                self._check_length(max(texts, key=len))
            return [self._markers.encode(text, add_special_tokens=True) for text in texts]

        many = sum(map(len, texts)) > _AT_ONCE
        return self._aside.prepared(encode, then) if many else then(encode())

    def tokens(self, request: TextRequest, plain: bool = True) -> list[int]:
        """The token ids that the request stands for, at least one and fewer than the context holds.

        Raises:
            InvalidParameterError: the prompt is empty, or a token id is not in the vocabulary.
            UnsupportedInputError: a part is not text, or the model has no chat template.
            PromptTooLongError: the prompt leaves no room for an answer.
        """
        if request.prompt_tokens is not None:
            tokens = list(request.prompt_tokens)
            size = len(self._tokenizer)
            wrong = [item for item in tokens if isinstance(item, bool) or not 0 <= item < size]
            if wrong:
                raise InvalidParameterError(
                    f"{wrong[0]!r} is not a token id; the vocabulary has {size} tokens."
                )
        elif request.prompt is not None:
            self._check_length(request.prompt)
            start = self._tokenizer.bos_token
            starts = start is not None and request.prompt.startswith(start)
            tokens = self._markers.encode(request.prompt, add_special_tokens=not starts)
            if not request.prompt:
                tokens = []
        else:
            text, mark = self._render(request, plain)
            self._check_length(text)
            tokens = self._markers.encode(text, mark)
        if not tokens:
            raise InvalidParameterError("The prompt is empty.", hint="Give at least one token of prompt.")
        if self._context is not None and len(tokens) >= self._context:
            raise self._too_long(f"{len(tokens)} tokens")
        return tokens

    def close(self) -> None:
        """End the threads, and the process that renders the template."""
        self._aside.close()
        self._end_templates()

    def _check_length(self, text: str) -> None:
        if self._most is not None and len(text) > self._most:
            raise self._too_long(f"{len(text)} characters")

    def _too_long(self, what: str) -> PromptTooLongError:
        return PromptTooLongError(
            f"The prompt has {what}; {self._card.id} takes {self._context} tokens, answer included.",
            hint="Shorten the prompt, or choose a model with a longer context.",
        )

    def _render(self, request: TextRequest, plain: bool) -> tuple[str, str]:
        """The conversation as the model's chat template writes it, and the mark in it.

        Raises:
            UnsupportedInputError: a part is not text, there is no template, or the template refuses.
        """
        if not self._tokenizer.has_chat_template:
            raise UnsupportedInputError(
                f"{self._card.id} has no chat template, so it cannot take messages.",
                hint="Send TextRequest(prompt=…), or load it with ModelConfiguration(chat_template=…).",
            )
        messages = [_message(item) for item in request.messages]
        if not any(item["content"] or item.get("tool_calls") for item in messages):
            raise InvalidParameterError(
                "The conversation is empty.", hint="Give at least one message with text."
            )
        if request.instructions is not None:
            messages.insert(0, {"role": "system", "content": request.instructions})
        tools, mark = tools_of(request), ""
        if plain:
            mark = self._markers.mark_for((messages, tools))
            messages = [self._markers.hide_message(item, mark) for item in messages]
            tools = self._markers.hide(tools, mark)
        try:
            text = self._written(messages, tools, request)
        except TemplateBoundError:
            raise
        except Exception as error:  # templates are programs of the model's publisher
            raise UnsupportedInputError(
                f"The chat template of {self._card.id} refused the conversation: {error}.",
                hint="Many want alternating user and assistant messages, and some no system message.",
            ) from error
        return with_marks(text, mark), mark

    def _written(self, messages: list[dict[str, Any]], tools: Any, request: TextRequest) -> str:
        """What the template makes of the messages, whose calls have objects or JSON texts as arguments.

        Most templates write objects as they need them. Some join the arguments to other text, and refuse
        objects or show them in Python's notation: these mean JSON text.
        """
        thinking = request.params.thinking

        def apply(messages: list[dict[str, Any]]) -> str:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                add_generation_prompt=request.add_generation_prompt,
                tokenize=False,
                **({} if thinking is None else {"enable_thinking": thinking}),
            )
            return str(text)

        given = [call["function"]["arguments"] for item in messages for call in item.get("tool_calls", ())]
        try:
            text = apply(messages)
        except TemplateBoundError:
            raise
        except Exception:
            if not given:
                raise
            return apply(_with_texts(messages))
        said = "\n".join(item["content"] for item in messages)
        shown = [str(arguments) for arguments in given if arguments]
        if any(text.count(item) > said.count(item) for item in shown):
            return apply(_with_texts(messages))
        return text


def _message(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": str(message.role), "content": message.text}
    calls: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, ToolCallPart):
            function = {"name": part.name, "arguments": thaw(part.arguments)}
            calls.append({"id": part.id, "type": "function", "function": function})
        elif isinstance(part, ToolResultPart):
            found |= {"tool_call_id": part.id, "name": part.name, "content": part.content}
        elif not isinstance(part, TextPart):
            kind = type(part).__name__.removesuffix("Part").lower()
            raise UnsupportedInputError(
                f"This model takes text only, found {kind}.", hint="Choose a vision-language model."
            )
    if calls:
        found["tool_calls"] = calls
    return found


def _with_texts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the arguments of calls as JSON text."""

    def changed(call: dict[str, Any]) -> dict[str, Any]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": arguments}}

    def with_text(message: dict[str, Any]) -> dict[str, Any]:
        calls = message.get("tool_calls")
        return {**message, "tool_calls": list(map(changed, calls))} if calls else message

    return list(map(with_text, messages))


__all__ = ["Prompts"]
