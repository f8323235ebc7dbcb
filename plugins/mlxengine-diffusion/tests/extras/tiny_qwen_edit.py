"""A tiny Qwen-Image-Edit with random weights: the tiny Qwen-Image, whose text encoder sees; numpy alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiny_kit as k
import tiny_qwen_image as q
import tiny_z_image as z

PROMPT, NEGATIVE, STEPS = "make it red", "a square", 3
GUIDANCE = 4.0
# Pixels that pictures are scaled to, instead of the million and the 147,456 that are real.
AREA, SHOWN_AREA = 128 * 128, 96 * 96
SIZE = (160, 96)
TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
FIRST_TOKEN = 29  # behind the letters
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
    "window_size": 112,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
KINDS = {"one": "QwenImageEditPipeline", "two": "QwenImageEditPlusPipeline"}


def weight(part: str, name: str, shape: tuple[int, ...]) -> k.Array:
    """A tensor; what the encoder sees is strong enough to count."""
    return q.weight(part, name, shape) * np.float32(3 if "merger.mlp.2.weight" in name else 1)


def pictures() -> dict[str, tuple[k.Array, ...]]:
    """What is edited, by kind: (height, width, 3) of uint8 each, of odd sizes."""
    numbers = np.random.RandomState(11)

    def smooth(height: int, width: int) -> Any:
        coarse = numbers.randint(0, 256, (5, 5, 3)).astype(np.uint8)
        return np.repeat(np.repeat(coarse, -(-height // 5), 0), -(-width // 5), 1)[:height, :width].copy()

    first, second = smooth(75, 100), smooth(90, 60)
    return {"one": (first,), "two": (second, first)}


def noise() -> k.Array:
    """What a picture starts from: (1, places, channels)."""
    width, height = SIZE
    return np.random.RandomState(7).standard_normal((1, width * height // 256, 64)).astype(np.float32)


def write_words(folder: Path) -> None:
    """The letters, and the tokens that stand for turns and pictures."""
    from tokenizers import Tokenizer

    z.write_tokenizer(folder)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens(list(TOKENS))
    made.save(str(folder / "tokenizer.json"))


def write(folder: Path, kind: str = "one") -> Path:
    """Lay the repository out."""
    parts = {"transformer": q.TRANSFORMER, "text_encoder": {**q.TEXT, "vision_config": VISION}, "vae": q.VAE}
    z.write_parts(folder, json.loads((k.DATA / "qwen_edit.shapes.json").read_text()), parts, partial(weight))
    write_words(folder / "tokenizer")
    for name, document in {
        "scheduler/scheduler_config.json": q.SCHEDULER,
        "processor/preprocessor_config.json": PROCESSOR,
        "model_index.json": {"_class_name": KINDS[kind]},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(document))
    return folder
