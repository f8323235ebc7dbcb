"""A tiny FLUX.1 dev with random weights; only numpy is imported here."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import tiny_kit as k
import tiny_z_image as z

PROMPT, SIDE, STEPS, GUIDANCE = "a red circle", 128, 4, 3.5
TRANSFORMER: dict[str, Any] = {**k.FLUX, "guidance_embeds": True}
CLIP: dict[str, Any] = k.clip(48, projection=False)
T5: dict[str, Any] = {**k.t5("flux"), "d_kv": 16}
VAE: dict[str, Any] = {**k.VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159}
SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift": 3.0,
}
# Schnell takes no guidance and does not shift its noise levels.
FILL = {"in_channels": 384, "out_channels": 64}
SCHNELL = {"guidance_embeds": False}, {**SCHEDULER, "use_dynamic_shifting": False, "shift": 1.0}

# Schedulers, and (steps, places), whose noise levels are stored.
LEVELS: dict[str, dict[str, Any]] = {
    "dev": {name: value for name, value in SCHEDULER.items() if name != "_class_name"},
    "schnell": {"shift": 1.0},
    "fixed": {"shift": 3.0},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "stretched": {"use_dynamic_shifting": True, "max_shift": 0.9, "shift_terminal": 0.02},
}
WALKS = ((4, 64), (4, 4096), (28, 1024))
SIGLIP: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 22,
    "patch_size": 5,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
# What Redux is told, by the name of what is stored: prompt, and each picture's strength.
REDUX: dict[str, tuple[str, tuple[float, ...]]] = {
    "a picture": ("", (1.0,)),
    "two pictures": ("", (0.7, 0.4)),
    "a picture and a prompt": (PROMPT, (1.0,)),
}


# Models of the family for one task each, by the name of the stored picture.
PIPELINES = {"fill": "FluxFillPipeline", "looking at one": "FluxKontextPipeline"}


def write_redux(folder: Path) -> Path:
    """Lay an image-prompt adapter out as its authors do."""
    from safetensors.numpy import save_file

    shapes = json.loads((k.DATA / "redux.shapes.json").read_text())
    tensors = {
        part: {name: k.weight("redux", part, name, tuple(shape)) for name, shape in names.items()}
        for part, names in shapes.items()
    }
    (folder / "image_encoder").mkdir(parents=True)
    (folder / "image_encoder" / "config.json").write_text(json.dumps(SIGLIP))
    save_file(tensors["image_encoder"], folder / "image_encoder" / "model.safetensors")
    save_file(tensors["image_embedder"], folder / "flux1-redux-dev.safetensors")
    return folder


def write(folder: Path, clip_tokenizer: Path, *, schnell: bool = False, kind: str = "") -> Path:
    """Lay the repository out."""
    shapes = json.loads((k.DATA / "flux1.shapes.json").read_text())
    network, scheduler = ({**TRANSFORMER, **SCHNELL[0]}, SCHNELL[1]) if schnell else (TRANSFORMER, SCHEDULER)
    if schnell:
        names = shapes["transformer"]
        shapes["transformer"] = {name: names[name] for name in names if "guidance_embedder" not in name}
    if kind == "fill":
        network = {**network, **FILL}
        wide = FILL["in_channels"]
        shapes["transformer"]["x_embedder.weight"] = [shapes["transformer"]["x_embedder.weight"][0], wide]
    parts = {"transformer": network, "text_encoder": CLIP, "text_encoder_2": T5, "vae": VAE}
    z.write_parts(folder, shapes, parts, partial(k.weight, "flux1"))
    shutil.copytree(clip_tokenizer, folder / "tokenizer", copy_function=shutil.copyfile)
    (folder / "tokenizer_2").mkdir()
    k.write_t5_tokenizer(folder / "tokenizer_2")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": PIPELINES.get(kind, "FluxPipeline")}))
    return folder
