"""The text of calls as it comes, and the small steps in which a reader reads it.

Readers are generators: they yield what they found, or `MORE` where they need more text than there is. So a
format is written as one would read it, and works for text that is cut anywhere.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

from attrs import frozen

MORE: Final = None
"""What a reader yields where it waits for text."""


@frozen
class Named:
    """A call has begun, and this is its tool."""

    name: str


class Whole:
    """The call that has begun is whole."""


class BrokenOffError(ValueError):
    """The answer ended within a call."""


Item = Named | Whole | str | None
"""What a reader yields; texts are pieces of the arguments' JSON."""

Reading = Generator[Item, None, None]


class Source:
    """The text that a reader reads. Its methods are generators that return what they read."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0  # where the reader is
        self.ended = False  # whether no more text will come

    def wait(self) -> Generator[Item, None, None]:
        """Wait for text.

        Raises:
            BrokenOffError: none will come.
        """
        if self.ended:
            raise BrokenOffError("the answer ended within the call")
        yield MORE

    def some(self, *marks: str) -> Generator[Item, None, tuple[str, str]]:
        """The next text that belongs to no mark, and the mark that ends it, or nothing as yet."""
        while True:
            at, mark = first(self.text, marks, self.at)
            if mark:
                found, self.at = self.text[self.at : at], at + len(mark)
                return found, mark
            sure = len(self.text) - beginning(self.text, marks, self.at)
            if sure > self.at:
                found, self.at = self.text[self.at : sure], sure
                return found, ""
            yield from self.wait()

    def until(self, *marks: str) -> Generator[Item, None, tuple[str, str]]:
        """All text before the first of the marks, and that mark."""
        found = ""
        while True:
            piece, mark = yield from self.some(*marks)
            found += piece
            if mark:
                return found, mark

    def next(self, *marks: str) -> Generator[Item, None, str]:
        """The one of the marks that comes now, the longest if several do, or nothing."""
        wanted = sorted(filter(None, marks), key=len, reverse=True)
        while True:
            short = False
            for mark in wanted:
                if self.text.startswith(mark, self.at):
                    if short and not self.ended:
                        break
                    self.at += len(mark)
                    return mark
                short = short or mark.startswith(self.text[self.at : self.at + len(mark)])
            if not short:
                return ""
            yield from self.wait()

    def expect(self, mark: str) -> Generator[Item, None, None]:
        """Read a mark.

        Raises:
            ValueError: something else comes.
        """
        found = yield from self.next(mark)
        if not found:
            raise ValueError(f"{mark!r} should follow, found {self.text[self.at : self.at + 20]!r}")

    def space(self) -> Generator[Item, None, None]:
        """Pass over blank space, and wait for what follows."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text):
                return
            yield from self.wait()

    def letters(self, count: int) -> Generator[Item, None, str]:
        """So many letters."""
        while len(self.text) < self.at + count:
            yield from self.wait()
        self.at += count
        return self.text[self.at - count : self.at]


def first(text: str, marks: Sequence[str], start: int = 0) -> tuple[int, str]:
    """Where the first of the marks stands, and which it is (of those at one place the longest)."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark, start)) >= 0]
    if not found:
        return len(text), ""
    at, _, mark = min(found)
    return at, mark


def beginning(text: str, marks: Sequence[str], start: int = 0) -> int:
    """How many of the last letters may be the beginning of a mark."""
    longest = max(map(len, marks), default=1) - 1
    for size in range(min(longest, len(text) - start), 0, -1):
        tail = text[-size:]
        if any(mark.startswith(tail) for mark in marks):
            return size
    return 0


__all__ = ["MORE", "BrokenOffError", "Item", "Named", "Reading", "Source", "Whole", "beginning", "first"]
