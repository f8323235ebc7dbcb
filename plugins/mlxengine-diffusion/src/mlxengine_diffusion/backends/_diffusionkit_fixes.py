"""What diffusionkit 0.5.1 needs on today's mlx, confined to its own modules.

Nothing of mlx, transformers or huggingface_hub is changed: names inside diffusionkit's modules are rebound.

- Its loader asks the hub for files by fixed ids: here they come from folders that were fetched before.
- Keys have a bias in the checkpoints. The library leaves it out, as softmax would not notice; but text and
  picture have different ones and share one softmax, so it does. The layer gets its bias, and the loader
  keeps it. (The files that were quantized beforehand were saved without; they stay so.)
- The attention kernel lost its keyword ``memory_efficient_threshold``.
- The T5 encoder sets limits through ``mx.metal``, which is Apple's alone.
- FLUX, T5 and CLIP keep random values for tensors that a file lacks: the loader's update is checked first.
- FLUX's timestep embedding is computed in the model's dtype; in float32 it matches the reference.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_state = threading.local()
_lock = threading.Lock()
_applied = False


@contextmanager
def files(folders: Mapping[str, Path], *, key_bias: bool, whole: bool = False) -> Iterator[None]:
    """On this thread, take the files of a repository from its folder (id to folder).

    With ``whole``, a network that is given weights must be given all of them (else: ``ValueError``).
    """
    _state.folders, _state.key_bias, _state.whole = folders, key_bias, whole
    try:
        yield
    finally:
        del _state.folders, _state.key_bias, _state.whole


def apply() -> None:
    """Rebind the names, once per process."""
    global _applied
    with _lock:
        if not _applied:
            _rebind()
            _applied = True


def _rebind() -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from diffusionkit.mlx import mmdit, model_io, t5, tokenizer

    def local(repo: str, name: str) -> str:
        return str(_folder(repo) / name)

    class Whole:
        """What a network is given while it is loaded is all that it has."""

        def update(self, parameters: Any, strict: bool = True) -> Any:
            if getattr(_state, "whole", False):
                _compare(self, parameters)
            return super().update(parameters, strict)  # type: ignore[misc]

    class Network(Whole, mmdit.MMDiT):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            if _state.key_bias:
                for _, item in self.named_modules():
                    if isinstance(item, mmdit.Attention):
                        item.k_proj = nn.Linear(item.embed_dim, item.kv_proj_embed_dim, bias=True)

    original = model_io.mmdit_state_dict_adjustments

    def adjusted(weights: dict[str, mx.array], prefix: str = "") -> dict[str, mx.array]:
        found: dict[str, mx.array] = original(dict(weights), prefix=prefix)
        # With the biases of queries and keys exchanged, the original's queries are the keys.
        swapped = {
            name: _exchanged(mx, value) if "attn.qkv.bias" in name else value
            for name, value in weights.items()
        }
        for name, value in original(swapped, prefix=prefix).items():
            if name.endswith("attn.q_proj.bias"):
                found[name.replace(".q_proj.", ".k_proj.")] = value
        return found

    def attention(*arguments: Any, **options: Any) -> mx.array:
        options.pop("memory_efficient_threshold", None)
        return mx.fast.scaled_dot_product_attention(*arguments, **options)

    model_io.hf_hub_download = local
    model_io.MMDiT = Network
    for name in ("CLIPTextModel", "SD3T5Encoder"):
        setattr(model_io, name, type(name, (Whole, getattr(model_io, name)), {}))
    model_io.mmdit_state_dict_adjustments = adjusted
    model_io.T5Config = _FromFolder(model_io.T5Config)
    tokenizer.AutoTokenizer = _FromFolder(tokenizer.AutoTokenizer)
    mmdit.mx = _Overlay(mx, fast=_Overlay(mx.fast, scaled_dot_product_attention=attention))
    t5.mx = _Overlay(mx, metal=_NoMetal())


def _folder(repo: str) -> Path:
    folder: Path = _state.folders[repo]
    return folder


def _compare(network: Any, given: Any) -> None:
    from mlx.utils import tree_flatten

    wanted = {name: value.shape for name, value in tree_flatten(network.parameters())}
    found = {name: value.shape for name, value in tree_flatten(given)}
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - found)]
    wrong += [f"{name} is not known" for name in sorted(found.keys() - wanted)]
    wrong += [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError("; ".join(wrong[:5]) + more)


def _exchanged(mx: Any, bias: Any) -> Any:
    first, second, third = mx.split(bias, 3)
    return mx.concatenate([second, first, third])


class _FromFolder:
    """A transformers class whose ``from_pretrained`` reads the folder of a repository."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def from_pretrained(self, repo: str, **options: Any) -> Any:
        return self._original.from_pretrained(str(_folder(repo)), local_files_only=True, **options)


class _Overlay:
    """A module with some names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _NoMetal:
    def set_memory_limit(self, *_: Any, **__: Any) -> None:
        """Limits are the engine's business."""

    def device_info(self) -> dict[str, int]:
        return {"memory_size": 0}


__all__ = ["apply", "files"]
