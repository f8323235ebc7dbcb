"""Which key-value caches a model's rows have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def widen(network: Any) -> None:
    """Let sliding windows be as long as the masks that the network asks for.

    A cache that is shorter than that loses what a token would still see if it were read in one pass with
    those before it: answers would depend on the size of the pieces (PLaMo 3's windows lack one token).
    """
    import mlx.core as mx
    from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

    layers: list[Any] = make_prompt_cache(network)
    windows = [layer for layer in layers if type(layer) is RotatingKVCache]
    asked: dict[int, int] = {}
    for layer in windows:
        layer.make_mask = _noted(layer.max_size, layer.make_mask, asked)
    if windows:
        network(mx.zeros((1, 2), mx.int32), cache=layers)  # nobody evaluates it
    if asked:
        plain = network.make_cache

        def make_cache() -> list[Any]:
            found: list[Any] = plain()
            for layer in found:
                if type(layer) is RotatingKVCache:
                    layer.max_size = asked.get(layer.max_size, layer.max_size)
            return found

        network.make_cache = make_cache


def _noted(held: int, make_mask: Callable[..., Any], asked: dict[int, int]) -> Callable[..., Any]:
    """The same, noting where a wider window is asked for than is held."""

    def make(length: int, window_size: int | None = None, return_array: bool = False) -> Any:
        if window_size is not None and window_size > held:
            asked[held] = window_size
        return make_mask(length, window_size=window_size, return_array=return_array)

    return make


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


__all__ = ["Serving", "caches_for", "joined", "own", "plain", "widen"]
