"""Qwen-Image-Edit: the text encoder sees the pictures, whose latents stand beside those of the new one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from attrs import evolve, field, frozen
from mflux.models.qwen.model.qwen_text_encoder.qwen_vision_mlp import VisionMLP
from mflux.models.qwen.model.qwen_text_encoder.qwen_vision_transformer import VisionTransformer
from mlxengine import LoadContext, ModelCard
from mlxengine.errors import IncompatibleWeightsError

from ..._pictures import area_size, pixels_of
from ...sd.layout import document
from .._work import Job, Pixels
from .qwen_image import LENGTH, QwenImage, Told, arguments

AREA = 1024 * 1024
"""Pixels of what is edited, and of the new picture where nobody says its size."""
_SHOWN_AREA = 384 * 384
_MOST = 3
# What its authors wrap prompts in.
_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a "
    "new image that meets the user's requirements while maintaining consistency with the original input "
    "where appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
_PAD = "<|image_pad|>"
_PICTURE = f"<|vision_start|>{_PAD}<|vision_end|>"


@frozen(eq=False)
class _Seen:
    """Pictures beside the one that is made: latents (1, places, channels), and each one's places."""

    rows: mx.array
    grids: list[tuple[int, int, int]] = field(factory=list)


def load(card: ModelCard, context: LoadContext) -> QwenImageEdit:
    """A model that edits one picture, or with the later pipeline up to three."""
    several = document(card, "model_index.json").get("_class_name") == "QwenImageEditPlusPipeline"
    positional, named = arguments(card, context, seeing)
    abilities = evolve(positional[2], references=_MOST if several else 1, reference_area=AREA, edits=True)
    processor = _processor(context.path / "processor")
    return QwenImageEdit(
        *positional[:2], abilities, *positional[3:], processor=processor, several=several, **named
    )


def _processor(folder: Path) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    if not (folder / "preprocessor_config.json").is_file():
        raise IncompatibleWeightsError(
            f"{folder} has no preprocessor_config.json: it says how the text encoder is shown pictures."
        )
    return Qwen2VLImageProcessorPil.from_pretrained(str(folder), local_files_only=True)


def seeing(config: dict[str, Any], made: Any) -> tuple[tuple[str, str], ...]:
    """Give a text encoder its eyes; how their parameters are called in a checkpoint."""
    vision = config["vision_config"]
    width = vision["hidden_size"]
    made.visual = VisionTransformer(
        patch_size=vision.get("patch_size", 14),
        temporal_patch_size=vision.get("temporal_patch_size", 2),
        in_channels=vision.get("in_channels") or vision.get("in_chans") or 3,
        embed_dim=width,
        depth=vision["depth"],
        num_heads=vision["num_heads"],
        hidden_size=vision["out_hidden_size"],
        spatial_merge_size=vision.get("spatial_merge_size", 2),
        window_size=vision.get("window_size", 112),
        fullatt_block_indexes=list(vision["fullatt_block_indexes"]),
    )
    for block in made.visual.blocks:
        block.mlp = VisionMLP(width, vision["intermediate_size"])
    return (
        (r"^visual\.merger\.mlp_0\.", "visual.merger.mlp.0."),
        (r"^visual\.merger\.mlp_1\.", "visual.merger.mlp.2."),
    )


class QwenImageEdit(QwenImage):
    """A loaded Qwen-Image-Edit."""

    dropped = 64

    def __init__(self, *positional: Any, processor: Any, several: bool, **named: Any) -> None:
        super().__init__(*positional, **named)
        self._processor = processor
        self._several = several

    def _ids(self, prompt: str, counts: Sequence[int] = ()) -> list[int]:
        """Tokens of a prompt, behind pictures of so many places each."""
        names = (f"Picture {number}: " if self._several else "" for number in range(1, len(counts) + 1))
        shown = (
            name + _PICTURE.replace(_PAD, _PAD * count) for name, count in zip(names, counts, strict=True)
        )
        return list(self._tokenizer(_TEMPLATE.format("".join(shown) + prompt), verbose=False).input_ids)

    def _told(self, job: Job) -> Generator[None, None, list[Told]]:
        told = []
        with self._use("text_encoder", job) as encoder:
            features, grids = yield from self._looked(encoder, job)
            counts = [height * width for height, width in grids]
            for prompt in self._prompts(job):
                ids = self._ids(prompt, counts)[: self.dropped + sum(counts) + 8 * len(counts) + LENGTH]
                states = self._states(encoder, ids, features, grids)[:, self.dropped :]
                mx.eval(states)
                told.append(Told(states, mx.ones(states.shape[:2], dtype=mx.int32)))
                yield None
        return told

    def _looked(
        self, encoder: Any, job: Job
    ) -> Generator[None, None, tuple[list[mx.array], list[tuple[int, int]]]]:
        """What the encoder sees of each picture, (places, width), and the rows and columns of its places."""
        features, grids = [], []
        for picture in job.references:
            shown = self._processor(
                images=[_fitted(picture, _SHOWN_AREA if self._several else AREA)], return_tensors="np"
            )
            grid = shown["image_grid_thw"]
            patches = mx.array(shown["pixel_values"]).astype(encoder.embed_tokens.weight.dtype)
            features.append(encoder.visual(patches, mx.array(grid)))
            mx.eval(features[-1])
            _, height, width = (int(side) for side in grid[0])
            merged = encoder.visual.spatial_merge_size
            grids.append((height // merged, width // merged))
            yield None
        return features, grids

    def _states(
        self, encoder: Any, ids: list[int], features: list[mx.array], grids: list[tuple[int, int]]
    ) -> mx.array:
        """The encoder's states (1, tokens, width): pictures where their tokens are."""
        x = encoder.embed_tokens(mx.array([ids]))
        if features:
            pads = np.flatnonzero(np.array(ids) == self._tokenizer.convert_tokens_to_ids(_PAD))
            x[0, mx.array(pads)] = mx.concatenate(features).astype(x.dtype)
            places = _places(len(ids), pads, grids)
        else:
            places = np.broadcast_to(np.arange(len(ids)), (3, len(ids)))
        sections = encoder.layers[0].self_attn.rope_scaling["mrope_section"]
        turned = [_shared(item, sections) for item in encoder.rotary_emb(x, mx.array(places)[:, None])]
        mask = nn.MultiHeadAttention.create_additive_causal_mask(len(ids))[None, None]
        for layer in encoder.layers:
            x = layer(x, mask, turned)
        found: mx.array = encoder.norm(x)
        return found

    def _seen(self, job: Job) -> Generator[None, None, _Seen | None]:
        """The latents of the pictures."""
        rows, grids = [], []
        for picture in job.references:
            latents = yield from self._encoded(_fitted(picture, AREA), job)
            rows.append(self._laid(latents))
            grids.append((1, latents.shape[1] // 2, latents.shape[2] // 2))
        return _Seen(mx.concatenate(rows, axis=1), grids) if rows else None


def _fitted(picture: Pixels, area: int) -> Pixels:
    from PIL import Image

    return pixels_of(Image.fromarray(picture), area_size(picture.shape[1::-1], area))


def _shared(turns: mx.array, sections: Sequence[int]) -> mx.array:
    """Sines or cosines (3, 1, tokens, width) by coordinate, as the encoder's layers take them.

    Both halves of a head are shared by the coordinates in ``sections``; the library's layers share the whole
    of it once, which is the same where the coordinates are. So each of the three is given what is wanted.
    """
    ends = np.cumsum([*sections, *sections])[:-1].tolist()
    wanted = [part[number % 3] for number, part in enumerate(mx.split(turns, ends, axis=-1))]
    return mx.broadcast_to(mx.concatenate(wanted, axis=-1), turns.shape)


def _places(count: int, pads: np.ndarray[Any, Any], grids: Sequence[tuple[int, int]]) -> np.ndarray[Any, Any]:
    """The three coordinates of every token, (3, count).

    Texts run along all three; a picture's tokens stand at one time, in rows and columns, and what follows
    is behind the longer of its sides (Qwen2-VL, arXiv:2409.12191, section 2.1).
    """
    found: np.ndarray[Any, Any] = np.zeros((3, count), np.int64)
    at = following = 0
    for height, width in grids:
        first = int(pads[0])
        found[:, at:first] = following + np.arange(first - at)
        following += first - at
        rows, columns = np.divmod(np.arange(height * width), width)
        at = first + height * width
        found[:, first:at] = following + np.stack([np.zeros_like(rows), rows, columns])
        following += max(height, width)
        pads = pads[height * width :]
    found[:, at:] = following + np.arange(count - at)
    return found


__all__ = ["AREA", "QwenImageEdit", "load"]
