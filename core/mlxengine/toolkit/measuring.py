"""How much memory the caches of a model take, read from their shapes.

No configuration says it for every architecture: states are of fixed size, latent attention keeps what each
network likes, layers share caches. But mlx is lazy: a pass over some tokens that nobody evaluates gives every
cache the shape and the type that it would have, in a few milliseconds and no memory.

mlx-lm and mlx-vlm have caches of the same names and making; they are told apart by these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import frozen

_SHORT, _LONG = 256, 512  # caches grow by 256 tokens


@frozen
class CacheSize:
    """Bytes of one row's cache.

    Args:
        layers: of each part its fixed bytes, those of a token, and the tokens that it holds at most.
    """

    layers: tuple[tuple[int, int, int | None], ...]

    def __call__(self, tokens: int) -> int:
        """Bytes that so many tokens take; a window grows by a step beyond a prompt of any length."""
        return sum(
            fixed + each * (tokens if most is None else min(tokens + _SHORT, most))
            for fixed, each, most in self.layers
        )


def measured(run: Callable[[int, list[Any]], object], caches: Callable[[], list[Any]]) -> CacheSize:
    """What a row's cache takes; raises whatever ``run`` does.

    Args:
        run: a pass of the network over so many tokens of one row, into caches.
        caches: makes the empty caches of a row.
    """
    if _stateful(caches()):
        return CacheSize(tuple(map(_of_one_token, _parts(run, caches(), 1))))
    found = []
    for short, long in zip(_parts(run, caches(), _SHORT), _parts(run, caches(), _LONG), strict=True):
        each = (long.nbytes - short.nbytes) // (_LONG - _SHORT)
        found.append((short.nbytes - each * _SHORT, each, _most(long)))
    return CacheSize(tuple(found))


def _stateful(layers: Sequence[Any]) -> bool:
    """Whether some layers keep states, and all are of kinds that a token shows whole.

    Without Metal a state's kernels are loops over the tokens: to write down a pass over many takes seconds.
    """
    kinds = {type(layer).__name__ for layer in _flat(layers)}
    return "ArraysCache" in kinds and kinds <= {"ArraysCache", "KVCache", "PackedKVCache", "RotatingKVCache"}


def _of_one_token(layer: Any) -> tuple[int, int, int | None]:
    if _is(layer, "ArraysCache"):
        return layer.nbytes, 0, None
    part = (layer.parts or [None])[0] if _is(layer, "PackedKVCache") else layer.keys
    held = 0 if part is None else part.shape[2]  # a whole step of growth
    return 0, layer.nbytes // held if held else 0, _most(layer)


def _parts(run: Callable[[int, list[Any]], object], layers: list[Any], tokens: int) -> list[Any]:
    run(tokens, layers)
    return list(_flat(layers))


def _flat(layers: Sequence[Any]) -> Iterator[Any]:
    for layer in layers:
        if _is(layer, "CacheList"):
            yield from _flat(layer.caches)
        else:
            yield layer


def _most(layer: Any) -> int | None:
    most: int | None = None
    if _is(layer, "RotatingKVCache"):
        most = layer.max_size
    elif _is(layer, "ChunkedKVCache"):  # what went is cut off only where the buffer grows
        most = layer.chunk_size + layer.step
    return most


def _is(layer: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(layer).__mro__)


__all__ = ["CacheSize", "measured"]
