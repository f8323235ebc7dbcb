"""LoRA adapters for the UNet and the text encoders, in the key forms of diffusers, PEFT and kohya.

An adapter never touches the model: a request that asks for one gets a view of the networks that shares
every array and has low-rank layers around the adapted ones. So requests with different adapters, and
without any, run beside each other, and there is nothing to undo. Source: Hu et al. 2021
(arXiv:2106.09685); kohya's names are those of the original latent-diffusion code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlxengine.errors import IncompatibleWeightsError

from .adapter_files import Adapter, AdapterFile, few
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
            if name not in layers or adapter.down is None or adapter.up is None:
                unknown.append(written)
                continue
            for half, path, layer in layers[name]:
                if path not in made:
                    made[path] = LowRank(layer, dtype)
                    _put(view, path, made[path])
                made[path].add(*_matrices(adapter, layer, half, scale, file.name, written))
        if unknown:
            raise IncompatibleWeightsError(
                f"{file.name} adapts {len(unknown)} layers of {part} that the model does not have, or "
                f"without both matrices: {few(unknown)}.",
                hint="It was made for another model: Stable Diffusion 1, 2 and XL take different adapters.",
            )
    return view


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
