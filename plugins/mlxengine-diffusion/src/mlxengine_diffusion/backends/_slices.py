"""Small things that the back ends share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from mlxengine import ModelCard
from mlxengine.errors import IncompatibleWeightsError, MLXEngineError, RemoteCodeRefusedError

from ..sd.layout import document
from . import Offer

FLOW_PARTS = ("text_encoder", "transformer", "vae")
_SLICE_BYTES = 64 * 2**20


def warm(networks: Iterable[Any]) -> Iterator[None]:
    """Evaluate the weights of networks, some at a time."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    for network in networks:
        batch: list[Any] = []
        size = 0
        flat: list[tuple[str, Any]] = tree_flatten(network.parameters())
        for _, array in flat:
            batch.append(array)
            size += array.nbytes
            if size >= _SLICE_BYTES:
                mx.eval(batch)
                batch, size = [], 0
                yield
        mx.eval(batch)
        yield


def steps_for(steps: int, strength: float) -> int:
    """How many of ``steps`` image-to-image takes: their share ``strength``, at least one unless it is 0."""
    return 0 if strength == 0 else min(steps, max(1, math.floor(steps * strength + 1e-6)))


__all__ = ["steps_for", "warm"]


def flow_offer(card: ModelCard) -> Offer:
    """The offer for a diffusers repository of one text encoder, a transformer and an autoencoder; pure."""
    problem: MLXEngineError | None = None
    if "auto_map" in document(card, "tokenizer/tokenizer_config.json"):
        problem = RemoteCodeRefusedError(
            f"The tokenizer of {card.id} wants to run the repository's own code."
        )
    names = card.names(".safetensors")
    if absent := [part for part in FLOW_PARTS if not any(name.startswith(f"{part}/") for name in names)]:
        problem = IncompatibleWeightsError(f"{card.id} has no safetensors weights for {', '.join(absent)}.")
    documents = ("model_index.json", "*/*config.json", "*/*.index.json")
    words = ("tokenizer/*.json", "tokenizer/*.txt", "tokenizer/*.jinja")
    return Offer(
        files=(*documents, *words, *(f"{part}/*.safetensors" for part in FLOW_PARTS)), problem=problem
    )
