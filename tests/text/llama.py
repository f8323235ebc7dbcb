"""A llama and its adapters in numpy and fp64, written from the papers alone: what the plugins are held to.

Sources: Touvron et al. 2023 (the model), Su et al. 2021 (rotary positions), Ainslie et al. 2023 (shared
keys), Hu et al. 2021 (LoRA), Liu et al. 2024 (DoRA).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen
from safetensors.numpy import load_file, save_file

Array = np.ndarray[Any, Any]
CHANGED = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


@frozen(kw_only=True)
class Adapter:
    """What some layers get: ``a`` (inputs, rank), ``b`` (rank, outputs), and DoRA's lengths (outputs,)."""

    layers: Mapping[str, tuple[Array, Array, Array | None]] = field(repr=False)
    rank: int
    scale: float = 3.0

    def of(self, name: str, weight: Array) -> Array:
        """The weight (outputs, inputs) of a layer under the adapter."""
        if name not in self.layers:
            return weight
        a, b, lengths = self.layers[name]
        changed: Array = weight + self.scale * (a.astype(np.float64) @ b).T
        if lengths is None:
            return changed
        return changed * (lengths / np.linalg.norm(changed, axis=1))[:, None]

    def write(self, folder: Path, before: str) -> Path:
        """In the format of mlx's libraries, ``before`` standing before ``layers.0`` in the paths."""
        found = {}
        for name, (a, b, lengths) in self.layers.items():
            found |= {f"{before}{name}.lora_a": a, f"{before}{name}.lora_b": b}
            found |= {} if lengths is None else {f"{before}{name}.m": lengths}
        config = {
            "fine_tune_type": "dora" if self._dora else "lora",
            "lora_parameters": {"rank": self.rank, "scale": self.scale, "dropout": 0.0},
        }
        return _written(folder, "adapters.safetensors", found, config)

    def write_peft(self, folder: Path, before: str) -> Path:
        """In PEFT's format."""
        found = {}
        for name, (a, b, lengths) in self.layers.items():
            stem = f"base_model.model.{before}{name}"
            found |= {f"{stem}.lora_A.weight": a.T.copy(), f"{stem}.lora_B.weight": b.T.copy()}
            found |= {} if lengths is None else {f"{stem}.lora_magnitude_vector": lengths}
        alpha = self.scale * self.rank
        config = {"peft_type": "LORA", "r": self.rank, "lora_alpha": alpha, "use_dora": self._dora}
        return _written(folder, "adapter_model.safetensors", found, config)

    @property
    def _dora(self) -> bool:
        return any(lengths is not None for _, _, lengths in self.layers.values())


def _written(folder: Path, name: str, tensors: Mapping[str, Array], config: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True)
    save_file(dict(tensors), str(folder / name))
    folder.joinpath("adapter_config.json").write_text(json.dumps(config))
    return folder


class Llama:
    """A checkpoint's language model.

    Args:
        folder: the checkpoint.
        stored: what stands before ``layers.0`` in the names of its tensors.
    """

    def __init__(self, folder: Path, stored: str) -> None:
        config = json.loads((folder / "config.json").read_text())
        self._config = config.get("text_config", config)
        self._stored = stored
        self._tensors = load_file(str(folder / "model.safetensors"))

    def weight(self, name: str) -> Array:
        """A layer's weight, (outputs, inputs)."""
        return self._tensors[f"{self._stored}{name}.weight"].astype(np.float64)

    def adapter(self, seed: int, *, rank: int = 4, dora: bool = False) -> Adapter:
        """A random adapter of three layers in each block."""
        chance = np.random.default_rng(seed)
        layers: dict[str, tuple[Array, Array, Array | None]] = {}
        for at in range(self._config["num_hidden_layers"]):
            for name in CHANGED:
                weight = self.weight(f"layers.{at}.{name}")
                a = chance.normal(size=(weight.shape[1], rank)) * 0.3 * math.sqrt(32 / weight.shape[1])
                b = chance.normal(size=(rank, weight.shape[0])) * 0.3
                lengths = np.linalg.norm(weight, axis=1) * chance.uniform(0.7, 1.3, weight.shape[0])
                own = lengths.astype(np.float32) if dora else None
                layers[f"layers.{at}.{name}"] = (a.astype(np.float32), b.astype(np.float32), own)
        return Adapter(layers=layers, rank=rank)

    def merged(self, folder: Path, adapter: Adapter, source: Path) -> Path:
        """A checkpoint whose weights are those under the adapter, in fp32."""
        folder.mkdir()
        for file in source.iterdir():
            folder.joinpath(file.name).write_bytes(file.read_bytes())
        changed = {
            f"{self._stored}{name}.weight": adapter.of(name, self.weight(name)).astype(np.float32, order="C")
            for name in adapter.layers
        }
        save_file({**self._tensors, **changed}, str(folder / "model.safetensors"))
        return folder

    def logprobs(self, tokens: list[int], adapter: Adapter | None = None) -> Array:
        """The log-probabilities behind each token, shape (tokens, vocabulary)."""
        own = adapter or Adapter(layers={}, rank=0)
        size, epsilon = len(tokens), self._config["rms_norm_eps"]
        heads, shared = self._config["num_attention_heads"], self._config["num_key_value_heads"]

        def linear(x: Array, name: str) -> Array:
            return x @ own.of(name, self.weight(name)).T

        def norm(x: Array, name: str) -> Array:
            return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * self.weight(name)

        def in_heads(x: Array, count: int) -> Array:
            return x.reshape(size, count, -1).transpose(1, 0, 2)

        x = self.weight("embed_tokens")[tokens]
        hidden = np.triu(np.full((size, size), -np.inf), k=1)
        for at in range(self._config["num_hidden_layers"]):
            layer = f"layers.{at}"
            y = norm(x, f"{layer}.input_layernorm")
            queries = self._turned(in_heads(linear(y, f"{layer}.self_attn.q_proj"), heads))
            keys = self._turned(in_heads(linear(y, f"{layer}.self_attn.k_proj"), shared))
            values = in_heads(linear(y, f"{layer}.self_attn.v_proj"), shared)
            keys, values = (part.repeat(heads // shared, axis=0) for part in (keys, values))
            scores = queries @ keys.transpose(0, 2, 1) / math.sqrt(queries.shape[-1]) + hidden
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ values
            x = x + linear(mixed.transpose(1, 0, 2).reshape(size, -1), f"{layer}.self_attn.o_proj")
            y = norm(x, f"{layer}.post_attention_layernorm")
            gate = linear(y, f"{layer}.mlp.gate_proj")
            x = x + linear(
                gate / (1 + np.exp(-gate)) * linear(y, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj"
            )
        head = self._tensors.get("lm_head.weight")
        logits = (
            norm(x, "norm") @ (self.weight("embed_tokens") if head is None else head.astype(np.float64)).T
        )
        logits -= logits.max(axis=-1, keepdims=True)
        found: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return found

    def score(self, tokens: list[int], adapter: Adapter | None = None) -> Array:
        """The log-probability of each token but the first, shape (tokens - 1,)."""
        found: Array = self.logprobs(tokens, adapter)[np.arange(len(tokens) - 1), tokens[1:]]
        return found

    def _turned(self, x: Array) -> Array:
        """Rotary positions of (heads, tokens, size): the first half of a head turns with the second."""
        half = x.shape[-1] // 2
        speeds = self._config["rope_theta"] ** (-np.arange(half) / half)
        angles = np.arange(x.shape[1])[:, None] * speeds
        one, other = x[..., :half], x[..., half:]
        return np.concatenate(
            [one * np.cos(angles) - other * np.sin(angles), other * np.cos(angles) + one * np.sin(angles)],
            axis=-1,
        )


__all__ = ["Adapter", "Llama"]
