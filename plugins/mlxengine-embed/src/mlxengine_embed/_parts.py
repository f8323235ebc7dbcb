"""What every encoder is made of: the value that describes one, masks, positions, activations, names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from attrs import field, frozen
from mlxengine.errors import UnsupportedArchitectureError

from ._architectures import ACTIVATIONS

Array = Any  # an mlx array; mlx ships no types that survive strict checking
Config = Mapping[str, Any]

_FUNCTIONS = nn.gelu, nn.gelu_approx, nn.gelu_approx, nn.relu, nn.silu, nn.silu
_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = dict(zip(ACTIVATIONS, _FUNCTIONS, strict=True))


def _as_it_is(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    return weights


@frozen(kw_only=True)
class Encoder:
    """A built encoder.

    Args:
        module: the ``mlx.nn.Module`` whose parameters are loaded.
        forward: ``(ids, valid, types) -> hidden``: (batch, length) int32 token ids, (batch, length) bool
            (true where a token is; ``None`` if every position has one), token types or ``None``; the result
            is (batch, length, hidden size).
        rename: the module's name of a checkpoint's tensor, ``None`` for one that the encoder has no use for.
        prepare: takes apart what a checkpoint keeps in one tensor and the module in several.
        hidden_size: width of ``hidden``.
        positions: how many positions there are at most, ``None`` if there is no fixed table.
        pad: the token id that fills up a row.
        tasks: the number of each task that ``forward`` takes as a fourth argument, where there are some.
        types: whether the encoder tells the two texts of a pair apart.
        library: the module that it came from.
    """

    module: Any
    forward: Callable[..., Array]
    rename: Callable[[str], str | None]
    prepare: Callable[[Mapping[str, Array]], Mapping[str, Array]] = field(default=_as_it_is)
    hidden_size: int
    positions: int | None
    pad: int
    library: str
    tasks: Mapping[str, int] = field(factory=dict)
    types: bool = False


class Group(nn.Module):  # type: ignore[misc]
    """A named group of layers, as checkpoints nest them."""

    def __init__(self, /, **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def additive(allowed: Array, dtype: Any) -> Array:
    """0 where attention is allowed, a very negative finite number elsewhere (so that no row can be NaN)."""
    return mx.where(allowed, mx.array(0, dtype), mx.array(-1e9 if dtype == mx.float32 else -3e4, dtype))


def near(length: int, reach: int) -> Array | None:
    """(1, 1, length, length), true where two positions are at most ``reach`` apart; ``None`` if all are."""
    if length - 1 <= reach:
        return None
    places = mx.arange(length)
    return (mx.abs(places[:, None] - places[None, :]) <= reach)[None, None]


def causal(length: int) -> Array:
    """(1, 1, length, length), true where a position sees itself and what is before it."""
    return mx.tril(mx.ones((length, length), dtype=mx.bool_))[None, None]


def by_distance(table: Array, length: int, buckets: int, reach: int) -> Array:
    """T5's relative position bias, (1, heads, length, length), for attention to both sides.

    Half of the buckets are for keys before the query, half for those after it; half of each are single
    distances, the rest grow logarithmically up to ``reach`` (Raffel et al. 2020, section 2.1).

    Args:
        table: (buckets, heads).
        length: positions.
        buckets: how many there are.
        reach: the distance from which on all share the last bucket.
    """
    distance: Any = np.arange(-(length - 1), length, dtype=np.int32)  # of the key from the query
    half, exact = buckets // 2, buckets // 4
    away = np.abs(distance)
    grown = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(reach / exact)
    )
    far = np.minimum(exact + (grown * np.float32(half - exact)).astype(np.int32), half - 1)
    bucket = np.where(away < exact, away, far) + (distance > 0) * half
    places = mx.arange(length)
    return table[mx.array(bucket)][places[None, :] - places[:, None] + length - 1].transpose(2, 0, 1)[None]


def rotary(config: Config, size: int, default: float, *, paired: bool = False) -> Any:
    """Rotary positions over a whole head of ``size``, first half with second half, or in pairs of neighbours.

    A scaling of the type ``"ntk"``, which GTE's own code has for texts longer than those of its training,
    multiplies the base by its factor and divides all angles by factor^(2 / size); ``"linear"`` divides them
    by its factor, and ``"llama3"`` those alone that turn slowly.
    """
    parameters, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    nested = parameters.get("rope_theta") if isinstance(parameters, Mapping) else None
    base = float(nested or config.get("rope_theta") or default)
    scaled = isinstance(scaling, Mapping) and scaling.get("type") == "ntk"
    factor = float(config["rope_scaling"]["factor"]) if scaled else 1.0
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else None
    if kind == "llama3":
        return _Llama3(size, base, config["rope_scaling"])
    if kind == "linear":
        return nn.RoPE(size, traditional=paired, base=base, scale=1 / float(config["rope_scaling"]["factor"]))
    return nn.RoPE(size, traditional=paired, base=base * factor, scale=factor ** (-2 / size))


class _Llama3:
    """Rotary positions of Llama 3.1: angles whose wave is longer than ``original / low_freq_factor`` are
    divided by ``factor``, those shorter than ``original / high_freq_factor`` kept, between them mixed.
    """

    def __init__(self, size: int, base: float, scaling: Mapping[str, Any]) -> None:
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        turns: Any = base ** (-np.arange(0, size, 2) / size)
        waves = float(scaling["original_max_position_embeddings"]) * turns / (2 * np.pi)
        kept = np.clip((waves - low) / (high - low), 0, 1)
        turns = turns * (kept + (1 - kept) / float(scaling["factor"]))
        self._size, self._periods = size, mx.array((1 / turns).astype(np.float32))

    def __call__(self, x: Array) -> Array:
        return mx.fast.rope(
            x, self._size, traditional=False, base=None, scale=1.0, offset=0, freqs=self._periods
        )


def renamed(rules: Sequence[tuple[str, str]], unused: str, prefixes: str = "") -> Callable[[str], str | None]:
    """A function from a checkpoint's names to a module's.

    Args:
        rules: regular expressions and what stands in their place, each applied in order.
        unused: a regular expression that names (as they are at the end) begin with which have no use.
        prefixes: a regular expression of what may stand before every name.
    """
    start, compiled = re.compile(f"^(?:{prefixes})"), [(re.compile(old), new) for old, new in rules]
    left_out = re.compile(unused)

    def rename(key: str) -> str | None:
        key = start.sub("", key, count=1) if prefixes else key
        for pattern, new in compiled:
            key = pattern.sub(new, key)
        return None if left_out.match(key) or key.endswith(("position_ids", "rotary_emb.inv_freq")) else key

    return rename


def split(pattern: str, parts: Sequence[str]) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """A function that takes tensors apart along their first dimension.

    Args:
        pattern: a regular expression of the part of their names that tells them.
        parts: what stands in its place in the names of the equal parts.
    """
    found = re.compile(pattern)

    def prepare(weights: Mapping[str, Array]) -> Mapping[str, Array]:
        whole: dict[str, Array] = {}
        for key, value in weights.items():
            if not found.search(key):
                whole[key] = value
                continue
            for part, piece in zip(parts, mx.split(value, len(parts)), strict=True):
                whole[found.sub(part, key)] = piece
        return whole

    return prepare


def activation(name: object) -> Callable[[Array], Array]:
    """The function that a configuration names.

    Raises:
        UnsupportedArchitectureError: it is not known.
    """
    if name not in _ACTIVATIONS:
        raise UnsupportedArchitectureError(
            f"The activation {name!r} is not supported.", hint=f"Supported are {', '.join(ACTIVATIONS)}."
        )
    return _ACTIVATIONS[str(name)]


__all__ = [
    "Array",
    "Config",
    "Encoder",
    "Group",
    "activation",
    "additive",
    "by_distance",
    "causal",
    "near",
    "renamed",
    "rotary",
    "split",
]
