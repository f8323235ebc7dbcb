"""Adapters for the UNet and the text encoders, in the key forms of diffusers, PEFT and kohya.

An adapter never touches the model: a request that asks for one gets a view of the networks that shares
every array, and has low-rank layers around the adapted ones, or layers of its own in their place. So requests
with different adapters, and without any, run beside each other, and there is nothing to undo.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlxengine.errors import IncompatibleWeightsError

from .adapter_files import AdapterFile, few
from .adapters import Adapter
from .original_names import original_unet_name
from .unet import UNet
from .weights import modules_by_origin


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


def adapted(
    network: nn.Module, part: str, files: Iterable[tuple[AdapterFile, float]], dtype: mx.Dtype
) -> nn.Module:
    """A view of ``network`` with the adapters that ``files`` have for it, each at its scale.

    Raises:
        IncompatibleWeightsError: a file adapts a layer that the network does not have, or of another shape.
    """
    wanted = [(file, scale) for file, scale in files if file.networks.get(part)]
    if not wanted:
        return network
    view: nn.Module = _shared_copy(network)
    layers: dict[str, list[tuple[int | None, str, nn.Module]]] = {}
    for name, half, path, layer in modules_by_origin(view, part):
        layers.setdefault(name, []).append((half, path, layer))
    flat = {alias: name for name in layers for alias in _flat_names(name, view)}
    made: dict[str, LowRank] = {}
    for file, scale in wanted:
        unknown = []
        for written, adapter in file.networks[part].items():
            name = flat.get(written, "") if file.flat else _full_name(written, part)
            if name not in layers or not adapter.complete:
                unknown.append(written)
                continue
            for index, (half, path, layer) in enumerate(layers[name]):
                if not adapter.low_rank:
                    changed = _changed(adapter, layer, half, scale, file.name, written)
                    layers[name][index] = half, path, changed
                    if path in made:
                        made[path].base = changed
                    else:
                        _put(view, path, changed)
                    continue
                if path not in made:
                    made[path] = LowRank(layer, dtype)
                    _put(view, path, made[path])
                made[path].add(*_matrices(adapter, layer, half, scale, file.name, written))
        if unknown:
            raise IncompatibleWeightsError(
                f"{file.name} adapts {len(unknown)} layers of {part} that the model does not have, or "
                f"without all matrices: {few(unknown)}.",
                hint="It was made for another model: Stable Diffusion 1, 2 and XL take different adapters.",
            )
    return view


def _changed(adapter: Adapter, layer: Any, half: int | None, scale: float, file: str, name: str) -> nn.Module:
    """A layer of its own with the changed weight, which is dense even where the model's is quantized."""
    quantized = isinstance(layer, nn.QuantizedLinear)
    weight = layer.weight
    if quantized:
        weight = mx.dequantize(weight, layer.scales, layer.biases, layer.group_size, layer.bits)
    torch_layout = weight.transpose(0, 3, 1, 2) if weight.ndim == 4 else weight
    outputs = weight.shape[0]
    rows = slice(None) if half is None else slice(half * outputs, (half + 1) * outputs)
    try:
        made = adapter.changed(torch_layout, rows)
    except ValueError as error:
        raise IncompatibleWeightsError(
            f"{file}: {name} does not fit the model's layer of shape {tuple(torch_layout.shape)}: {error}.",
            hint="It was made for another model: Stable Diffusion 1, 2 and XL take different adapters.",
        ) from error
    made = torch_layout + scale * (made - torch_layout)
    made = (made.transpose(0, 2, 3, 1) if made.ndim == 4 else made).astype(weight.dtype)
    if not quantized:
        copy: nn.Module = _shared_copy(layer)
        copy.weight = made
        return copy
    dense: nn.Module = nn.Linear(made.shape[1], made.shape[0], bias="bias" in layer)
    dense.weight = made
    if "bias" in layer:
        dense.bias = layer.bias
    return dense


def _matrices(
    adapter: Adapter, layer: Any, half: int | None, scale: float, file: str, name: str
) -> tuple[mx.array, mx.array]:
    assert adapter.down is not None
    assert adapter.up is not None
    down, up = adapter.down, adapter.up.reshape(adapter.up.shape[:2])
    convolution = isinstance(layer, nn.Conv2d)
    if convolution and down.ndim == 4:
        down = down.transpose(0, 2, 3, 1)
    elif down.ndim == 4 and down.shape[2:] == (1, 1):
        down = down.reshape(down.shape[:2])
    outputs = layer.weight.shape[0]
    if half is not None and up.shape[0] == 2 * outputs:
        up = up[half * outputs : (half + 1) * outputs]
    if convolution:
        fits = tuple(down.shape[1:]) == tuple(layer.weight.shape[1:])
    else:
        inputs = layer.weight.shape[1] * (32 // layer.bits if isinstance(layer, nn.QuantizedLinear) else 1)
        fits = down.ndim == 2 and down.shape[1] == inputs
    if not fits or up.shape[0] != outputs or up.shape[1] != down.shape[0]:
        raise IncompatibleWeightsError(
            f"{file}: {name} has the shapes {tuple(adapter.down.shape)} and {tuple(adapter.up.shape)}, "
            f"which do not fit the model's layer.",
            hint="It was made for another model: Stable Diffusion 1, 2 and XL take different adapters.",
        )
    return down, up * (adapter.scale * scale)


def _shared_copy(item: Any) -> Any:
    """Copies of the containers, the very same arrays."""
    if isinstance(item, nn.Module):
        made = item.__class__.__new__(item.__class__)
        made.__dict__.update(item.__dict__)
        dict.update(made, {key: _shared_copy(value) for key, value in item.items()})
        return made
    return [_shared_copy(value) for value in item] if isinstance(item, list) else item


def _put(network: Any, path: str, layer: nn.Module) -> None:
    *parents, last = path.split(".")
    for step in parents:
        network = network[int(step)] if isinstance(network, list) else network[step]
    if isinstance(network, list):
        network[int(last)] = layer
    else:
        network[last] = layer


def _full_name(written: str, part: str) -> str:
    if part == "unet" or written.startswith("text_model."):
        return written
    return f"text_model.{written}"


def _flat_names(name: str, network: nn.Module) -> Iterable[str]:
    """How kohya's files write a layer: dots as underscores, by diffusers' names or the original code's."""
    yield name.replace(".", "_")
    if isinstance(network, UNet) and (original := original_unet_name(name, network)):
        yield original.replace(".", "_")


__all__ = ["LowRank", "adapted"]
