"""What the memory of a model that answers in text depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from ..contract.hookspecs import Workload

if TYPE_CHECKING:
    from ..contract.kinds import Option

USUAL_CONTEXT = 4096
"""Tokens of context that an estimate assumes where nobody says how long it may become."""


@frozen(kw_only=True)
class TextWorkload(Workload):
    """What requests for text take.

    Args:
        context_length: tokens of prompt and answer together (``None``: the plugin's usual).
        kv_bits: bits of the key-value cache, ``None`` for full precision.
        size: (width, height) in pixels of a picture in the question.
    """

    context_length: int | None = None
    kv_bits: int | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def options(cls) -> Sequence[Option]:
        from ..contract.kinds import Option, pixels, positive

        return (
            *super().options(),
            Option(
                flag="--context",
                name="context_length",
                type=positive,
                metavar="TOKENS",
                help="prompt and answer together",
            ),
            Option(flag="--kv-bits", type=positive, metavar="BITS", help="bits of the key-value cache"),
            Option(flag="--size", type=pixels, metavar="WxH", help="of a picture, in pixels"),
        )


__all__ = ["USUAL_CONTEXT", "TextWorkload"]
