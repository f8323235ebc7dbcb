"""What can be asked of a language or vision-language model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import field, frozen

from ..contract._convert import anything, optional_text
from ..contract.requests import Request
from ..errors import InvalidParameterError
from .messages import Message
from .params import GenerateParams


def _messages(value: Iterable[Message]) -> tuple[Message, ...]:
    return tuple(value)


def _optional_tuple(value: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value)


@frozen(kw_only=True)
class TextRequest(Request):
    """Text (and pictures, sound) in, text out.

    Args:
        messages: the conversation; rendered with the model's chat template.
        prompt: raw text instead of messages; no template is applied.
        prompt_tokens: token ids instead of either.
        params: how to generate.
        instructions: a system message put before the conversation.
        tools: Python functions, or descriptions of tools as JSON-schema function objects.
        add_generation_prompt: end the rendered conversation where the assistant starts to speak.
    """

    messages: tuple[Message, ...] = field(default=(), converter=_messages)
    prompt: str | None = field(default=None, converter=optional_text)
    prompt_tokens: tuple[int, ...] | None = field(default=None, converter=_optional_tuple)
    params: GenerateParams = field(factory=GenerateParams)
    instructions: str | None = field(default=None, converter=optional_text)
    tools: tuple[Any, ...] = field(default=(), converter=anything)
    add_generation_prompt: bool = True

    def __attrs_post_init__(self) -> None:
        given = [bool(self.messages), self.prompt is not None, self.prompt_tokens is not None]
        if sum(given) != 1:
            raise InvalidParameterError(
                "A text request takes exactly one of messages (at least one), prompt and prompt_tokens."
            )
        if not isinstance(self.params, GenerateParams):
            raise InvalidParameterError(f"params must be GenerateParams, found {type(self.params).__name__}.")


@frozen(kw_only=True)
class ScoreRequest(Request):
    """How probable a text is to a language model.

    Args:
        text: what to score; the tokenizer's own opening tokens are put before it.
        tokens: token ids instead of a text, at least two; the first is only context.
        adapter: as in `GenerateParams`.
    """

    text: str | None = field(default=None, converter=optional_text)
    tokens: tuple[int, ...] | None = field(default=None, converter=_optional_tuple)
    adapter: str | None = None

    def __attrs_post_init__(self) -> None:
        if (self.text is None) == (self.tokens is None):
            raise InvalidParameterError("A score request takes exactly one of text and tokens.")


@frozen(kw_only=True)
class LoadAdapterRequest(Request):
    """Load a LoRA or DoRA adapter beside the weights of a model.

    Args:
        name: what requests will call it.
        source: a folder, or a repository on the hub, in mlx-lm's or PEFT's format.
        scale: multiplies the adapter's own.
        default: use it for requests that name no adapter.
    """

    name: str
    source: str = field(converter=str)
    scale: float = 1.0
    default: bool = False


@frozen(kw_only=True)
class UnloadAdapterRequest(Request):
    """Forget an adapter of a model."""

    name: str


__all__ = ["LoadAdapterRequest", "ScoreRequest", "TextRequest", "UnloadAdapterRequest"]
