"""What the memory of a model that makes pictures depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from .._units import parse_bytes
from ..contract.hookspecs import Workload
from ..errors import InvalidParameterError

if TYPE_CHECKING:
    from ..contract.kinds import Option


@frozen(kw_only=True)
class PictureWorkload(Workload):
    """What requests for pictures take.

    Args:
        size: (width, height) in pixels (``None``: the model's own).
        n: pictures that are made at once.
        vae_tiling: whether the autoencoder works on tiles.
        low_memory: whether each part is freed after its stage, so that the largest counts, not all.
        beside: bytes of what requests bring along: ControlNets, IP-Adapters, a refiner, an upscaler.
    """

    size: tuple[int, int] | None = None
    n: int = 1
    vae_tiling: bool = False
    low_memory: bool = False
    beside: int = 0

    @classmethod
    def options(cls) -> Sequence[Option]:
        from ..contract.kinds import Option, pixels, positive

        return (
            *super().options(),
            Option(flag="--size", type=pixels, metavar="WxH", help="of a picture, in pixels"),
            Option(flag="--n", type=positive, default=1, metavar="N", help="pictures made at once"),
            Option(flag="--vae-tiling", type=_switch, default=False, metavar="on|off", help="decode tiles"),
            Option(
                flag="--low-memory", type=_switch, default=False, metavar="on|off", help="free parts by stage"
            ),
            Option(
                flag="--beside",
                type=_bytes,
                default=0,
                metavar="SIZE",
                help="of ControlNets and so on",
            ),
        )


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text) or 0
    except InvalidParameterError as error:
        raise ValueError(str(error)) from error


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"{text!r} is neither on nor off")
    return text == "on"


__all__ = ["PictureWorkload"]
