"""LoRA adapters for the UNet and the text encoders, in the key forms of diffusers, PEFT and kohya.

An adapter never touches the model: a request that asks for one gets a view of the networks that shares
every array and has low-rank layers around the adapted ones. So requests with different adapters, and
without any, run beside each other, and there is nothing to undo. Source: Hu et al. 2021
(arXiv:2106.09685); kohya's names are those of the original latent-diffusion code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from attrs import define, field
from mlxengine.errors import IncompatibleWeightsError, ModelNotFoundError

from .unet import UNet
from .weights import modules_by_origin, read_tensors

_KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"}
_KOHYA |= {"lora_te2_": "text_encoder_2"}
_DIFFUSERS = {"unet.": "unet", "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2"}
_SUFFIX = re.compile(
    r"(?P<name>.+?)(?:"
    r"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)(?:\.default)?(?P<down>)\.weight"
    r"|\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)(?:\.default)?(?P<up>)\.weight"
    r"|(?P<alpha>)\.alpha)"
)
_PROCESSOR = re.compile(r"\.processor\.(to_\w+?)_lora\.(down|up)\.")
_OTHER_KINDS = ("hada_", "lokr_", "dora_scale", "lora_magnitude_vector", "oft_", "lora_mid")
_SHOWN = 5


@define
class Adapter:
    """One adapted layer: ``up @ down * alpha / rank`` is added to its weight."""

    down: mx.array | None = None
    up: mx.array | None = None
    alpha: float | None = None
    rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        """What the product is multiplied with; 1 where the file has no alpha."""
        if self.down is None or self.alpha is None:
            return 1.0
        rank = self.down.shape[0]
        return self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


@define
class AdapterFile:
    """A file of adapters: per network, adapters by the layer's name as the file writes it."""

    name: str
    networks: dict[str, dict[str, Adapter]] = field(factory=dict)
    flat: bool = False


def read_adapters(path: Path) -> AdapterFile:
    """Read a ``.safetensors`` file, or the one in a folder.

    Raises:
        ModelNotFoundError: there is none, or more than one.
        IncompatibleWeightsError: it holds something else than LoRA layers.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelNotFoundError(
            f"{path} holds {len(files)} .safetensors files where one adapter is expected.",
            hint="Name the file itself.",
        )
    tensors = read_tensors(files)
    found = AdapterFile(name=path.name, flat=any(key.startswith(tuple(_KOHYA)) for key in tensors))
    strange = []
    for key, tensor in tensors.items():
        network, rest = _network(key)
        match = _SUFFIX.fullmatch(_PROCESSOR.sub(r".\1.lora.\2.", rest))
        if match is None:
            strange.append(key)
            continue
        layer = re.sub(r"\.to_out$", ".to_out.0", match["name"].removeprefix("base_model.model."))
        adapter = found.networks.setdefault(network, {}).setdefault(layer, Adapter())
        if match["alpha"] is not None:
            adapter.alpha = float(np.array(tensor, dtype=np.float32))
        elif match["down"] is not None:
            adapter.down = tensor
        else:
            adapter.up = tensor
    if strange:
        other = any(word in key for key in strange for word in _OTHER_KINDS)
        raise IncompatibleWeightsError(
            f"{path.name} is not a plain LoRA: it has {_few(strange)}.",
            hint="DoRA, LoHa, LoKr and OFT adapters are not implemented." if other else None,
        )
    _read_metadata(files[0], found)
    return found


def _network(key: str) -> tuple[str, str]:
    for prefix, network in (*_KOHYA.items(), *_DIFFUSERS.items()):
        if key.startswith(prefix):
            return network, key.removeprefix(prefix)
    return "unet", key


def _read_metadata(file: Path, found: AdapterFile) -> None:
    """PEFT's alphas, which diffusers keeps in the file's metadata instead of in tensors."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        metadata = json.loads(stream.read(size)).get("__metadata__", {})
    try:
        values = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return
    for network, adapters in found.networks.items():
        for layer, adapter in adapters.items():
            pattern = values.get(f"{network}.alpha_pattern") or {}
            alpha = pattern.get(layer, values.get(f"{network}.lora_alpha"))
            if adapter.alpha is None and alpha is not None:
                adapter.alpha = float(alpha)
            adapter.rank_stabilised = bool(values.get(f"{network}.use_rslora", False))


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
                f"without both matrices: {_few(unknown)}.",
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
    if isinstance(network, UNet) and (original := _original_name(name, network)):
        yield original.replace(".", "_")


_ORIGINAL: Mapping[str, str] = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {("resnets", "0"): "0", ("attentions", "0"): "1", ("resnets", "1"): "2"}
_PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def _original_name(name: str, network: UNet) -> str | None:
    """The name in the original latent-diffusion code, which numbers blocks through all resolutions."""
    if name in _ORIGINAL:
        return _ORIGINAL[name]
    if name.startswith("mid_block."):
        _, kind, index, rest = name.split(".", 3)
        return f"middle_block.{_MIDDLE[kind, index]}.{_ORIGINAL.get(rest, rest)}"
    match = _PLACE.fullmatch(name)
    if match is None:
        return None
    way, level, kind, place, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    blocks = network.down_blocks if way == "down" else network.up_blocks
    before = sum(len(block.resnets) + (way == "down") for block in blocks[:level])
    if kind == "downsamplers":
        return f"input_blocks.{1 + before + len(blocks[level].resnets)}.0.op"
    if kind == "upsamplers":
        last = before + len(blocks[level].resnets) - 1
        return f"output_blocks.{last}.{2 if 'attentions' in blocks[level] else 1}.conv"
    prefix = f"input_blocks.{1 + before + place}" if way == "down" else f"output_blocks.{before + place}"
    return f"{prefix}.{0 if kind == 'resnets' else 1}.{_ORIGINAL.get(rest, rest)}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


__all__ = ["AdapterFile", "LowRank", "adapted", "read_adapters"]
