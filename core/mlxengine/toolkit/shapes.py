"""Which sizes of input a device has met: some compile for each new one, and who comes first waits."""

from __future__ import annotations

from collections.abc import Hashable

COSTLY = 0.005  # seconds that a new size has to cost before sizes are made few

SMALL = 64
"""Tokens; fewer are padded to so many."""


class Shapes:
    """The sizes of the passes of one model.

    Args:
        cost: seconds that a pass of a new size takes longer, as `new_shape_seconds` measures it.
    """

    def __init__(self, cost: float = 0.0) -> None:
        self.costly = cost > COSTLY
        self._met: set[tuple[Hashable, ...]] = set()
        self._new = False

    def length(self, tokens: int) -> int:
        """So many tokens, or a few more where new sizes are dear: the next 64, or an eighth more."""
        if not self.costly:
            return tokens
        step = max(SMALL, 1 << max(tokens.bit_length() - 4, 0))
        return -(-tokens // step) * step

    def piece(self, start: int, left: int, most: int) -> int:
        """How many of a prompt's ``left`` tokens behind ``start`` others to read at once, at most so many.

        Where new sizes are dear a power of two that divides ``start``, or all that is left where that is no
        more: then pieces, and what they attend to, have few sizes, whatever lengths prompts have and however
        much of them a step may read.
        """
        if not self.costly or most < SMALL:
            return min(left, most)
        border = start & -start if start else left
        if start % SMALL:  # behind what a conversation left in the cache
            border = -start % (4 * SMALL)
        if left <= min(most, border):
            return left
        return min(1 << (most.bit_length() - 1), border)

    def rows(self, count: int) -> int:
        """So many rows, or fewer where new sizes are dear: a power of two."""
        return 1 << (count.bit_length() - 1) if self.costly and count else count

    def filled(self, count: int) -> int:
        """So many rows and blank ones behind them, where new sizes are dear: the next power of two."""
        return 1 << (count - 1).bit_length() if self.costly and count else count

    def note(self, *size: Hashable) -> None:
        """Tell of a pass; of prompts: rows, positions read, positions that the longest row holds then."""
        if self.costly and size not in self._met:
            self._met.add(size)
            self._new = True

    def took_new(self) -> bool:
        """Whether a pass since the last call was of a new size, where that counts."""
        found, self._new = self._new, False
        return found


__all__ = ["Shapes"]
