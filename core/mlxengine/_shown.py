"""Text of strangers as it may be shown: nothing moves the terminal, nothing lies about what it is.

A file's name, a hub's answer or a model's output can hold characters that a terminal obeys (ESC, C1), that
turn the order of what follows around (bidirectional controls), or that cannot be seen at all. This is the one
place that says which, and how they are written instead.
"""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Letters and marks without a picture of their own: fillers of Hangul and Khmer, the empty Braille cell."""

_SELECTORS = "\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""Variation selectors: they cannot be seen either, but stand in many emoji."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HIDDEN = re.compile(f"[{_UNSEEN}{_SELECTORS}]")


def shown(text: str) -> str:
    """Names and messages: what cannot be printed, or would not be seen, as its escape; lines stay lines."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c == "\n" or (c.isprintable() and not _HIDDEN.match(c)) else _escape(c) for c in text)


def spoken(text: str) -> str:
    """Running text, as a model writes it: control characters as their escapes, everything else as it is."""
    return _CONTROL.sub(lambda match: _escape(match[0]), text)


def unshowable(text: str) -> bool:
    """Whether a name has a character that nobody can see, or that a terminal obeys."""
    return any(
        character in _UNSEEN or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        for character in ("" if text.isascii() and text.isprintable() else text)
    )


def in_json(text: str) -> str:
    """A JSON document with the same content, in which nothing is left that `shown` would escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() and not _HIDDEN.match(c) else _units(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    width, letter = (2, "x") if code < 0x100 else (4, "u") if code < 0x10000 else (8, "U")
    return f"\\{letter}{code:0{width}x}"


def _units(character: str) -> str:
    data = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[at]:02x}{data[at + 1]:02x}" for at in range(0, len(data), 2))


__all__ = ["in_json", "shown", "spoken", "unshowable"]
