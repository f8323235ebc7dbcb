"""Which sizes of passes a device has met; some compile for each new one."""

from __future__ import annotations

COSTLY = 0.005  # seconds that a new size has to cost before sizes are made few


class Shapes:
    """The sizes of the passes of one model.

    Args:
        cost: seconds that a pass of a new size takes longer, as `new_shape_seconds` measures it.
    """

    def __init__(self, cost: float = 0.0) -> None:
        self._costly = cost > COSTLY
        self._met: set[tuple[int, int, int]] = set()
        self._new = False

    @property
    def costly(self) -> bool:
        """Whether new sizes are dear."""
        return self._costly

    def length(self, tokens: int) -> int:
        """So many tokens, or a few more where new sizes are dear: the next 64, or an eighth more."""
        if not self._costly:
            return tokens
        step = max(64, 1 << max(tokens.bit_length() - 4, 0))
        return -(-tokens // step) * step

    def note(self, rows: int, length: int, end: int) -> None:
        """Tell of a pass: rows, positions that it reads, positions that the longest row holds then."""
        if self._costly and (rows, length, end) not in self._met:
            self._met.add((rows, length, end))
            self._new = True

    def took_new(self) -> bool:
        """Whether a pass since the last call was of a new size, where that counts."""
        found, self._new = self._new, False
        return found


__all__ = ["Shapes"]
