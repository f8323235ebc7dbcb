"""A tiny FLUX.2 klein with random weights; only numpy is imported here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny_kit as k
import tiny_z_image as z

PROMPT, SIDE, STEPS = "a red circle", 64, 4
GUIDANCES = {"plain": 1.0, "guided": 4.0}
TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 128,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 96,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": [8, 8, 8, 8],
    "rope_theta": 2000,
    "guidance_embeds": False,
}
# The states after layers 9, 18 and 27 are what the transformer reads.
TEXT: dict[str, Any] = {**z.TEXT, "num_hidden_layers": 28}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 32,
    "block_out_channels": [32, 32, 64, 64],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "patch_size": [2, 2],
}


def weight(part: str, name: str, shape: tuple[int, ...]) -> k.Array:
    """A tensor; variances are positive."""
    values = k.weight("flux2", part, name, shape)
    return np.abs(values) + np.float32(0.5) if name.endswith("running_var") else values


def noise() -> k.Array:
    """What a picture starts from: (1, places, channels)."""
    return np.random.RandomState(5).standard_normal((1, (SIDE // 16) ** 2, 128)).astype(np.float32)


def write(folder: Path) -> Path:
    """Lay the repository out."""
    parts = {"transformer": TRANSFORMER, "text_encoder": TEXT, "vae": VAE}
    z.write_parts(folder, json.loads((k.DATA / "flux2.shapes.json").read_text()), parts, weight)
    z.write_tokenizer(folder / "tokenizer")
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
