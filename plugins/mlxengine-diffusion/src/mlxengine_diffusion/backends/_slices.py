"""Small things that the back ends share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxengine import ModelCard
from mlxengine.errors import IncompatibleWeightsError, MLXEngineError, RemoteCodeRefusedError

from ..sd.config import tile_side
from ..sd.layout import document
from . import Offer, _memory
from ._memory import Shape, Stage
from ._work import Pixels

if TYPE_CHECKING:
    import mlx.core as mx

FLOW_PARTS = ("text_encoder", "transformer", "vae")
_SLICE_BYTES = 64 * 2**20
_TOKENS = 512
# Tensors of text encoders that nothing is built of: heads, halves that see, and copies.
_UNSEEING = r"^lm_head\."
_BESIDE, _LOOKED = 2**20 // 256, 2**20 // 28**2  # places of a picture of a million pixels, and its tokens
_UNREAD = r"^lm_head\.|^(model\.)?visual\.|^encoder\.embed_tokens\."


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


def as_pixels(picture: mx.array) -> Pixels:
    """A decoder's output (height, width, 3), about -1 to 1, as a picture."""
    import mlx.core as mx
    import numpy as np

    scaled = mx.clip(picture.astype(mx.float32) / 2 + 0.5, 0, 1) * 255
    found: Pixels = np.array(mx.round(scaled).astype(mx.uint8))
    return found


def flow_offer(
    card: ModelCard,
    parts: Sequence[str] = FLOW_PARTS,
    tokenizers: Sequence[str] = ("tokenizer",),
    *,
    problem: MLXEngineError | None = None,
    half_vae: bool = False,
    sees: bool = False,
    copies: int = 20,
) -> Offer:
    """The offer for a diffusers repository of text encoders, a transformer and an autoencoder; pure.

    Args:
        half_vae: whether the autoencoder computes in half precision where the other parts do.
        sees: whether its text encoder looks at pictures, of a million pixels, whose latents stand beside.
        copies: how many features of its transformer live at once on a CPU.
    """
    if any("auto_map" in document(card, f"{name}/tokenizer_config.json") for name in tokenizers):
        problem = RemoteCodeRefusedError(
            f"The tokenizer of {card.id} wants to run the repository's own code."
        )
    names = card.names(".safetensors")
    if absent := [part for part in parts if not any(name.startswith(f"{part}/") for name in names)]:
        problem = IncompatibleWeightsError(f"{card.id} has no safetensors weights for {', '.join(absent)}.")
    documents = ("model_index.json", "*/*config.json", "*/*.index.json")
    words = (f"{name}/*.{end}" for name in tokenizers for end in ("json", "txt", "jinja", "model"))
    return Offer(
        files=(*documents, *words, *(f"{part}/*.safetensors" for part in parts)),
        problem=problem,
        stages=partial(_stages, card, tuple(parts), half_vae, sees, copies),
    )


def _stages(
    card: ModelCard, parts: Sequence[str], half_vae: bool, sees: bool, copies: int, shape: Shape
) -> list[Stage]:
    width = 4 if shape.on_cpu else 2
    made = []
    for part in parts:
        config = document(card, f"{part}/config.json")
        own = 4 if part == "vae" and not half_vae else width
        tensors = [item for item in card.tensors if item.file.startswith(f"{part}/")]
        numbers = _memory.count(tensors, _UNSEEING if sees else _UNREAD)
        unread = own * _memory.encoding(tensors) if part == "vae" else 0
        if part == "vae":
            workspace = _memory.autoencoder(config, shape, tile_side(config), own, waits=half_vae)
        elif part == "transformer":
            tokens = shape.width * shape.height // 256 + _TOKENS + (_BESIDE if sees else 0)
            workspace = _memory.transformer(config, tokens, shape, own, copies)
        else:
            workspace = _memory.encoder(config, _TOKENS + (_LOOKED if sees else 0), shape, own)
        made.append(Stage(part=part, weights=own * numbers, workspace=workspace, unread=unread))
    return made


__all__ = ["FLOW_PARTS", "as_pixels", "flow_offer", "steps_for", "warm"]
