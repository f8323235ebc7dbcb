"""What mlx-lm's networks keep of each token, as far as their modules' texts tell it before they are loaded.

What they do not tell is measured when a model is loaded.
"""

from __future__ import annotations

import functools
import re

from mlxengine.toolkit.kv import Keeps

from .library import source

_MORE = re.compile(r"\b(ArraysCache|CacheList|ChunkedKVCache|LayerCache)\b")
_COUNTED = ("num_kv_reuse_layers", "block_configs", "layer_types")  # whose layers `Keeps` can count


@functools.cache
def keeps(module: str | None) -> Keeps:
    """What mlx-lm's module of a name keeps; of a model without one nothing is known.

    A module that says nothing of caches has mlx-lm's plain one in each layer. Latent attention that keeps its
    vectors compressed applies the matrices of its heads, a ``MultiLinear``, to what it finds there.
    """
    if module is None:
        return Keeps(alone=False)
    text = _with_parts(module)
    own = "def make_cache" in text
    windows = own and "RotatingKVCache" in text
    return Keeps(
        windows=windows,
        latent="MultiLinear" in text,
        alone=not _MORE.search(text) and (not own or windows or any(word in text for word in _COUNTED)),
    )


def _with_parts(module: str) -> str:
    """The module's text, and those of the architectures that it is made of."""
    text = source(module)
    for name in set(re.findall(r"^from \.(?: import )?(\w+)", text, re.MULTILINE)) - {"base", module}:
        if "class ModelArgs" in source(name):
            text += source(name)
    return text


__all__ = ["keeps"]
