"""What plugins on mlx share, third parties' too: nothing that was solved once has to be written again.

Its modules need the mlx that such plugins bring, but for those that say that they do not.

``backend`` (importing it loads a fast BLAS, then mlx) and ``blas`` are fetched from core when they are
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._machine import backend as backend
    from .._machine import blas as blas


def __getattr__(name: str) -> Any:
    if name in ("backend", "blas"):
        return importlib.import_module(f"mlxengine._machine.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
