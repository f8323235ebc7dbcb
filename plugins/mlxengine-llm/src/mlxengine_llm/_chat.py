"""From a text request to token ids."""

from __future__ import annotations

from typing import Any

from mlxengine import Message, TextPart, TextRequest, ToolCallPart, ToolResultPart
from mlxengine.errors import InvalidParameterError, PromptTooLongError, UnsupportedInputError
from mlxengine.readonly import thaw
from mlxengine.text.tools import describe

from ._model import LanguageModel


def prompt_tokens(model: LanguageModel, request: TextRequest) -> list[int]:
    """The token ids that the request stands for, at least one and fewer than the context holds.

    Raises:
        InvalidParameterError: the prompt is empty, or a token id is not in the vocabulary.
        UnsupportedInputError: a part is not text, or the model has no chat template.
        PromptTooLongError: the prompt leaves no room for an answer.
    """
    tokenizer = model.tokenizer
    if request.prompt_tokens is not None:
        tokens = list(request.prompt_tokens)
        size = len(tokenizer)
        wrong = [item for item in tokens if isinstance(item, bool) or not 0 <= item < size]
        if wrong:
            raise InvalidParameterError(f"{wrong[0]!r} is not a token id; the vocabulary has {size} tokens.")
    elif request.prompt is not None:
        starts = tokenizer.bos_token is not None and request.prompt.startswith(tokenizer.bos_token)
        tokens = list(tokenizer.encode(request.prompt, add_special_tokens=not starts))
        if not request.prompt:
            tokens = []
    else:
        tokens = list(tokenizer.encode(render(model, request), add_special_tokens=False))
    if not tokens:
        raise InvalidParameterError("The prompt is empty.", hint="Give at least one token of prompt.")
    if model.context is not None and len(tokens) >= model.context:
        raise PromptTooLongError(
            f"The prompt has {len(tokens)} tokens; {model.card.id} takes {model.context}, answer included.",
            hint="Shorten the prompt, or choose a model with a longer context.",
        )
    return tokens


def render(model: LanguageModel, request: TextRequest) -> str:
    """The conversation as the model's chat template writes it.

    Raises:
        UnsupportedInputError: a part is not text, there is no template, or the template refuses.
    """
    if not model.tokenizer.has_chat_template:
        raise UnsupportedInputError(
            f"{model.card.id} has no chat template, so it cannot take messages.",
            hint="Send TextRequest(prompt=…), or load it with ModelConfiguration(chat_template=…).",
        )
    messages = [_message(item) for item in request.messages]
    if not any(item["content"] or item.get("tool_calls") for item in messages):
        raise InvalidParameterError("The conversation is empty.", hint="Give at least one message with text.")
    if request.instructions is not None:
        messages.insert(0, {"role": "system", "content": request.instructions})
    try:
        text = model.tokenizer.apply_chat_template(
            messages,
            tools=tools_of(request) or None,
            add_generation_prompt=request.add_generation_prompt,
            tokenize=False,
            **({} if request.params.thinking is None else {"enable_thinking": request.params.thinking}),
        )
    except Exception as error:  # templates are programs of the model's publisher
        raise UnsupportedInputError(
            f"The chat template of {model.card.id} refused the conversation: {error}.",
            hint="Many templates want alternating user and assistant messages, and some no system message.",
        ) from error
    return str(text)


def tools_of(request: TextRequest) -> list[dict[str, Any]]:
    """The request's tools as JSON-schema function objects."""
    return [thaw(describe(tool)) for tool in request.tools]


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


__all__ = ["prompt_tokens", "render", "tools_of"]
