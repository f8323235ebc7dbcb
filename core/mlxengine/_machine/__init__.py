"""What this machine is, and the one door to mlx."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..contract.device import DeviceBackend


def mlx_backend() -> DeviceBackend:
    """mlx's back end with a stream of its own: one for each engine.

    Raises:
        BackendUnavailableError: mlx, or a back end of it, is not installed; the message names the extra.
    """
    from .backend import MLXBackend

    return MLXBackend()
