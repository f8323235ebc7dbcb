"""Prompts with weights, in the syntax of AUTOMATIC1111's web UI. Pure.

``(words)`` weighs its words 1.1 times as much, ``(words:1.3)`` 1.3 times, ``[words]`` 1.1 times as little;
brackets multiply. A backslash takes a bracket's meaning away, and a bracket that nothing closes counts to the
end. ``BREAK`` begins the next chunk of the text encoder.
"""

from __future__ import annotations

import re

from attrs import frozen
from mlxengine.errors import InvalidParameterError

_STEP = 1.1
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_PIECE = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|[\\:])"
)
_ADAPTER = re.compile(r"<(lora|lyco|hypernet):([^<>:]+)(?::([\d.]+))?[^<>]*>", re.IGNORECASE)
_SCHEDULED = re.compile(r"(?<!\\)\[[^\[\]]*(?::[^\[\]]*:\s*[\d.]+\s*|\|[^\[\]]*)\]")
_EXPLICIT = re.compile(r"\([^()]*:\s*[+-]?[\d.]+\s*\)")
_HEAVIEST = 100.0


@frozen
class Piece:
    """Some words of a prompt, and how much they weigh."""

    text: str
    weight: float = 1.0


def check_prompt(name: str, text: str) -> None:
    """Refuse what other programs understand in a prompt, and a text encoder would read as letters.

    Raises:
        InvalidParameterError: the prompt names an adapter, or changes while the picture is made.
    """
    if found := _ADAPTER.search(text):
        raise InvalidParameterError(
            f"The {name} names an adapter, {found[0]}: a prompt is words alone here.",
            hint=f"Take it out, and give the adapter's file: lora=(({found[2]!r}, {found[3] or '1.0'}),), "
            f"or --lora {found[2]}={found[3] or '1.0'}.",
        )
    if found := _SCHEDULED.search(text):
        raise InvalidParameterError(
            f"The {name} changes from step to step, {found[0]}: that is not implemented.",
            hint="Write one of the words, or put a backslash before the brackets.",
        )


def has_weights(text: str) -> bool:
    """Whether a prompt gives words a weight in numbers, ``(words:1.3)``."""
    return _EXPLICIT.search(text) is not None


def parse(text: str) -> list[list[Piece]]:
    """The pieces of a prompt, in the parts that ``BREAK`` separates.

    Raises:
        InvalidParameterError: a weight is no number that makes sense.
    """
    return [_pieces(part) for part in _BREAK.split(text)]


def _pieces(text: str) -> list[Piece]:
    pieces: list[Piece] = []
    open_at: list[tuple[str, int]] = []

    def weigh(start: int, factor: float) -> None:
        if not abs(factor) <= _HEAVIEST:
            raise InvalidParameterError(f"A weight of {factor:g} in the prompt is more than {_HEAVIEST:g}.")
        pieces[start:] = [Piece(piece.text, piece.weight * factor) for piece in pieces[start:]]

    for match in _PIECE.finditer(text):
        if match["open"]:
            open_at.append((match["open"], len(pieces)))
        elif match["weight"] and open_at and open_at[-1][0] == "(":
            weigh(open_at.pop()[1], float(match["weight"]))
        elif match["close"] and open_at and open_at[-1][0] == {")": "(", "]": "["}[match["close"]]:
            bracket, start = open_at.pop()
            weigh(start, _STEP if bracket == "(" else 1 / _STEP)
        else:
            pieces.append(Piece(match["escaped"] or match[0]))
    for bracket, start in open_at:
        weigh(start, _STEP if bracket == "(" else 1 / _STEP)
    return _joined(pieces)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one weight as one piece, so that their words are told apart as in the whole text."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].weight == piece.weight:
            found[-1] = Piece(found[-1].text + piece.text, piece.weight)
        else:
            found.append(piece)
    return found


__all__ = ["Piece", "check_prompt", "has_weights", "parse"]
