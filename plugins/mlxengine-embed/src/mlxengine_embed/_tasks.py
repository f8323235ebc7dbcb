"""Low-rank additions to an encoder's weights, one for each task of which a request names one.

The layout is jina-embeddings-v3's (Sturua et al. 2024, section 3.2): beside each dense layer's and table's
weight W, torch's parametrization keeps A and B for every task, and W + alpha / rank * B A is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ._parts import Array, Config

NAMES = (
    (r"\.parametrizations\.weight\.original$", ".weight"),
    (r"\.parametrizations\.weight\.0\.lora_([AB])$", r".lora_\1"),
)
"""What the tensors are called, and what here."""


class Chosen:
    """Which task's additions count; ``None`` for none."""

    def __init__(self) -> None:
        self.index: int | None = None


class Tasked(nn.Module):  # type: ignore[misc]
    """A dense layer or a table with its additions.

    Args:
        plain: the layer.
        tasks: how many there are.
        rank: of the additions.
        scale: what they are multiplied by.
        chosen: tells which one counts.
    """

    def __init__(self, plain: Any, tasks: int, rank: int, scale: float, chosen: Chosen) -> None:
        super().__init__()
        self.weight = plain.weight
        if "bias" in plain:
            self.bias = plain.bias
        self._table, self._scale, self._chosen = isinstance(plain, nn.Embedding), scale, chosen
        rows, columns = plain.weight.shape
        self.lora_A = mx.zeros((tasks, rows, rank) if self._table else (tasks, rank, columns))
        self.lora_B = mx.zeros((tasks, rank, columns) if self._table else (tasks, rows, rank))

    def __call__(self, x: Array) -> Array:
        out = self.weight[x] if self._table else x @ self.weight.T
        if "bias" in self:
            out = out + self.bias
        if (index := self._chosen.index) is None:
            return out
        first, last = self.lora_A[index], self.lora_B[index]
        added = first[x] @ last if self._table else (x @ first.T) @ last.T
        return out + self._scale * added


def add_tasks(module: Any, config: Config) -> Chosen:
    """Give each dense layer and table of a module its additions."""
    chosen, rank = Chosen(), int(config["lora_rank"])
    tasks, scale = len(config["lora_adaptations"]), float(config.get("lora_alpha", 1)) / rank
    found = tree_flatten(module.leaf_modules(), is_leaf=nn.Module.is_module)
    layers = [
        (name, Tasked(layer, tasks, rank, scale, chosen))
        for name, layer in found
        if isinstance(layer, nn.Linear | nn.Embedding)
    ]
    module.update_modules(tree_unflatten(layers))
    return chosen


def apart(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """Queries, keys and values apart, which the checkpoint keeps in one layer."""
    whole: dict[str, Array] = {}
    for key, value in weights.items():
        if ".mixer.Wqkv." not in key:
            whole[key] = value
            continue
        shared = key.endswith("lora_A")  # the additions differ in B alone
        pieces = [value] * 3 if shared else mx.split(value, 3, axis=1 if key.endswith("lora_B") else 0)
        for name, piece in zip("qkv", pieces, strict=True):
            whole[key.replace(".mixer.Wqkv.", f".self_attn.{name}_proj.")] = piece
    return whole


__all__ = ["NAMES", "Chosen", "Tasked", "add_tasks", "apart"]
