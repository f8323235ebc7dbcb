"""What can be asked of a language or vision-language model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from attrs import field, frozen

from ..contract._convert import (
    anything,
    flag,
    integers,
    json_object,
    named,
    optional_text,
    text,
    texts,
)
from ..contract.requests import Request
from ..errors import InvalidParameterError
from .grammar import check_references
from .messages import Message, Role, as_messages
from .params import GenerateParams, number
from .tools import described


def _optional_tuple(value: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if value is None else integers(value)


@frozen(field_transformer=named)
class ToolChoice:
    """The one tool that an answer has to call, by its name."""

    name: str = field(converter=text)


_CHOICES = ("auto", "none", "required")


def _tool_choice(_instance: object, _attribute: object, value: Any) -> None:
    if not isinstance(value, ToolChoice) and value not in _CHOICES:
        raise InvalidParameterError(
            f"tool_choice={value!r} is none of {', '.join(map(repr, _CHOICES))} and no ToolChoice.",
            hint='Write tool_choice=ToolChoice("name") for the one to be called.',
        )


@frozen(kw_only=True, field_transformer=named)
class TextRequest(Request):
    """Text (and pictures, sound) in, text out.

    Args:
        messages: the conversation; rendered with the model's chat template.
        prompt: raw text instead of messages; no template is applied.
        prompt_tokens: token ids instead of either.
        params: how to generate.
        instructions: a system message put before the conversation.
        tools: Python functions, or descriptions of tools as JSON-schema function objects. One with
            ``"strict": true`` in its ``function`` is called with arguments of its schema only.
        tool_choice: ``"auto"`` lets the model choose, ``"none"`` shows it the tools and lets it call none,
            ``"required"`` makes it call at least one, `ToolChoice` the one that it names.
        parallel_tool_calls: whether one answer may make several calls; ``None`` leaves it to the model.
        chat_template_kwargs: further variables of the model's chat template, such as ``enable_thinking``;
            one that the template does not read is refused.
        add_generation_prompt: end the rendered conversation where the assistant starts to speak.
        continue_final_message: the last message is the assistant's, and is continued: the answer is what
            follows it.
    """

    messages: tuple[Message, ...] = field(default=(), converter=as_messages)
    prompt: str | None = field(default=None, validator=optional_text)
    prompt_tokens: tuple[int, ...] | None = field(default=None, converter=_optional_tuple)
    params: GenerateParams = field(factory=GenerateParams)
    instructions: str | None = field(default=None, validator=optional_text)
    tools: tuple[Any, ...] = field(default=(), converter=anything)
    tool_choice: ToolChoice | str = field(default="auto", validator=_tool_choice)
    parallel_tool_calls: bool | None = field(default=None, validator=flag)
    chat_template_kwargs: Mapping[str, Any] = field(factory=dict, converter=json_object)
    add_generation_prompt: bool = field(default=True, validator=flag)
    continue_final_message: bool = field(default=False, validator=flag)

    def __attrs_post_init__(self) -> None:
        given = [bool(self.messages), self.prompt is not None, self.prompt_tokens is not None]
        if sum(given) != 1:
            raise InvalidParameterError(
                "A text request takes exactly one of messages (at least one), prompt and prompt_tokens."
            )
        if not isinstance(self.params, GenerateParams):
            raise InvalidParameterError(f"params must be GenerateParams, found {type(self.params).__name__}.")
        known = self.described
        forced = self.tool_choice not in ("auto", "none")
        if forced and not self.tools:
            raise InvalidParameterError(
                f"tool_choice={self.tool_choice!r} needs tools.", hint="Give tools=[…], or leave it out."
            )
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.name not in known:
            raise InvalidParameterError(
                f"tool_choice names {self.tool_choice.name!r}, which is none of the tools.",
                hint=f"They are: {', '.join(known)}.",
            )
        for name, tool in known.items():
            function = tool.get("function", tool)
            if forced or function.get("strict"):
                check_references(function.get("parameters"), f"The schema of the tool {name!r}")
        if self.continue_final_message and (
            not self.messages or self.messages[-1].role is not Role.ASSISTANT
        ):
            raise InvalidParameterError(
                "continue_final_message needs a last message of the assistant.",
                hint='End the messages with Message.assistant("…").',
            )

    @cached_property
    def described(self) -> Mapping[str, Mapping[str, Any]]:
        """The tools as JSON-schema function objects, by their names."""
        return described(self.tools)


def _one_or_more(value: str | Iterable[str] | None) -> str | tuple[str, ...] | None:
    if value is None:
        return None
    return text(value) if isinstance(value, str) else texts(value)


def _ids(value: Iterable[Any] | None) -> Tokens | None:
    if value is None:
        return None
    given = anything(value)
    nested = [isinstance(item, Iterable) for item in given]
    if not any(nested):
        return integers(given)
    if not all(nested):
        raise InvalidParameterError("Give the token ids of one text, or of each of several.")
    return tuple(map(integers, given))


Tokens = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""Token ids of one text, or of each of several."""


@frozen(kw_only=True, field_transformer=named)
class ScoreRequest(Request):
    """How probable texts are to a language model; several are read together where the model allows it.

    Args:
        text: what to score, one text or several; the tokenizer's own opening tokens are put before each.
        tokens: token ids instead, of one text or of several, at least two each; the first is only context.
        context: what stands before the text, of which nothing is scored: one for all texts, or one for each.
            They are tokenized as one text; a token that holds some of both is scored. Where it comes to no
            token, the model's BOS (its EOS, if it has none) opens the text, so all of that is scored.
        rolling: score texts that are longer than the model's context too, in windows, each token once: what
            lies further back than the context reaches is not seen.
        top_logprobs: tell the best alternatives to each token, 0 to 20.
        adapter: as in `GenerateParams`.
    """

    text: str | tuple[str, ...] | None = field(default=None, converter=_one_or_more)
    tokens: Tokens | None = field(default=None, converter=_ids)
    context: str | tuple[str, ...] | None = field(default=None, converter=_one_or_more)
    rolling: bool = field(default=False, validator=flag)
    top_logprobs: int = field(default=0, validator=number(0, 20, integer=True))
    adapter: str | None = field(default=None, validator=optional_text)

    def __attrs_post_init__(self) -> None:
        if (self.text is None) == (self.tokens is None):
            raise InvalidParameterError("A score request takes exactly one of text and tokens.")
        if self.text == () or self.tokens == ():
            raise InvalidParameterError("There is nothing to score.", hint="Give at least one text.")
        if self.context is not None and self.text is None:
            raise InvalidParameterError(
                "A context stands before a text.", hint="Put the context's ids before those of the text."
            )
        if isinstance(self.context, tuple) and len(self.context) != len(self._texts):
            raise InvalidParameterError(
                f"There are {len(self.context)} contexts for {len(self._texts)} texts.",
                hint="Give one for all of them, or one for each.",
            )

    @property
    def _texts(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else self.text or ()

    @property
    def pairs(self) -> tuple[tuple[str | None, str], ...]:
        """Each text behind its context; none where tokens were given."""
        if isinstance(self.context, tuple):
            return tuple(zip(self.context, self._texts, strict=True))
        return tuple((self.context, text) for text in self._texts)


@frozen(kw_only=True)
class PrepareRequest(Request):
    """What the model would be given for a request, without a step on the device; see `Prepared`."""

    request: TextRequest


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


__all__ = [
    "LoadAdapterRequest",
    "PrepareRequest",
    "ScoreRequest",
    "TextRequest",
    "ToolChoice",
    "UnloadAdapterRequest",
]
