"""The encoders, one adapter for each architecture, around the modules of mlx-embeddings.

An adapter builds the library's module from a normalised ``config.json``, says how the checkpoint's tensors
are called in it, and runs the module with masks of its own: the library's ignore sliding windows, or turn
padding into NaN, for some architectures.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import frozen
from mlxengine.errors import UnsupportedArchitectureError

from ._architectures import LIBRARIES

Array = Any  # an mlx array; mlx ships no types that survive strict checking


@frozen(kw_only=True)
class Encoder:
    """A built encoder.

    Args:
        module: the ``mlx.nn.Module`` whose parameters are loaded.
        forward: ``(ids, valid, types) -> hidden``: (batch, length) int32 token ids, (batch, length) bool
            (true where a token is; ``None`` if every position has one), token types or ``None``; the result
            is (batch, length, hidden size).
        rename: the module's name of a checkpoint's tensor, ``None`` for one that the encoder has no use for.
        hidden_size: width of ``hidden``.
        positions: how many positions there are at most, ``None`` if there is no fixed table.
        pad: the token id that fills up a row.
        types: whether the encoder tells the two texts of a pair apart.
        library: the module that it came from.
    """

    module: Any
    forward: Callable[[Array, Array | None, Array | None], Array]
    rename: Callable[[str], str | None]
    hidden_size: int
    positions: int | None
    pad: int
    library: str
    types: bool = False


def build_encoder(config: Mapping[str, Any]) -> Encoder:
    """The encoder that a normalised ``config.json`` describes, with weights that are still to be loaded.

    Raises:
        UnsupportedArchitectureError: no library implements it, or not with these settings.
    """
    kind = str(config.get("model_type"))
    builder = _BUILDERS.get(kind)
    if builder is None:
        raise UnsupportedArchitectureError(
            f"The encoder architecture {kind!r} is not supported.",
            hint=f"Supported are {', '.join(sorted(LIBRARIES))}.",
        )
    return builder(config, importlib.import_module(LIBRARIES[kind]), LIBRARIES[kind])


def additive(allowed: Array, dtype: Any) -> Array:
    """0 where attention is allowed, a very negative finite number elsewhere (so that no row can be NaN)."""
    return mx.where(allowed, mx.array(0, dtype), mx.array(-1e9 if dtype == mx.float32 else -3e4, dtype))


def _bert(config: Mapping[str, Any], library: Any, name: str) -> Encoder:
    roberta = config["model_type"] != "bert"
    module = library.Model(library.ModelArgs.from_dict(dict(config)))
    module.pooler = None

    def forward(ids: Array, valid: Array | None, types: Array | None) -> Array:
        hidden = module.embeddings(ids, types)
        mask = None if valid is None else additive(valid[:, None, None, :], hidden.dtype)
        encoded = module.encoder(hidden, mask)
        return encoded[0] if roberta else encoded

    def rename(key: str) -> str | None:
        for prefix in ("bert.", "roberta."):
            key = key.removeprefix(prefix)
        key = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        unused = ("pooler.", "cls.", "lm_head.", "classifier.", "dense.")
        return None if key.startswith(unused) or key.endswith("position_ids") else key

    pad = int(config.get("pad_token_id", 1) or 0) if roberta else int(config.get("pad_token_id") or 0)
    table = int(config["max_position_embeddings"])
    return Encoder(
        module=module,
        forward=forward,
        rename=rename,
        hidden_size=int(config["hidden_size"]),
        # RoBERTa counts positions from the padding token's id + 1.
        positions=table - pad - 1 if roberta else table,
        pad=pad,
        library=name,
        types=int(config.get("type_vocab_size", 2)) > 1,
    )


def _modernbert(config: Mapping[str, Any], library: Any, name: str) -> Encoder:
    module = library.ModernBertModel(library.ModelArgs.from_dict(dict(config)))
    for layer in module.layers:
        # The library's GELU(approx="precise") is the tanh approximation; ModernBERT's is the exact one.
        layer.mlp.act = nn.GELU()
    reach = int(config.get("local_attention", 128)) // 2

    def forward(ids: Array, valid: Array | None, types: Array | None) -> Array:  # noqa: ARG001
        hidden = module.embeddings(ids)
        near = _near(ids.shape[1], reach)
        keys = None if valid is None else valid[:, None, None, :]
        full = None if keys is None else additive(keys, hidden.dtype)
        local = near if keys is None else keys if near is None else keys & near
        local = None if local is None else additive(local, hidden.dtype)
        for layer in module.layers:
            hidden = layer(hidden, attention_mask=full, sliding_window_mask=local)[0]
        return module.final_norm(hidden)

    return Encoder(
        module=module,
        forward=forward,
        rename=_strip("model.", unused=("head.", "decoder.", "classifier.")),
        hidden_size=int(config["hidden_size"]),
        positions=None,
        pad=int(config.get("pad_token_id") or 0),
        library=name,
    )


def _qwen3(config: Mapping[str, Any], library: Any, name: str) -> Encoder:
    module = library.Qwen3Model(library.ModelArgs.from_dict(dict(config)))

    def forward(ids: Array, valid: Array | None, types: Array | None) -> Array:  # noqa: ARG001
        # Padding is on the right, so the causal mask alone keeps every real token from seeing it.
        length = ids.shape[1]
        allowed = mx.tril(mx.ones((length, length), dtype=mx.bool_))[None, None]
        return module(ids, attention_mask=additive(allowed, _dtype(module.norm)))

    return Encoder(
        module=module,
        forward=forward,
        rename=_strip("model.", unused=("lm_head.",)),
        hidden_size=int(config["hidden_size"]),
        positions=None,
        pad=int(config.get("pad_token_id") or 0),
        library=name,
    )


def _gemma3(config: Mapping[str, Any], library: Any, name: str) -> Encoder:
    args = library.ModelArgs.from_dict(dict(config))
    module = library.Gemma3Model(args)
    both_ways = bool(config.get("use_bidirectional_attention"))
    # The checkpoint gives the whole window; read both ways, half of it lies on either side.
    reach = args.sliding_window // 2 if both_ways else args.sliding_window - 1

    def forward(ids: Array, valid: Array | None, types: Array | None) -> Array:  # noqa: ARG001
        length = ids.shape[1]
        hidden = module.embed_tokens(ids)
        hidden = hidden * mx.array(args.hidden_size**0.5, hidden.dtype)
        full = None if valid is None else valid[:, None, None, :]
        if not both_ways:
            causal = mx.tril(mx.ones((length, length), dtype=mx.bool_))[None, None]
            full = causal if full is None else causal & full
        near = _near(length, reach)
        local = full if near is None else near if full is None else full & near
        masks = [None if mask is None else additive(mask, hidden.dtype) for mask in (local, full)]
        for index, layer in enumerate(module.layers):
            whole = (index + 1) % args.sliding_window_pattern == 0
            hidden = layer(hidden, masks[whole], None)
        return module.norm(hidden)

    return Encoder(
        module=module,
        forward=forward,
        rename=_strip("model.", unused=("lm_head.", "dense.")),
        hidden_size=args.hidden_size,
        positions=None,
        pad=int(config.get("pad_token_id") or 0),
        library=name,
    )


def _near(length: int, reach: int) -> Array | None:
    """(1, 1, length, length), true where two positions are at most ``reach`` apart; ``None`` if all are."""
    if length - 1 <= reach:
        return None
    places = mx.arange(length)
    return (mx.abs(places[:, None] - places[None, :]) <= reach)[None, None]


def _dtype(norm: Any) -> Any:
    return norm.weight.dtype


def _strip(prefix: str, unused: tuple[str, ...]) -> Callable[[str], str | None]:
    def rename(key: str) -> str | None:
        key = key.removeprefix(prefix)
        return None if key.startswith(unused) or key.endswith("rotary_emb.inv_freq") else key

    return rename


_BUILDERS: Mapping[str, Callable[[Mapping[str, Any], Any, str], Encoder]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "camembert": _bert,
    "modernbert": _modernbert,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
}

__all__ = ["Encoder", "additive", "build_encoder"]
