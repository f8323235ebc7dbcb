"""Amounts of memory: for people to read, and as people write them."""

from __future__ import annotations

from .errors import InvalidParameterError

GIB = 2**30
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def human(count: float) -> str:
    """Bytes for people, in binary units: ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def parse_bytes(value: int | str | None) -> int | None:
    """A number of bytes, or a text such as ``"8GB"`` or ``"512MiB"``; ``None`` stays ``None``.

    Raises:
        InvalidParameterError: it is not a positive amount of memory.
    """
    if value is None:
        return None
    found: float | None = None
    if isinstance(value, str):
        text = value.strip().upper().replace(" ", "")
        unit = next((name for name in sorted(_UNITS, key=len, reverse=True) if text.endswith(name)), "")
        try:
            found = float(text.removesuffix(unit)) * _UNITS.get(unit, 1)
        except ValueError:
            found = None
    elif isinstance(value, int) and not isinstance(value, bool):
        found = value
    if found is None or not 1 <= found < 2**63:
        raise InvalidParameterError(
            f"{value!r} is not an amount of memory.", hint='Write bytes as a number, or "8GB", "512MiB".'
        )
    return int(found)
