"""A tiny Qwen-Image with random weights; only numpy is imported here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny_kit as k
import tiny_z_image as z

PROMPT, NEGATIVE, SIDE, STEPS = "a red circle", "a square", 128, 4
GUIDANCES = {"plain": 1.0, "guided": 8.0}
TRANSFORMER: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "guidance_embeds": False,
    "axes_dims_rope": [8, 12, 12],
}
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
}
# The part that looks at pictures, which nobody asks here.
VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [0],
}
VAE: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.01 * (number - 8) for number in range(16)],
    "latents_std": [1 + 0.1 * number for number in range(16)],
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}


def weight(part: str, name: str, shape: tuple[int, ...]) -> k.Array:
    """A tensor; what carries the prompt's words, and the picture, is strong enough to be seen."""
    strong = "add_v_proj.weight" in name or "attn.to_out" in name or name == "decoder.conv_out.weight"
    return k.weight("qwen_image", part, name, shape) * np.float32(4 if strong else 1)


def write(folder: Path) -> Path:
    """Lay the repository out."""
    parts = {"transformer": TRANSFORMER, "text_encoder": TEXT, "vae": VAE}
    shapes = json.loads((k.DATA / "qwen_image.shapes.json").read_text())
    z.write_parts(folder, shapes, parts, weight)
    z.write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline"}))
    return folder
