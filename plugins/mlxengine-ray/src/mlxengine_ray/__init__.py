"""Batch jobs over files for MLXEngine, in one process or over replicas with Ray.

``mlxengine batch`` runs a job. `BatchModel` is a model for rows, for frameworks that have some;
`Embed`, `Generate`, `Rerank` and `Draw` are what it can be asked.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import BatchModel as BatchModel
    from .tasks import Draw as Draw
    from .tasks import Embed as Embed
    from .tasks import Generate as Generate
    from .tasks import Rerank as Rerank
    from .tasks import Task as Task

_HOMES = {
    "BatchModel": "model",
    "Draw": "tasks",
    "Embed": "tasks",
    "Generate": "tasks",
    "Rerank": "tasks",
    "Task": "tasks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Looking for plugins imports this package: what does the work waits until there is some.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
