"""What the memory of a model that makes pictures depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from ..contract.hookspecs import Workload

if TYPE_CHECKING:
    from ..contract.kinds import Option


@frozen(kw_only=True)
class PictureWorkload(Workload):
    """What requests for pictures take.

    Args:
        size: (width, height) in pixels (``None``: the model's own).
    """

    size: tuple[int, int] | None = None

    @classmethod
    def options(cls) -> Sequence[Option]:
        from ..contract.kinds import Option, pixels

        return (
            *super().options(),
            Option(flag="--size", type=pixels, metavar="WxH", help="of a picture, in pixels"),
        )


__all__ = ["PictureWorkload"]
