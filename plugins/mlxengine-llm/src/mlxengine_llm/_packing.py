"""Whether a network can be served from packed key-value caches, tried before it is offered.

Nothing about a network tells: some compute with the numbers of their caches themselves, some have heads that
no group of numbers divides, and of some a packed cache would change what they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlxengine.errors import FeatureUnavailableError, out_of_memory

from ._caches import Serving, caches_for

_GROUPS = (64, 32)
_HINT = "Load it without llm.kv_bits."
_PROMPT = [3 + (7 * at * at + at) % 50 for at in range(24)]  # ids that every vocabulary has

_WORST = 1.0
"""Largest difference of logits, as a share of their own spread (root mean squares).

In tiny models of random weights it is 0.3 at most with 8 bits, where a token is on the border between two
experts, and 0.5 with 4; logits that have nothing to do with each other differ by 1.4."""


def group_size(network: Any, bits: int) -> int:
    """How many numbers a packed cache of this network packs together; by passes that nobody evaluates.

    Raises:
        FeatureUnavailableError: the network cannot read packed caches.
    """
    with _reading():
        found = _group(network)
        _logits(network, caches_for(network, Serving(kv_bits=bits, kv_group=found)))
    return found


def check(network: Any, serving: Serving) -> Iterator[None]:
    """Compare what the network says from packed caches with what it says from plain ones.

    Raises:
        FeatureUnavailableError: it says something else, or nothing.
    """
    yield
    with _reading():
        packed, plain = (
            _logits(network, caches).astype(mx.float32)
            for caches in (caches_for(network, serving), make_prompt_cache(network))
        )
        finite = mx.isfinite(plain)  # some networks rule tokens out by themselves
        packed, plain = (mx.where(finite, part, 0.0) for part in (packed, plain))
        spread = mx.maximum(mx.std(plain), 1e-12)
        found: Any = (mx.sqrt(mx.mean(mx.square(packed - plain))) / spread).item()
    if not found <= _WORST:
        raise FeatureUnavailableError(
            f"A key-value cache of {serving.kv_bits} bits changes what this model says: its logits by "
            f"{found:.2g} of their spread.",
            hint="Load it with more llm.kv_bits, or without.",
        )


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except FeatureUnavailableError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise FeatureUnavailableError(
            f"This model's attention cannot read packed caches ({type(error).__name__}).", hint=_HINT
        ) from error


def _logits(network: Any, caches: list[Any]) -> mx.array:
    """Those behind the last token of a prompt, shape (vocabulary,)."""
    network(mx.array([_PROMPT[:-1]]), cache=caches)
    found: mx.array = network(mx.array([_PROMPT[-1:]]), cache=caches)[0, -1]
    return found


def _group(network: Any) -> int:
    """The largest group that divides the heads of all keys and values.

    Raises:
        FeatureUnavailableError: there is none, or the model makes caches of its own.
    """
    caches: list[Any] = caches_for(network, Serving())
    if any(type(layer) is not KVCache for layer in caches):
        return _GROUPS[0]
    network(mx.array([_PROMPT]), cache=caches)
    sizes = {part.shape[-1] for layer in caches if not layer.empty() for part in (layer.keys, layer.values)}
    for group in _GROUPS:
        if all(size % group == 0 for size in sizes):
            return group
    heads = ", ".join(map(str, sorted(sizes)))
    raise FeatureUnavailableError(
        f"Heads of {heads} numbers cannot be packed: mlx packs groups of 32 or 64.",
        hint=_HINT,
    )


__all__ = ["check", "group_size"]
