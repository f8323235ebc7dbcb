"""Which key-value caches a model's rows have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen
from mlxengine.errors import FeatureUnavailableError

_KEPT = 4  # first tokens that a bounded cache keeps


@frozen(kw_only=True)
class Serving:
    """What is chosen when a model is loaded and holds for all its requests; the defaults ask for nothing.

    Args:
        kv_bits: bits of the key-value cache.
        kv_group: numbers that are packed together, as `mlxengine_llm._packing` finds out.
        kv_tokens: most tokens in the cache; older ones but the first four are forgotten.
        speculation: guess tokens from the text so far.
        draft_model: guess tokens with this smaller model.
        tokenizer: use this folder's or repository's instead of the model's own.
    """

    kv_bits: int | None = None
    kv_group: int = 64
    kv_tokens: int | None = None
    speculation: bool = False
    draft_model: str | None = None
    tokenizer: str | None = None

    @property
    def serial(self) -> bool:
        """Rows that guess are served one at a time."""
        return self.speculation or self.draft_model is not None


def caches_for(network: Any, serving: Serving) -> list[Any]:
    """Empty caches of the wanted kind.

    Raises:
        FeatureUnavailableError: the model makes caches of its own, which the library would keep as they are.
    """
    from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

    plain = make_prompt_cache(network)
    changed = serving.kv_bits is not None or serving.kv_tokens is not None
    if changed and any(type(layer) is not KVCache for layer in plain):
        raise FeatureUnavailableError(
            "This model makes its own key-value caches, which cannot be packed or bounded.",
            hint="Load it without llm.kv_bits and llm.kv_tokens.",
        )
    if serving.kv_bits is not None and serving.kv_tokens is not None:
        raise FeatureUnavailableError("llm.kv_bits and llm.kv_tokens cannot be used together.")
    if serving.kv_tokens is not None:
        from ._bounded import BoundedKVCache

        return [BoundedKVCache(max_size=serving.kv_tokens, keep=_KEPT) for _ in plain]
    if serving.kv_bits is not None:
        return [QuantizedKVCache(group_size=serving.kv_group, bits=serving.kv_bits) for _ in plain]
    return list(plain)


def own(layer: Any) -> Any:
    """A cache as our batches take it in, over the same arrays; mlx-lm has none of packed and bounded ones."""
    from mlx_lm.models.cache import QuantizedKVCache, RotatingKVCache

    if isinstance(layer, QuantizedKVCache):
        from ._packed import PackedKVCache

        return PackedKVCache.of(layer)
    if type(layer) is RotatingKVCache and layer.keep:  # a model's own sliding windows keep nothing
        from ._bounded import BoundedKVCache

        return BoundedKVCache.of(layer)
    return layer


def joined(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """The caches of single rows as a batch's."""
    from mlxengine.toolkit.joining import merged

    return merged([[own(layer) for layer in row] for row in rows])


def plain(layer: Any) -> Any:
    """mlx-lm's cache over the same arrays, which it can write to disk."""
    return layer.plain() if hasattr(layer, "plain") else layer


__all__ = ["Serving", "caches_for", "joined", "own", "plain"]
