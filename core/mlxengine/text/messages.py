"""Messages of a conversation and the parts that they are made of."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from attrs import evolve, field, frozen

from ..contract._convert import anything, flag, json_object, named, text
from ..contract.media import ImagePart
from ..errors import InvalidParameterError

if TYPE_CHECKING:
    from .outputs import ToolCall


class Role(enum.StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@frozen(field_transformer=named)
class TextPart:
    """Plain text."""

    text: str = field(converter=text)


@frozen(field_transformer=named)
class VideoPart:
    """Frames of a video, in order; each is what an `ImagePart` takes, and ``fps`` is their rate."""

    frames: tuple[Any, ...] = field(converter=anything, repr=lambda value: f"<{len(value)} frames>")
    fps: float | None = None


@frozen
class AudioPart:
    """Sound: a path, encoded bytes, or a float array of samples at ``sampling_rate`` Hz."""

    source: Any = field(repr=lambda value: f"<{type(value).__name__}>")
    sampling_rate: int | None = None


@frozen(field_transformer=named)
class ReasoningPart:
    """What the model thought before it spoke or called, in an assistant's message.

    It goes to chat templates that take it (``reasoning_content``), which decide how much of it they show.
    """

    text: str = field(converter=text)


@frozen(field_transformer=named)
class ToolCallPart:
    """A call that the model made: ``arguments`` is the decoded JSON object."""

    id: str = field(converter=text)
    name: str = field(converter=text)
    arguments: Mapping[str, Any] = field(converter=json_object)


def _pictures(_instance: object, _attribute: object, value: tuple[Any, ...]) -> None:
    for item in value:
        if not isinstance(item, ImagePart):
            raise InvalidParameterError(
                f"The images of a tool's result are ImageParts, found {type(item).__name__}.",
                hint="Write images=[ImagePart(…)].",
            )


@frozen(field_transformer=named)
class ToolResultPart:
    """What a tool answered to the call ``id``; ``error`` marks a failure that the model should see.

    ``images``: pictures that belong to it, for models that see.
    """

    id: str = field(converter=text)
    name: str = field(converter=text)
    content: str = field(converter=text)
    error: bool = field(default=False, validator=flag)
    images: tuple[ImagePart, ...] = field(default=(), converter=anything, validator=_pictures)


Part = TextPart | ImagePart | VideoPart | AudioPart | ReasoningPart | ToolCallPart | ToolResultPart


def _parts(content: str | Part | Iterable[str | Part]) -> tuple[Part, ...]:
    items: Iterable[Any] = (content,) if isinstance(content, str | Part) else content
    if not isinstance(items, Iterable):
        items = (content,)
    found = tuple(TextPart(item) if isinstance(item, str) else item for item in items)
    for item in found:
        if not isinstance(item, Part):
            raise InvalidParameterError(
                f"A message is made of texts and parts, found {type(item).__name__}.",
                hint=f"Use a str, {', '.join(kind.__name__ for kind in get_args(Part))}.",
            )
    return found


def _role(value: Any) -> Role:
    try:
        return Role(value)
    except ValueError as error:
        raise InvalidParameterError(
            f"{value!r} is not a role.", hint=f"The roles are {', '.join(Role)}."
        ) from error


@frozen
class Message:
    """One turn: a role and its parts. Use `system`, `user`, `assistant` and `tool` to build one."""

    role: Role = field(converter=_role)
    parts: tuple[Part, ...] = field(converter=_parts)

    @classmethod
    def system(cls, content: str | Iterable[str | Part]) -> Message:
        return cls(Role.SYSTEM, content)

    @classmethod
    def user(cls, content: str | Part | Iterable[str | Part]) -> Message:
        return cls(Role.USER, content)

    @classmethod
    def assistant(cls, content: str | Part | Iterable[str | Part]) -> Message:
        return cls(Role.ASSISTANT, content)

    @classmethod
    def tool(cls, result: ToolResultPart) -> Message:
        return cls(Role.TOOL, result)

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def reasoning(self) -> str:
        """The parts of reasoning, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, ReasoningPart))

    def with_text(self, text: str) -> Message:
        """The same message with its text parts replaced by one."""
        rest = tuple(part for part in self.parts if not isinstance(part, TextPart))
        return evolve(self, parts=(*rest, TextPart(text)))


def reply_message(text: str, calls: Iterable[ToolCall] = (), reasoning: str = "") -> Message:
    """What a model said, as a message; a call that could not be read stands there without arguments."""
    parts: list[Part] = [ReasoningPart(reasoning)] if reasoning else []
    made = [ToolCallPart(call.id, call.name, call.arguments or {}) for call in calls]
    if text or not made:
        parts.append(TextPart(text))
    return Message.assistant([*parts, *made])


def as_messages(prompt: str | Message | Iterable[Message]) -> tuple[Message, ...]:
    """A prompt as messages: a text becomes one user message.

    Raises:
        InvalidParameterError: it is neither a text nor messages.
    """
    if isinstance(prompt, str):
        return (Message.user(prompt),)
    if isinstance(prompt, Message):
        return (prompt,)
    found: tuple[Any, ...] = tuple(prompt) if isinstance(prompt, Iterable) else (prompt,)
    for item in found:
        if not isinstance(item, Message):
            raise InvalidParameterError(
                f"A prompt is a str or Messages, found {type(item).__name__}.",
                hint='Write Message.user("…") or pass a plain str.',
            )
    return found


__all__ = [
    "AudioPart",
    "ImagePart",
    "Message",
    "Part",
    "ReasoningPart",
    "Role",
    "TextPart",
    "ToolCallPart",
    "ToolResultPart",
    "VideoPart",
    "as_messages",
    "reply_message",
]
