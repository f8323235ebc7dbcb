"""How models are found and fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import field, frozen


@frozen(kw_only=True)
class HubOptions:
    """How models are found and fetched: what ``InferenceEngine`` was given.

    ``mock`` finds and fetches nothing: the mock plugin serves whatever is named.
    """

    endpoint: str | None = field(default=None, repr=False)
    cache_dir: Path | None = None
    token: str | None = field(default=None, repr=False)
    offline: bool = False
    mock: bool = False

    def arguments(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "cache_dir": self.cache_dir,
            "token": self.token,
            "offline": self.offline,
        }
