"""Detection of the machine, behind `Device.detect`."""

from __future__ import annotations

from .device import Device


def detect() -> Device:
    """What can be told without importing anything: refined by the toolkit where mlx is installed."""
    import os
    import platform

    return Device(backend="cpu", name=platform.machine(), cores=len(os.sched_getaffinity(0)))
