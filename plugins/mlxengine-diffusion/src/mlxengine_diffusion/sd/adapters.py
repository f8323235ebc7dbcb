"""What an adapter does to a layer's weight: LoRA, LoHa, LoKr, and DoRA's magnitudes.

Sources: Hu et al. 2021 (arXiv:2106.09685) for LoRA; Hyeon-Woo et al. 2022 (arXiv:2108.06098) for Hadamard
products; Yeh et al. 2024 (arXiv:2309.14859) for both LoHa and LoKr with convolutions; Liu et al. 2024
(arXiv:2402.09353) for DoRA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import mlx.core as mx
from attrs import define, field

_COMPLETE = (
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    {"lokr_w1", "lokr_w2"},
    {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
)
_CORES = {"hada_t1", "hada_t2", "lokr_t2"}


@define
class Adapter:
    """One adapted layer.

    Attributes:
        down, up: LoRA's matrices; ``up @ down`` is added to the weight.
        factors: LoHa's or LoKr's, by their names in the file.
        magnitude: DoRA's length of each output's weights, (outputs,).
        alpha, rank: the change is multiplied by alpha / rank; without an alpha, by 1. The rank is that of the
            matrices where the file does not say it.
    """

    down: mx.array | None = None
    up: mx.array | None = None
    factors: dict[str, mx.array] = field(factory=dict)
    magnitude: mx.array | None = None
    alpha: float | None = None
    rank: int | None = None
    rank_stabilised: bool = False

    @property
    def low_rank(self) -> bool:
        """Whether the change is one low-rank product that can be computed beside the layer."""
        return not self.factors and self.magnitude is None

    @property
    def complete(self) -> bool:
        """Whether all matrices of its kind are there."""
        if self.factors:
            return set(self.factors) - _CORES in _COMPLETE and self.down is None and self.up is None
        return self.down is not None and self.up is not None

    @property
    def scale(self) -> float:
        """What the change is multiplied with."""
        rank = self._own_rank() if self.rank is None else self.rank
        if rank is None or self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def _own_rank(self) -> int | None:
        """``None`` where both of LoKr's factors are whole: such files mean no scale."""
        if self.down is not None:
            return self.down.shape[0]
        names = ("hada_w1_b", "lokr_w1_b", "lokr_w2_b")
        held = next((self.factors[name] for name in names if name in self.factors), None)
        return None if held is None else held.shape[0]

    def change(self, shape: tuple[int, ...]) -> mx.array:
        """What is added to a weight of torch's ``shape`` (outputs, inputs, …), scaled, float32.

        Raises:
            ValueError: the matrices make something of another size.
        """
        factors = {name: value.astype(mx.float32) for name, value in self.factors.items()}
        if "hada_w1_a" in factors:
            found = _product(factors, "hada_w1", "hada_t1") * _product(factors, "hada_w2", "hada_t2")
        elif factors:
            first, second = _product(factors, "lokr_w1", ""), _product(factors, "lokr_w2", "lokr_t2")
            found = _kronecker(first, second)
        else:
            assert self.down is not None
            assert self.up is not None
            found = self.up.astype(mx.float32).flatten(1) @ self.down.astype(mx.float32).flatten(1)
        if found.shape[0] != shape[0]:
            raise ValueError(f"{tuple(found.shape)} is not {shape}")
        return found.reshape(shape) * self.scale

    def changed(self, weight: mx.array, rows: slice, outputs: int | None = None) -> mx.array:
        """A weight (outputs, inputs, …), which is ``rows`` of what is adapted, changed; float32.

        Args:
            outputs: how many there are of what is adapted, where it is more than this weight.

        Raises:
            ValueError: the matrices make something of another size.
        """
        whole = (weight.shape[0] if outputs is None else outputs, *weight.shape[1:])
        made = weight.astype(mx.float32) + self.change(whole)[rows]
        if self.magnitude is None:
            return made
        lengths = mx.sqrt((made.flatten(1) ** 2).sum(axis=1))
        return made * (self.magnitude.astype(mx.float32)[rows] / lengths).reshape(-1, *[1] * (made.ndim - 1))


def _product(factors: Mapping[str, mx.array], name: str, core: str) -> mx.array:
    """A factor that is whole, or the product of two, or of two with a core between them (Tucker's form)."""
    if name in factors:
        return factors[name]
    first, second = factors[f"{name}_a"], factors[f"{name}_b"]
    if core in factors:
        return mx.einsum("ijkl,ip,jr->prkl", factors[core], first, second)
    return first @ second


def _kronecker(first: mx.array, second: mx.array) -> mx.array:
    rows, columns = first.shape
    tail = second.shape[2:]
    outer = first.reshape(rows, 1, columns, 1, *[1] * len(tail)) * second[None, :, None]
    return outer.reshape(rows * second.shape[0], columns * second.shape[1], *tail)


__all__ = ["Adapter"]
