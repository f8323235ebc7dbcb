"""A tiny Z-Image with random weights; only numpy is imported here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tiny_kit as k

PROMPT, NEGATIVE, SIDE, STEPS = "a red circle", "a square", 128, 4
TRANSFORMER: dict[str, Any] = {
    "dim": 256,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 8,
    "n_kv_heads": 8,
    "cap_feat_dim": 32,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1024, 512, 512],
}
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
}
VAE: dict[str, Any] = {**k.VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159}


def write_tokenizer(folder: Path) -> None:
    """Letters as tokens, and a template that is the message itself."""
    folder.mkdir(parents=True, exist_ok=True)
    k.write_t5_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages[0].content }}"})
    )


def write_parts(
    folder: Path,
    shapes: Mapping[str, Mapping[str, Sequence[int]]],
    configs: Mapping[str, Mapping[str, Any]],
    weight: Callable[[str, str, tuple[int, ...]], k.Array],
) -> None:
    """Configurations and weights, a folder a part; ``weight`` is asked by part, name and shape."""
    from safetensors.numpy import save_file

    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        tensors = {name: weight(part, name, tuple(shape)) for name, shape in shapes[part].items()}
        save_file(tensors, folder / part / "model.safetensors")


def write(folder: Path) -> Path:
    """Lay the repository out."""
    parts = {"transformer": TRANSFORMER, "text_encoder": TEXT, "vae": VAE}
    write_parts(
        folder, json.loads((k.DATA / "z_image.shapes.json").read_text()), parts, partial(k.weight, "z_image")
    )
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"shift": 3.0}))
    write_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ZImagePipeline"}))
    return folder
