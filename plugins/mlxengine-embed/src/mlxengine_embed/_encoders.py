"""The encoders: our own, and adapters around the modules of mlx-embeddings.

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
from mlxengine.errors import BackendUnavailableError, UnsupportedArchitectureError
from mlxengine.toolkit.loading import descriptor_limit_kept

from . import _bert, _decoder, _t5
from ._architectures import LIBRARIES
from ._parts import Array, Encoder, additive, causal, near, renamed


def build_encoder(config: Mapping[str, Any]) -> Encoder:
    """The encoder that a normalised ``config.json`` describes, with weights that are still to be loaded.

    Raises:
        UnsupportedArchitectureError: nothing implements it, or not with these settings.
        BackendUnavailableError: the library that does cannot be imported.
    """
    kind = str(config.get("model_type"))
    if kind not in LIBRARIES:
        raise UnsupportedArchitectureError(
            f"The encoder architecture {kind!r} is not supported.",
            hint=f"Supported are {', '.join(sorted(LIBRARIES))}.",
        )
    library = LIBRARIES[kind]
    if library in _OWN:
        return _OWN[library](config, library)
    with descriptor_limit_kept():
        try:
            found = importlib.import_module(library)
        except ImportError as error:
            raise BackendUnavailableError(
                f"{library} cannot be imported: {error}", hint='Install "mlxengine[embed]" again.'
            ) from error
    return _ADAPTERS[kind](config, found, library)


def _modernbert(config: Mapping[str, Any], library: Any, name: str) -> Encoder:
    module = library.ModernBertModel(library.ModelArgs.from_dict(dict(config)))
    for layer in module.layers:
        # The library's GELU(approx="precise") is the tanh approximation; ModernBERT's is the exact one.
        layer.mlp.act = nn.GELU()
    reach = int(config.get("local_attention", 128)) // 2

    def forward(ids: Array, valid: Array | None, types: Array | None) -> Array:  # noqa: ARG001
        hidden = module.embeddings(ids)
        close = near(ids.shape[1], reach)
        keys = None if valid is None else valid[:, None, None, :]
        full = None if keys is None else additive(keys, hidden.dtype)
        local = close if keys is None else keys if close is None else keys & close
        local = None if local is None else additive(local, hidden.dtype)
        for layer in module.layers:
            hidden = layer(hidden, attention_mask=full, sliding_window_mask=local)[0]
        return module.final_norm(hidden)

    return Encoder(
        module=module,
        forward=forward,
        rename=renamed((), r"head\.|decoder\.|classifier\.", r"model\."),
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
            full = causal(length) if full is None else causal(length) & full
        close = near(length, reach)
        local = full if close is None else close if full is None else full & close
        masks = [None if mask is None else additive(mask, hidden.dtype) for mask in (local, full)]
        for index, layer in enumerate(module.layers):
            whole = (index + 1) % args.sliding_window_pattern == 0
            hidden = layer(hidden, masks[whole], None)
        return module.norm(hidden)

    return Encoder(
        module=module,
        forward=forward,
        rename=renamed((), r"lm_head\.|dense\.", r"model\."),
        hidden_size=args.hidden_size,
        positions=None,
        pad=int(config.get("pad_token_id") or 0),
        library=name,
    )


_OWN: Mapping[str, Callable[[Mapping[str, Any], str], Encoder]] = {
    module.__name__: module.build for module in (_bert, _decoder, _t5)
}
_ADAPTERS: Mapping[str, Callable[[Mapping[str, Any], Any, str], Encoder]] = {
    "modernbert": _modernbert,
    "gemma3_text": _gemma3,
}

__all__ = ["Encoder", "build_encoder"]
