"""Whether rows may share passes of a language model, with none of its adapters in use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mlxengine.toolkit import trial
from mlxengine.toolkit.adapters import Adapters
from mlxengine.toolkit.joining import Company

_log = logging.getLogger("mlxengine.llm.batch")


class Trial(trial.Trial):
    """What was found out about a network.

    Args:
        network: mlx-lm's module, its weights evaluated.
        adapters: of the network; none is in use while it is tried.
        caches: makes the empty caches of a row.
        told: as in `mlxengine.toolkit.trial.Trial`.
    """

    def __init__(
        self,
        network: Any,
        adapters: Adapters,
        caches: Callable[[], list[Any]],
        told: Callable[[str], None] = lambda _why: None,
    ) -> None:
        super().__init__(
            network,
            caches,
            Company.of(caches()),
            log=_log,
            told=told,
            plain=lambda: adapters.use(None),
        )


__all__ = ["Trial"]
