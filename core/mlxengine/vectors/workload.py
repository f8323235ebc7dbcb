"""What the memory of a model that makes vectors depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from ..contract.hookspecs import Workload

if TYPE_CHECKING:
    from ..contract.kinds import Option


@frozen(kw_only=True)
class VectorWorkload(Workload):
    """What requests for vectors take; ``batch`` counts texts.

    Args:
        context_length: tokens of the longest text (``None``: the plugin's usual).
    """

    context_length: int | None = None

    @classmethod
    def options(cls) -> Sequence[Option]:
        from ..contract.kinds import Option, positive

        return (
            *super().options(),
            Option(
                flag="--context",
                name="context_length",
                type=positive,
                metavar="TOKENS",
                help="of the longest text",
            ),
        )


__all__ = ["VectorWorkload"]
