"""mlx-vlm's language models, run on several rows at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from attrs import frozen
from mlxengine.toolkit.attention import QuickAttention
from mlxengine.toolkit.packing import Packing, packed

from ._prefill import embed, stacked
from .features import KV_BITS

NOTHING: Mapping[str, Any] = MappingProxyType({})


@frozen
class KV:
    """How the key-value caches of rows are packed: ``bits`` of each number, ``None`` for as they come, and
    how many numbers share a scale and a bias."""

    bits: int | None = None
    group: int = 64


class Language:
    """The language model of a network.

    Args:
        network: a model of mlx-vlm.
        kv: how its rows' caches are packed.
    """

    def __init__(self, network: Any, kv: KV = KV()) -> None:
        from mlx_vlm.models.base import scaled_dot_product_attention

        self._kv = kv
        self.module = getattr(network, "language_model", network)
        self._attention = QuickAttention(self.module, scaled_dot_product_attention)
        settings = getattr(self.module, "config", None)
        self.prefix_lm = getattr(settings, "use_bidirectional_attention", None) is True

    def caches(self) -> list[Any]:
        """The empty caches of a row."""
        from mlx_vlm.models.cache import make_prompt_cache

        plain: list[Any] = make_prompt_cache(self.module)
        return plain if self._kv.bits is None else packed(plain, self._kv.bits, self._kv.group, KV_BITS.name)

    def merge(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """The caches of single rows as a batch's."""
        return [_merged(parts) for parts in zip(*rows, strict=True)]

    def read(self, parts: Sequence[tuple[Any, dict[str, Any]]], length: int, layers: list[Any]) -> mx.array:
        """Logits of what `Prefill.take` gave, shape (rows, length, vocabulary), padded on the right."""
        ids, inputs = parts[0]
        if len(parts) > 1 or ids.shape[1] < length:
            ids, inputs = stacked(parts, length)
        with self._attention:
            return _logits(self.module(ids, cache=layers, **inputs))

    def follow(
        self, tokens: mx.array, layers: list[Any], deltas: Any, crossed: Mapping[str, Any] = NOTHING
    ) -> mx.array:
        """Logits of tokens of answers, shape (rows, n, vocabulary), behind what the caches hold.

        Args:
            tokens: shape (rows, n).
            deltas: how far positions run ahead of tokens, shape (rows, 1), or ``None`` (M-RoPE).
            crossed: as in `Prefill.crossed`, of a single row.
        """
        options = dict(crossed)
        if deltas is not None:
            options["rope_deltas"] = deltas
            if hasattr(self.module, "_rope_deltas"):  # without any, some count positions from zero again
                self.module._rope_deltas = deltas
        if self.prefix_lm:  # such a model masks nothing by itself, not even the padding of shorter rows
            options["mask"] = layers[0].make_mask(tokens.shape[1], return_array=True, window_size=None)
        with self._attention:
            return _logits(self.module(tokens, cache=layers, **options))


def packing(network: Any, kind: str, media_tokens: frozenset[int]) -> Packing:
    """Finds out with text whether a network, its weights loaded, can be served from packed caches.

    Args:
        network: a model of mlx-vlm.
        kind: its ``model_type``.
        media_tokens: the placeholders' token ids.
    """
    language = Language(network)

    def says(prompt: Sequence[int], layers: list[Any]) -> mx.array:
        plan = embed(network, kind, prompt[:-1], {}, media_tokens)
        language.read([plan.take(len(plan.ids))], len(plan.ids), layers)
        deltas = None if plan.rope_deltas is None else plan.rope_deltas.reshape(1, 1).astype(mx.int32)
        return language.follow(mx.array([prompt[-1:]]), layers, deltas, plan.crossed)[0, -1]

    return Packing(says, language.caches, KV_BITS.name, media_tokens)


def _merged(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if type(first).__name__ == "CacheList":
        return type(first)(*(_merged(children) for children in zip(*(p.caches for p in parts), strict=True)))
    if callable(getattr(first, "filter", None)) and callable(getattr(first, "extend", None)):
        for part in parts[1:]:
            first.extend(part)
        return first
    return type(first).merge(parts)


def _logits(output: Any) -> mx.array:
    found: mx.array = output.logits if hasattr(output, "logits") else output
    return found


__all__ = ["KV", "NOTHING", "Language", "packing"]
