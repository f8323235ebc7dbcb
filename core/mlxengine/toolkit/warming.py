"""Running the sizes that serving will meet before anybody waits for them.

Some devices compile for each new size of a pass, for tenths of a second to seconds: whoever meets it first
pays. Throw-away rows on a decoder of their own meet the sizes instead, through the code that serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from ..errors import out_of_memory
from . import attention
from .pace import Pace
from .row import Decoder, Plan, Row
from .shapes import Shapes

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Tokens of the prompts."""

LONG = 512
"""Tokens of a piece of a prompt; such are met behind any number of others."""

_log = logging.getLogger("mlxengine.toolkit.warming")


def sizes(shapes: Shapes, max_rows: int, context: int | None) -> list[tuple[int, int]]:
    """Rows that come at once, and the tokens that each reads before its last one.

    One size where new ones are cheap; else rows by powers of two, as many as one pass reads, and batches of
    short prompts up to ``max_rows``.
    """
    lengths = _lengths(context)
    if not lengths or not shapes.costly:
        return [(1, 8)]
    counts = [1 << power for power in range(max_rows.bit_length())]
    together = [(count, length) for length in lengths for count in counts if count * length <= Pace.LARGEST]
    return together + [
        (count, lengths[0]) for count in (*counts, max_rows) if (count, lengths[0]) not in together
    ]


def pieces(shapes: Shapes, context: int | None) -> list[tuple[int, int]]:
    """Prompts that are read alone in pieces: their tokens before the last one, and those of a piece.

    Beside running answers pieces grow from few tokens at the beginning of a prompt; long ones come anywhere.
    """
    lengths = _lengths(context) if shapes.costly else []
    return [(2 * piece if piece < LONG else lengths[-1], piece) for piece in lengths[:-1]]


def _lengths(context: int | None) -> list[int]:
    return [length for length in LENGTHS if context is None or length + 2 <= context]


def warm_up(
    open_decoder: Callable[[], Decoder],
    make_row: Callable[[int], Row],
    shapes: Shapes,
    *,
    max_rows: int,
    context: int | None = None,
    affords: Callable[[int, int], bool] = lambda _rows, _tokens: True,
) -> Iterator[None]:
    """Read prompts of a few sizes and decode two tokens of each, a step of the decoder at a time.

    Args:
        open_decoder: makes a decoder that shares nothing but the weights and ``shapes`` with the one that
            serves.
        make_row: a row with a prompt of so many tokens, of which nothing is kept.
        shapes: which sizes the device has met.
        max_rows: most rows that decode together.
        context: most positions that the model knows, or ``None``.
        affords: whether there is memory for so many rows of so many tokens; sizes without it are left out.
    """
    decoder = open_decoder()
    whole = [(*size, Pace.LARGEST) for size in sizes(shapes, max_rows, context)]
    parts = [(1, *size) for size in pieces(shapes, context)]
    try:
        for count, length, tokens in whole + parts:
            if not affords(count, length + 2):
                continue
            rows = [make_row(length + 1) for _ in range(count)]
            for row in rows:
                decoder.insert(row)
            while any(not row.tokens and row.failure is None for row in rows):
                with attention.planning():
                    drawn = decoder.step(Plan(tokens=tokens)).drawn
                for item in drawn:
                    item.row.tokens.append(item.token)
                yield
            decoder.remove(rows)
    except Exception as error:
        if not out_of_memory(error):
            raise
        _log.warning("Memory ran out while a model was warmed up; the rest is left: %s", error)
    finally:
        decoder.close()
        shapes.took_new()


__all__ = ["LENGTHS", "LONG", "pieces", "sizes", "warm_up"]
