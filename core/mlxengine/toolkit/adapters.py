"""LoRA and DoRA adapters: loaded beside the weights, chosen per request, taken away without a trace.

LoRA (Hu et al. 2021) adds ``scale · x A B`` to a layer's output; DoRA (Liu et al. 2024) also rescales each
output by a learned magnitude over the norm of the adapted weights. The base weights are never changed: a
layer that an adapter touches is wrapped, and unwrapped when the last such adapter is unloaded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..contract.events import Event, Finished
from ..contract.requests import Request
from ..errors import IncompatibleWeightsError, InvalidParameterError
from ..text.requests import LoadAdapterRequest, UnloadAdapterRequest
from .adapted import Adapted, Delta, Ready, Rows
from .adapted_experts import AdaptedExperts, Experts, part, rejoin
from .adapter_files import read_adapter
from .folders import adapter_folder

BASE = "base"
"""What requests call the plain weights."""


class User(Protocol):
    """What uses an adapter until it is done or has failed."""

    adapter: str | None
    done: bool
    failure: Exception | None


class Adapters:
    """The adapters of one model.

    Args:
        network: an ``mlx.nn.Module``.
        experts: the classes of experts of its library, if it has any.
        named: the path that the network has for a layer, of the one that an adapter has for it; may raise a
            `LoadError` for a layer that cannot be adapted.
    """

    def __init__(
        self,
        network: Any,
        experts: Experts | None = None,
        named: Callable[[str], str] = str,
    ) -> None:
        self._network = network
        self._experts = experts or Experts()
        self._named = named
        self._rows = Rows()
        self._users: weakref.WeakSet[User] = weakref.WeakSet()
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
                f"adapter={name!r} is not loaded; there are: {known}.",
                hint="Load it with load_adapter first.",
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

    def give(self, user: User, name: str | None) -> None:
        """Note who uses an adapter: it is not unloaded as long as that lives and is not done."""
        user.adapter = name
        self._users.add(user)

    def use(self, *names: str | None) -> None:
        """The adapter of each row of the following forward passes; one name is that of all rows."""
        self._rows.names = names

    def load(self, name: str, folder: Path, *, scale: float = 1.0) -> None:
        """Read an adapter in mlx-lm's or PEFT's format; ``scale`` multiplies its own.

        Raises:
            InvalidParameterError: the name is taken.
            IncompatibleWeightsError: it was made for another model; the tensors are named.
            LoadError, CorruptFileError: it cannot be read, or is of a kind that is not supported, or
                adapts a layer that cannot be.
        """
        if name in self._names or name == BASE or not name:
            raise InvalidParameterError(f"The adapter name {name!r} is taken or reserved.")
        deltas = _renamed(folder, read_adapter(folder, scale), self._named)
        modules = dict(self._network.named_modules())
        bases = {path: self._base(path, modules) for path in deltas}
        _check_fit(folder, deltas, bases, modules, self._experts)
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
            InvalidParameterError: it is not loaded, or a request still uses it.
        """
        if name not in self._names:
            self.resolve(name)
            raise InvalidParameterError(f"{name!r} is not an adapter that can be unloaded.")
        users = sum(user.adapter == name and not user.done and user.failure is None for user in self._users)
        if users:
            raise InvalidParameterError(
                f"The adapter {name!r} is in use by {users} requests.", hint="Wait for them, or cancel them."
            )
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
        if isinstance(base, self._experts.layers):
            self._layers[path] = AdaptedExperts(base, self._rows)
            part(modules[_parent(path)], self._rows)
        else:
            self._layers[path] = Adapted(base, self._rows)
        self._network.update_modules(tree_unflatten([(path, self._layers[path])]))

    def _base(self, path: str, modules: Mapping[str, Any]) -> Any:
        return self._layers[path].base if path in self._layers else modules.get(path)


def change(
    adapters: Adapters,
    request: LoadAdapterRequest | UnloadAdapterRequest,
    fetch: Callable[[str, Sequence[str]], Generator[Event | None, None, Path]] | None,
    forget: Callable[[str], None] = lambda _name: None,
) -> Iterator[Event | None]:
    """Serve a request to load or unload an adapter.

    Args:
        adapters: of the model.
        request: what to do.
        fetch: see `mlxengine.RunContext`.
        forget: told of one that was unloaded, to let go of what was computed with it.
    """
    if isinstance(request, LoadAdapterRequest):
        found = adapter_folder(request.source, fetch)
        folder = found if isinstance(found, Path) else (yield from found)
        adapters.load(request.name, folder, scale=request.scale)
        if request.default:
            adapters.default = request.name
    else:
        adapters.unload(request.name)
        forget(request.name)
    yield Finished()


def merged(
    network: Any,
    folder: Path,
    scale: float = 1.0,
    experts: Experts | None = None,
) -> Iterator[tuple[nn.Module, mx.array]]:
    """The layers that an adapter touches, each with the weights, (…, outputs, inputs), that it makes.

    Raises:
        IncompatibleWeightsError: it was made for another model, or a layer is packed.
    """
    deltas = read_adapter(folder, scale)
    modules = dict(network.named_modules())
    _check_fit(folder, deltas, modules, modules, experts or Experts())
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


def _renamed(folder: Path, deltas: Mapping[str, Delta], named: Callable[[str], str]) -> dict[str, Delta]:
    found: dict[str, Delta] = {}
    for path, delta in deltas.items():
        name = named(path)
        if name in found:
            raise IncompatibleWeightsError(f"The adapter in {folder} has the layer {name} twice.")
        found[name] = delta
    return found


def _check_fit(
    folder: Path,
    deltas: Mapping[str, Delta],
    layers: Mapping[str, Any],
    modules: Mapping[str, Any],
    experts: Experts,
) -> None:
    problems = [
        _problem(path, delta, layers.get(path), modules.get(_parent(path)), experts)
        for path, delta in deltas.items()
    ]
    wrong = [text for text in problems if text]
    if wrong:
        raise IncompatibleWeightsError(
            f"The adapter in {folder} does not fit this model: {'; '.join(wrong[:8])}.",
            hint="Load it with the model that it was trained on.",
        )


def _problem(path: str, delta: Delta, layer: Any, block: Any, experts: Experts) -> str | None:
    kinds: Any = experts.layers if delta.a.ndim == 3 else (nn.Linear, nn.QuantizedLinear)
    if not isinstance(layer, kinds):
        return f"{path} is not a {'layer of experts' if delta.a.ndim == 3 else 'linear layer'} of the model"
    if delta.a.ndim == 3 and not isinstance(block, experts.blocks):
        return f"{path} is in no block of experts"
    *many, outputs, inputs = layer.weight.shape
    if "scales" in layer:
        inputs = inputs * 32 // layer.bits
    rank = delta.a.shape[-1]
    if delta.a.shape != (*many, inputs, rank) or delta.b.shape != (*many, rank, outputs):
        ours, theirs = ("×".join(map(str, sizes)) for sizes in ((*many, inputs), delta.a.shape[:-1]))
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


__all__ = ["BASE", "Adapters", "User", "change", "merged"]
