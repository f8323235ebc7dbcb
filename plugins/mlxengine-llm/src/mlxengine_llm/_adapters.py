"""LoRA and DoRA adapters: loaded beside the weights, chosen per request, taken away without a trace.

LoRA (Hu et al. 2021) adds ``scale · x A B`` to a layer's output; DoRA (Liu et al. 2024) also rescales each
output by a learned magnitude over the norm of the adapted weights. The base weights are never changed: a
layer that an adapter touches is wrapped, and unwrapped when the last such adapter is unloaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlxengine import LoadAdapterRequest, Request, UnloadAdapterRequest
from mlxengine.errors import CorruptFileError, IncompatibleWeightsError, InvalidParameterError, LoadError

from ._adapted import Adapted, Delta, Ready, Rows
from ._experts import BLOCKS, EXPERTS, AdaptedExperts, part, rejoin

FILES = ("adapter_config.json", "adapters.safetensors", "adapter_model.safetensors")
BASE = "base"


class Adapters:
    """The adapters of one model.

    Args:
        network: mlx-lm's module.
    """

    def __init__(self, network: Any) -> None:
        self._network = network
        self._rows = Rows()
        self._layers: dict[str, Adapted | AdaptedExperts] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._sources: dict[str, tuple[Path, float]] = {}
        self._configured: dict[str, tuple[Path, float]] = {}
        self.default: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The loaded adapters."""
        return tuple(self._names)

    def resolve(self, name: str | None) -> str | None:
        """The adapter that a request means: its own, the default, or none for ``"base"``.

        Raises:
            InvalidParameterError: no adapter of that name is loaded.
        """
        if name is None:
            return self.default
        if name == BASE:
            return None
        if name not in self._names:
            known = ", ".join((*self._names, BASE))
            raise InvalidParameterError(
                f"No adapter {name!r} is loaded; there are: {known}.", hint="Load it with load_adapter first."
            )
        return name

    def configured(self, name: str, folder: Path) -> None:
        """Read the adapter that the model's configuration names; it is there after each load."""
        self.load(name, folder)
        self.default = name
        self._configured = dict(self._sources)

    def setup(self) -> tuple[Request, ...]:
        """The requests that bring a model that was just loaded to the adapters that there are now."""
        if self._sources == self._configured and self.default == next(iter(self._configured), None):
            return ()
        return (
            *(UnloadAdapterRequest(name=name) for name in self._configured),
            *(
                LoadAdapterRequest(name=name, source=str(folder), scale=scale, default=name == self.default)
                for name, (folder, scale) in self._sources.items()
            ),
        )

    def use(self, *names: str | None) -> None:
        """The adapter of each row of the following forward passes; one name is that of all rows."""
        self._rows.names = names

    def load(self, name: str, folder: Path, *, scale: float = 1.0) -> None:
        """Read an adapter in mlx-lm's or PEFT's format; ``scale`` multiplies its own.

        Raises:
            InvalidParameterError: the name is taken.
            IncompatibleWeightsError: it was made for another model; the tensors are named.
            LoadError, CorruptFileError: it cannot be read, or is of a kind that is not supported.
        """
        if name in self._names or name == BASE or not name:
            raise InvalidParameterError(f"The adapter name {name!r} is taken or reserved.")
        deltas = read_adapter(folder, scale)
        modules = dict(self._network.named_modules())
        _check_fit(folder, deltas, {path: self._base(path, modules) for path in deltas}, modules)
        for path, delta in deltas.items():
            if path not in self._layers:
                self._wrap(path, modules)
            layer = self._layers[path]
            ratio = _ratio(layer.base, delta)
            kept = _format(layer.base, delta)
            delta = attrs.evolve(delta, a=delta.a.astype(kept), b=delta.b.astype(kept))
            mx.eval([delta.a, delta.b, *([] if ratio is None else [ratio])])
            layer.deltas.put(name, Ready(delta, ratio))
        self._names[name] = tuple(deltas)
        self._sources[name] = (folder, scale)

    def unload(self, name: str) -> None:
        """Forget an adapter; layers that no other one touches are the base's own again.

        Raises:
            InvalidParameterError: it is not loaded.
        """
        if name not in self._names:
            self.resolve(name)
            raise InvalidParameterError(f"{name!r} is not an adapter that can be unloaded.")
        del self._sources[name]
        for path in self._names.pop(name):
            layer = self._layers[path]
            layer.deltas.put(name, None)
            if not layer.deltas.by_name:
                del self._layers[path]
                self._network.update_modules(tree_unflatten([(path, layer.base)]))
                if isinstance(layer, AdaptedExperts):
                    rejoin(dict(self._network.named_modules())[_parent(path)])
        if self.default == name:
            self.default = None

    def _wrap(self, path: str, modules: Mapping[str, Any]) -> None:
        base = modules[path]
        if isinstance(base, EXPERTS):
            self._layers[path] = AdaptedExperts(base, self._rows)
            part(modules[_parent(path)], self._rows)
        else:
            self._layers[path] = Adapted(base, self._rows)
        self._network.update_modules(tree_unflatten([(path, self._layers[path])]))

    def _base(self, path: str, modules: Mapping[str, Any]) -> Any:
        return self._layers[path].base if path in self._layers else modules.get(path)


def merged(network: Any, folder: Path, scale: float = 1.0) -> Iterator[tuple[nn.Module, mx.array]]:
    """The layers that an adapter touches, each with the weights, (…, outputs, inputs), that it makes.

    Raises:
        IncompatibleWeightsError: it was made for another model, or a layer is packed.
    """
    deltas = read_adapter(folder, scale)
    modules = dict(network.named_modules())
    _check_fit(folder, deltas, modules, modules)
    for path, delta in deltas.items():
        layer = modules[path]
        if "scales" in layer:
            raise IncompatibleWeightsError(f"{path} is quantized: nothing can be merged into it.")
        weight = layer.weight.astype(mx.float32)
        low = delta.a.astype(mx.float32) @ delta.b.astype(mx.float32)
        weight = weight + delta.scale * low.swapaxes(-1, -2)
        ratio = _ratio(layer, delta)
        if ratio is not None:
            weight = weight * ratio[:, None]
        yield layer, weight.astype(layer.weight.dtype)


def _check_fit(
    folder: Path, deltas: Mapping[str, Delta], layers: Mapping[str, Any], modules: Mapping[str, Any]
) -> None:
    problems = [
        _problem(path, delta, layers.get(path), modules.get(_parent(path))) for path, delta in deltas.items()
    ]
    wrong = [text for text in problems if text]
    if wrong:
        raise IncompatibleWeightsError(
            f"The adapter in {folder} does not fit this model: {'; '.join(wrong[:8])}.",
            hint="Load it with the model that it was trained on.",
        )


def read_adapter(folder: Path, scale: float = 1.0) -> dict[str, Delta]:
    """The deltas of an adapter folder, by the path of the layer."""
    from mlxengine.toolkit.loading import check_safetensors

    try:
        config = json.loads(folder.joinpath("adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{folder} is not an adapter: its adapter_config.json cannot be read: {error}.",
            hint="Give a folder in mlx-lm's or PEFT's format.",
        ) from error
    is_peft = "peft_type" in config
    file = folder / ("adapter_model.safetensors" if is_peft else "adapters.safetensors")
    if not file.exists():
        raise LoadError(f"{folder} has no {file.name}.")
    check_safetensors(file)
    weights: Any = mx.load(str(file))
    try:
        return _peft(config, weights, scale) if is_peft else _mlx_lm(config, weights, scale)
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"The adapter in {folder} lacks {error}.") from error


def _mlx_lm(config: Mapping[str, Any], weights: Mapping[str, mx.array], scale: float) -> dict[str, Delta]:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise LoadError(f"An adapter of the type {kind!r} cannot be loaded beside the weights.")
    own = float(config["lora_parameters"]["scale"]) * scale
    found = {}
    for path in {name.removesuffix(".lora_a") for name in weights if name.endswith(".lora_a")}:
        a, b = weights[f"{path}.lora_a"], weights[f"{path}.lora_b"]
        if a.ndim == 3:  # of experts: (experts, rank, inputs) and (experts, outputs, rank)
            a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
        found[path] = Delta(a=a, b=b, scale=own, magnitude=weights.get(f"{path}.m"))
    return _complete(found, weights, 3 if kind == "dora" else 2)


def _peft(config: Mapping[str, Any], weights: Mapping[str, mx.array], scale: float) -> dict[str, Delta]:
    if config["peft_type"] != "LORA" or config.get("alpha_pattern") or config.get("rank_pattern"):
        raise LoadError("Of PEFT's adapters, LoRA and DoRA with one rank and alpha can be loaded.")
    rank = int(config["r"])
    own = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank) * scale
    found = {}
    for name in weights:
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            found[stem.removeprefix("base_model.model.")] = Delta(
                a=weights[name].T,
                b=weights[f"{stem}.lora_B.weight"].T,
                scale=own,
                magnitude=weights.get(f"{stem}.lora_magnitude_vector"),
            )
    return _complete(found, weights, 3 if config.get("use_dora") else 2)


def _complete(found: dict[str, Delta], weights: Mapping[str, Any], each: int) -> dict[str, Delta]:
    if not found or len(weights) != each * len(found):
        raise IncompatibleWeightsError(
            f"The adapter has {len(weights)} tensors, of which {each * len(found)} belong to LoRA layers."
        )
    return found


def _problem(path: str, delta: Delta, layer: Any, block: Any) -> str | None:
    if not isinstance(layer, EXPERTS if delta.a.ndim == 3 else nn.Linear | nn.QuantizedLinear):
        return f"{path} is not a {'layer of experts' if delta.a.ndim == 3 else 'linear layer'} of the model"
    if delta.a.ndim == 3 and not isinstance(block, BLOCKS):
        return f"{path} is in no block of experts"
    *experts, outputs, inputs = layer.weight.shape
    if "scales" in layer:
        inputs = inputs * 32 // layer.bits
    rank = delta.a.shape[-1]
    if delta.a.shape != (*experts, inputs, rank) or delta.b.shape != (*experts, rank, outputs):
        ours, theirs = ("×".join(map(str, sizes)) for sizes in ((*experts, inputs), delta.a.shape[:-1]))
        return f"{path} maps {ours} to {outputs} features, the adapter {theirs} to {delta.b.shape[-1]}"
    return None


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _format(base: Any, delta: Delta) -> mx.Dtype:
    """The number format that a delta is kept in: that of what it is added to; some scales are no numbers."""
    found: mx.Dtype = (base.scales if "scales" in base else base.weight).dtype
    return found if mx.issubdtype(found, mx.floating) else delta.a.dtype


def _ratio(base: Any, delta: Delta) -> mx.array | None:
    if delta.magnitude is None:
        return None
    weight = base.weight
    if isinstance(base, nn.QuantizedLinear):
        weight = mx.dequantize(
            weight, base.scales, base.biases, group_size=base.group_size, bits=base.bits, mode=base.mode
        )
    adapted = weight.astype(mx.float32) + delta.scale * (delta.a @ delta.b).T.astype(mx.float32)
    return delta.magnitude.astype(mx.float32) / mx.linalg.norm(adapted, axis=1)


__all__ = ["BASE", "FILES", "Adapters", "merged", "read_adapter"]
