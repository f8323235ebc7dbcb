"""The value of a JSON answer while it is still being written."""

from __future__ import annotations

import json
from typing import Any

from ..contract.events import Event, Finished, FinishReason
from ..errors import InvalidParameterError
from .outputs import TextDelta

_CLOSES = {"{": "}", "[": "]"}
_LITERALS = ("true", "false", "null")


class PartialJSON:
    """Reads a JSON text piece by piece and knows the value that is certain so far.

    Objects and lists that are open hold what has come; a string grows; a number appears when something
    follows it, because its next digit would change it; a key appears with its value.

    Args:
        index: which of several answers (``GenerateParams(n=…)``) to follow.

    Example::

        partial = PartialJSON()
        for event in model.stream(prompt, GenerateParams(grammar=Grammar.json(schema))):
            show(partial.feed(event))
    """

    def __init__(self, index: int = 0) -> None:
        self._index = index
        self._text = ""
        self._open: list[str] = []  # what closes the containers that are open
        self._cut = 0  # up to here, and with these ends, the text is JSON
        self._ends = ""
        self._key = False  # the next string is a key
        self._string = False
        self._escape: str | None = None
        self._high = False  # the first half of a character in two escapes was read
        self._scalar: int | None = None  # where a number or a literal began
        self._value: Any = None
        self._valued = (0, "")

    def feed(self, event: Event | str) -> Any:
        """Take the next event (or piece of text) and return the value so far, ``None`` before there is one.

        Events that carry no text of this answer change nothing.

        Raises:
            InvalidParameterError: the text is not JSON.
        """
        if isinstance(event, str):
            self._read(event)
        elif isinstance(event, TextDelta) and event.index == self._index:
            self._read(event.text)
        elif isinstance(event, Finished) and event.reason is FinishReason.STOP and self._scalar is not None:
            self._end_scalar(len(self._text))
        return self.value

    @property
    def value(self) -> Any:
        """The value so far. It is made anew whenever it has grown, so it may be kept."""
        if (self._cut, self._ends) != self._valued:
            try:
                self._value = json.loads(self._text[: self._cut] + self._ends)
            except ValueError as error:
                raise InvalidParameterError(
                    f"The text is not JSON: {error}.",
                    hint="Ask for the answer with GenerateParams(grammar=Grammar.json(schema)).",
                ) from error
            self._valued = (self._cut, self._ends)
        return self._value

    @property
    def complete(self) -> bool:
        """Whether the whole value was read."""
        return self._cut > 0 and not self._ends

    def _read(self, text: str) -> None:
        at = len(self._text)
        self._text += text
        for char in text:
            if self._string:
                self._inside(char, at + 1)
            else:
                self._between(char, at)
            at += 1

    def _inside(self, char: str, end: int) -> None:
        if self._escape is not None:
            self._escape += char
            if self._escape[0] == "u" and len(self._escape) < 5:
                return
            self._high = not self._high and self._escape[:2].lower() == "ud" and self._escape[2] in "89abAB"
            self._escape = None
        elif char == "\\":
            self._escape = ""
            return
        elif char == '"':
            self._string = self._high = False
            if not self._key:
                self._certain(end)
            return
        else:
            self._high = False
        if not self._key and not self._high:
            self._certain(end, '"')

    def _between(self, char: str, at: int) -> None:
        if self._scalar is not None and char in ",]} \t\r\n":
            self._end_scalar(at)
        if char == '"':
            self._string = True
            if not self._key:
                self._certain(at + 1, '"')
        elif char in _CLOSES:
            self._open.append(_CLOSES[char])
            self._key = char == "{"
            self._certain(at + 1)
        elif char in "]}":
            if not self._open or self._open.pop() != char:
                raise InvalidParameterError(f"The text is not JSON: {char!r} closes nothing.")
            self._key = False
            self._certain(at + 1)
        elif char in ",:":
            self._key = char == "," and self._open[-1:] == ["}"]
        elif char not in " \t\r\n":
            self._scalar = at if self._scalar is None else self._scalar
            if self._text[self._scalar : at + 1] in _LITERALS:
                self._end_scalar(at + 1)

    def _end_scalar(self, end: int) -> None:
        self._scalar = None
        self._certain(end)

    def _certain(self, end: int, closing: str = "") -> None:
        self._cut = end
        self._ends = closing + "".join(reversed(self._open))


__all__ = ["PartialJSON"]
