"""The bytes that each token stands for, also where it is only a part of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _printable_bytes() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes (Radford et al. 2019, GPT-2's encoder).

    Printable Latin-1 characters stand for themselves, the rest for 256 and above in order.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in own]
    return {chr(value): value for value in own} | {chr(256 + at): value for at, value in enumerate(others)}


_PRINTABLE = _printable_bytes()


class TokenBytes:
    """Looks up tokens in the vocabulary of a fast tokenizer, and undoes what its decoder writes for bytes.

    The bytes of the tokens of a text joined are the text's UTF-8. Where a model's tokens make no valid UTF-8,
    the text has U+FFFD instead and the bytes say what stood there.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``, or ``None``.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._steps = _steps(tokenizer)

    def __call__(self, token: int, *, first: bool = False) -> bytes | None:
        """The token's bytes; ``None`` where the tokenizer does not tell.

        ``first``: it stands at the beginning, where some decoders leave out a blank.
        """
        if self._steps is None:
            return None
        text = self._tokenizer.id_to_token(token)
        if text is None:  # a row of the embedding that no token has
            return b""
        if first:
            shown = self._tokenizer.decode([token], skip_special_tokens=False)
            if "\N{REPLACEMENT CHARACTER}" not in shown:
                return bytes(shown.encode())
        for step in self._steps:
            text = step(text)
            if isinstance(text, bytes):
                return text
        return bytes(text.encode())


Step = Callable[[str], str | bytes]


def _steps(tokenizer: Any) -> list[Step] | None:
    """What the decoder does to a token wherever it stands; ``None`` if that depends on its neighbours."""
    if tokenizer is None or tokenizer.decoder is None:
        return None
    found: list[Step] = []
    settings = json.loads(tokenizer.decoder.__getstate__())
    for part in settings["decoders"] if settings["type"] == "Sequence" else [settings]:
        match part:
            case {"type": "ByteLevel"}:
                found.append(_of_byte_level)
            case {"type": "ByteFallback"}:
                found.append(_of_byte_fallback)
            case {"type": "Metaspace", "replacement": old}:
                found.append(_replace(old, " "))
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                found.append(_replace(old, new))
            case {"type": "Fuse"} | {"type": "Strip", "stop": 0}:
                pass  # what it does, it does to the beginning of the text
            case _:
                return None
    return found


def _of_byte_level(text: str) -> bytes:
    values = [_PRINTABLE.get(character) for character in text]
    return text.encode() if None in values else bytes(value for value in values if value is not None)


def _of_byte_fallback(text: str) -> str | bytes:
    found = _BYTE.fullmatch(text)
    return text if found is None else bytes([int(found[1], 16)])


def _replace(old: str, new: str) -> Step:
    return lambda text: text.replace(old, new)


__all__ = ["TokenBytes"]
