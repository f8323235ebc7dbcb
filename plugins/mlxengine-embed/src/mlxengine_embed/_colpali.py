"""ColPali (Faysse et al. 2024): a picture's patches, and a query's tokens, to one vector each.

PaliGemma reads both: SigLIP's tower, a projection, and Gemma's layers, in which all positions see each other.
Modules are named as transformers' checkpoints name their tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import _decoder, _towers
from ._parts import Array, Group, additive, renamed
from ._sight import Sight
from ._tokenize import Tokenizer, Tokens
from ._towers import Vision

AUGMENTS = 10
"""How many filling tokens a query ends with, in which the model may think."""


class ColPali(nn.Module):  # type: ignore[misc]
    """The network."""

    def __init__(self, sight: Sight) -> None:
        super().__init__()
        self.vision_tower = Vision(sight.vision, clip=False)
        size = int(sight.text["hidden_size"])
        self.multi_modal_projector = Group(linear=nn.Linear(sight.vision["hidden_size"], size))
        self.language_model = _decoder.build(sight.text, _decoder.__name__).module
        self.embedding_proj_layer = nn.Linear(size, sight.dimension)
        self._scale = size**0.5

    def tokens(self, ids: Array, valid: Array, pixels: Array | None) -> Array:
        """(rows, length, dimension).

        Args:
            ids: (rows, length) token ids; those in the places of patches, which come first, say nothing.
            valid: (rows, length), where a token is.
            pixels: (rows, height, width, 3) of pictures, ``None`` of texts.
        """
        model = self.language_model
        if pixels is None:
            hidden = model.embed_tokens(ids) * self._scale
        else:
            seen = self.multi_modal_projector.linear(self.vision_tower.patches(pixels))
            hidden = model.embed_tokens(ids[:, seen.shape[1] :]) * self._scale
            hidden = mx.concatenate([seen, hidden], axis=1)
        mask = additive(valid[:, None, None, :], hidden.dtype)
        for layer in model.layers:
            hidden = hidden + layer.self_attn(layer.input_layernorm(hidden), mask)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.embedding_proj_layer(model.norm(hidden))


rename = renamed(
    ((r"^language_model\.model\.", "language_model."), (r"^vision_tower\.vision_model\.", "vision_tower.")),
    r"language_model\.lm_head\.|vision_tower\.head\.",
    r"vlm\.(?:model\.)?",
)
"""The module's name of a checkpoint's tensor, as older and newer versions of transformers write it."""


def prepare(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """The checkpoint's tensors as the modules keep them: Gemma's norms are stored around 0."""
    gemma = re.compile(r"language_model\..*norm\.weight$")
    turned = _towers.prepare(weights)
    return {key: value + 1 if gemma.search(key) else value for key, value in turned.items()}


class Questions(Tokenizer):
    """Reads every text as a question to documents, as the model was trained on them.

    Args:
        folder, max_length, cap: as of any `Tokenizer`.
        prefix: what stands before each.
    """

    def __init__(self, folder: Path, *, max_length: int | None, cap: int | None, prefix: str) -> None:
        super().__init__(folder, max_length=max_length, cap=cap, lower_case=False)
        self._special = False  # a text has its own
        self._frame = f"{self.whole.bos_token}{prefix}", f"{self.whole.pad_token * AUGMENTS}\n"

    def _encode(self, inputs: list[Any]) -> list[Tokens]:
        start, end = self._frame
        return super()._encode([f"{start}{text}{end}" for text in inputs])


__all__ = ["AUGMENTS", "ColPali", "Questions", "prepare", "rename"]
