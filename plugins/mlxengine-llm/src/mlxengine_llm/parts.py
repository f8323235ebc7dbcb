"""What a plugin needs that serves mlx-lm's networks in another way (`mlxengine-shard`); imports them.

The hooks of `mlxengine_llm.plugin` are for such a plugin too: a `LanguageModel` of ``load_model`` whose
``opens`` is set decodes its rows there.
"""

from __future__ import annotations

from ._caches import Serving, caches_for, widen
from ._decoder import BatchDecoder
from ._experts import EXPERTS
from ._model import LanguageModel
from ._trial import Trial
from .convert import load_network

__all__ = [
    "EXPERTS",
    "BatchDecoder",
    "LanguageModel",
    "Serving",
    "Trial",
    "caches_for",
    "load_network",
    "widen",
]
