"""What ``self_test`` is given, and what it and ``doctor`` report."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from .device import Device


class CheckStatus(enum.StrEnum):
    """Outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@frozen(kw_only=True)
class Check:
    """One line of ``doctor``: what was checked, how it went, and the remedy if it did not."""

    name: str
    status: CheckStatus = field(default=CheckStatus.OK, converter=CheckStatus)
    detail: str = ""
    remedy: str = ""


@frozen(kw_only=True)
class SelfTestContext:
    """What ``self_test`` may use: an empty folder that is removed afterwards, and the device."""

    folder: Path
    device: Device


__all__ = ["Check", "CheckStatus", "SelfTestContext"]
