"""Adapters for a denoiser and its text encoders, in every form of keys that `adapter_files` reads.

An adapter never touches the model: a request that asks for one gets a view of the networks that shares
every array, and has low-rank layers around the adapted ones, or layers of its own in their place. So requests
with different adapters, and without any, run beside each other, and there is nothing to undo.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import evolve, field, frozen
from mlxengine.errors import IncompatibleWeightsError

from .adapter_files import MADE_FOR_ANOTHER, AdapterFile, few
from .adapters import Adapter
from .original_names import original_unet_name
from .unet import UNet
from .weights import modules_by_origin

_ADAPTABLE = (nn.Linear, nn.QuantizedLinear, nn.Conv2d)


@frozen(kw_only=True)
class OtherNames:
    """What a family's layers are called where it was published first, which stacks some of them.

    Args:
        blocks: per kind of block, its name in the checkpoint, that of the others (the same for what stands
            outside of blocks: both empty), and for each of their layers those of the checkpoint whose outputs
            it stacks.
        swapped: layers of theirs whose halves stand the other way round.
    """

    blocks: tuple[tuple[str, str, Mapping[str, tuple[str, ...]]], ...] = ()
    swapped: frozenset[str] = field(default=frozenset())

    def of(self, names: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Their names for these layers, each with the layers that it stacks."""
        known = set(names)
        for ours, theirs, layers in self.blocks:
            length = len(ours) + 1
            numbers = {name[length:].split(".")[0] for name in known if ours and name.startswith(f"{ours}.")}
            for number in numbers if ours else [""]:
                before, after = (f"{ours}.{number}.", f"{theirs}.{number}.") if ours else ("", "")
                for name, stacked in layers.items():
                    members = tuple(before + item for item in stacked)
                    if known.issuperset(members):
                        yield after + name, members


class LowRank(nn.Module):  # type: ignore[misc]
    """A linear layer or convolution with adapters beside it."""

    def __init__(self, base: nn.Module, dtype: mx.Dtype) -> None:
        super().__init__()
        self.base = base
        self._dtype = dtype
        self.pairs: list[list[mx.array]] = []

    def add(self, down: mx.array, up: mx.array) -> None:
        """Add ``down`` (rank, inputs) or (rank, height, width, inputs), and ``up`` (outputs, rank)."""
        self.pairs.append([down.astype(self._dtype), up.astype(self._dtype)])

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        for down, up in self.pairs:
            if down.ndim == 4:
                inner = mx.conv2d(x, down, stride=self.base.stride, padding=self.base.padding)
            else:
                inner = x @ down.T
            y = y + inner @ up.T
        return y


@frozen(kw_only=True)
class _Member:
    """A layer of ours that is some rows of a layer as files have it.

    Args:
        rows, outputs: which rows, of how many.
        swapped: whether the halves of its own rows stand the other way round there.
    """

    path: str
    rows: slice = slice(None)
    outputs: int | None = None
    swapped: bool = False

    def turned(self, rows: mx.array) -> mx.array:
        """Rows of ours as the file has them, and back."""
        if not self.swapped:
            return rows
        first, second = mx.split(rows, 2)
        return mx.concatenate([second, first])


def adapted(
    network: nn.Module,
    part: str,
    files: Iterable[tuple[AdapterFile, float]],
    dtype: mx.Dtype,
    others: OtherNames | None = None,
) -> nn.Module:
    """A view of ``network`` with the adapters that ``files`` have for it, each at its strength.

    Args:
        part: ``"denoiser"``, ``"text_encoder"`` or ``"text_encoder_2"``.
        others: names that files of its family may use beside those of the checkpoint.

    Raises:
        IncompatibleWeightsError: a file adapts a layer that the network does not have, or of another shape,
            or the same layer twice.
    """
    wanted = [(file, scale) for file, scale in files if file.networks.get(part)]
    if not wanted:
        return network
    view: nn.Module = shared_copy(network)
    layers, names = _layers(view, part, others or OtherNames())
    made: dict[str, LowRank] = {}
    for file, scale in wanted:
        unknown = []
        taken: dict[str, str] = {}
        for written, adapter in file.networks[part].items():
            members = names.get(written)
            if members is None or not adapter.complete:
                unknown.append(written)
                continue
            for member in members:
                path, layer = member.path, layers[member.path]
                if (before := taken.setdefault(path, written)) != written:
                    raise IncompatibleWeightsError(
                        f"{file.name} adapts one layer twice, as {before} and as {written}.",
                        hint="Save the adapter with one name for each layer.",
                    )
                if not adapter.low_rank:
                    layers[path] = changed = _changed(adapter, layer, member, scale, file.name, written)
                    if path in made:
                        made[path].base = changed
                    else:
                        _put(view, path, changed)
                    continue
                if path not in made:
                    made[path] = LowRank(layer, dtype)
                    _put(view, path, made[path])
                made[path].add(*_matrices(adapter, layer, member, scale, file.name, written))
        if unknown:
            raise IncompatibleWeightsError(
                f"{file.name} adapts {len(unknown)} layers of the {part} that the model does not have, or "
                f"without all matrices: {few(unknown)}.",
                hint=MADE_FOR_ANOTHER,
            )
    return view


def _layers(
    view: nn.Module, part: str, others: OtherNames
) -> tuple[dict[str, nn.Module], dict[str, tuple[_Member, ...]]]:
    """The layers by path, and for every name that a file may use, the layers that it means."""
    layers: dict[str, nn.Module] = {}
    stacks: dict[str, list[_Member]] = {}
    for name, _, path, layer in sorted(modules_by_origin(view, part), key=lambda item: item[1] or 0):
        if isinstance(layer, _ADAPTABLE):
            layers[path] = layer
            stacks.setdefault(name, []).append(_Member(path=path))
    found = {name: _stacked(members, layers) for name, members in stacks.items()}
    for name, parts in others.of(stacks):
        members = [member for item in parts for member in stacks[item]]
        swapped = name in others.swapped
        found.setdefault(name, _stacked([evolve(item, swapped=swapped) for item in members], layers))
    for name in list(found):
        for alias in _spellings(name, view):
            found.setdefault(alias, found[name])
    return layers, found


def _stacked(members: list[_Member], layers: Mapping[str, nn.Module]) -> tuple[_Member, ...]:
    if len(members) == 1:
        return tuple(members)
    ends = list(accumulate(layers[member.path].weight.shape[0] for member in members))
    starts = [0, *ends]
    return tuple(
        evolve(member, rows=slice(start, end), outputs=ends[-1])
        for member, start, end in zip(members, starts, ends, strict=False)
    )


def _spellings(name: str, network: nn.Module) -> Iterator[str]:
    """Other ways to write a layer's name: shorter, as the original code does, with underscores for dots."""
    usual = {name, name.removeprefix("text_model."), name.removesuffix(".0") if "to_out" in name else name}
    if isinstance(network, UNet) and (original := original_unet_name(name, network)):
        usual.add(original)
    for item in usual:
        yield item
        yield item.replace(".", "_")


def _changed(adapter: Adapter, layer: Any, member: _Member, scale: float, file: str, name: str) -> nn.Module:
    """A layer of its own with the changed weight, which is dense even where the model's is quantized."""
    quantized = isinstance(layer, nn.QuantizedLinear)
    weight = layer.weight
    if quantized:
        weight = mx.dequantize(weight, layer.scales, layer.biases, layer.group_size, layer.bits)
    torch_layout = weight.transpose(0, 3, 1, 2) if weight.ndim == 4 else weight
    try:
        made = member.turned(adapter.changed(member.turned(torch_layout), member.rows, member.outputs))
    except ValueError as error:
        raise IncompatibleWeightsError(
            f"{file}: {name} does not fit the model's layer of shape {tuple(torch_layout.shape)}: {error}.",
            hint=MADE_FOR_ANOTHER,
        ) from error
    made = torch_layout + scale * (made - torch_layout)
    made = (made.transpose(0, 2, 3, 1) if made.ndim == 4 else made).astype(weight.dtype)
    if not quantized:
        copy: nn.Module = shared_copy(layer)
        copy.weight = made
        return copy
    dense: nn.Module = nn.Linear(made.shape[1], made.shape[0], bias="bias" in layer)
    dense.weight = made
    if "bias" in layer:
        dense.bias = layer.bias
    return dense


def _matrices(
    adapter: Adapter, layer: Any, member: _Member, scale: float, file: str, name: str
) -> tuple[mx.array, mx.array]:
    assert adapter.down is not None
    assert adapter.up is not None
    down, up = adapter.down, adapter.up.reshape(adapter.up.shape[:2])
    convolution = isinstance(layer, nn.Conv2d)
    if convolution and down.ndim == 4:
        down = down.transpose(0, 2, 3, 1)
    elif down.ndim == 4 and down.shape[2:] == (1, 1):
        down = down.reshape(down.shape[:2])
    outputs = layer.weight.shape[0] if member.outputs is None else member.outputs
    if convolution:
        fits = tuple(down.shape[1:]) == tuple(layer.weight.shape[1:])
    else:
        inputs = layer.weight.shape[1] * (32 // layer.bits if isinstance(layer, nn.QuantizedLinear) else 1)
        fits = down.ndim == 2 and down.shape[1] == inputs
    if not fits or up.shape[0] != outputs or up.shape[1] != down.shape[0]:
        raise IncompatibleWeightsError(
            f"{file}: {name} has the shapes {tuple(adapter.down.shape)} and {tuple(adapter.up.shape)}, "
            f"which do not fit the model's layer.",
            hint=MADE_FOR_ANOTHER,
        )
    return down, member.turned(up[member.rows]) * (adapter.scale * scale)


def shared_copy(item: Any) -> Any:
    """Copies of the containers, the very same arrays."""
    if isinstance(item, nn.Module):
        made = item.__class__.__new__(item.__class__)
        made.__dict__.update(item.__dict__)
        dict.update(made, {key: shared_copy(value) for key, value in item.items()})
        return made
    return [shared_copy(value) for value in item] if isinstance(item, list) else item


def _put(network: Any, path: str, layer: nn.Module) -> None:
    *parents, last = path.split(".")
    for step in parents:
        network = network[int(step)] if isinstance(network, list) else network[step]
    if isinstance(network, list):
        network[int(last)] = layer
    else:
        network[last] = layer


__all__ = ["LowRank", "OtherNames", "adapted", "shared_copy"]
