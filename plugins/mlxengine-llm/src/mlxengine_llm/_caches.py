"""Which key-value caches a model's rows have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen
from mlxengine.errors import FeatureUnavailableError

from .features import KV_BITS

if TYPE_CHECKING:
    from mlxengine.toolkit.packing import Packing

_KEPT = 4  # first tokens that a bounded cache keeps


@frozen(kw_only=True)
class Serving:
    """What is chosen when a model is loaded and holds for all its requests; the defaults ask for nothing.

    Args:
        kv_bits: bits of the key-value cache.
        kv_group: numbers that are packed together, as `mlxengine.toolkit.packing` finds out.
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
    from mlx_lm.models.cache import KVCache, make_prompt_cache
    from mlxengine.toolkit.packing import packed

    plain: list[Any] = make_prompt_cache(network)
    if serving.kv_bits is not None and serving.kv_tokens is not None:
        raise FeatureUnavailableError("llm.kv_bits and llm.kv_tokens cannot be used together.")
    if serving.kv_tokens is not None:
        from ._bounded import BoundedKVCache

        if any(type(layer) is not KVCache for layer in plain):
            raise FeatureUnavailableError(
                "This model makes its own key-value caches, which cannot be bounded.",
                hint="Load it without llm.kv_tokens.",
            )
        return [BoundedKVCache(max_size=serving.kv_tokens, keep=_KEPT) for _ in plain]
    if serving.kv_bits is not None:
        return packed(plain, serving.kv_bits, serving.kv_group, KV_BITS.name)
    return plain


def packing(network: Any) -> Packing:
    """Finds out whether a network, its weights loaded, can be served from packed caches."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlxengine.toolkit.packing import Packing

    def says(prompt: Sequence[int], layers: list[Any]) -> mx.array:
        network(mx.array([prompt[:-1]]), cache=layers)
        found: mx.array = network(mx.array([prompt[-1:]]), cache=layers)[0, -1]
        return found

    return Packing(says, lambda: list(make_prompt_cache(network)), KV_BITS.name)


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


__all__ = ["Serving", "caches_for", "packing", "widen"]
