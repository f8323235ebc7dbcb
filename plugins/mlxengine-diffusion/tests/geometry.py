"""Tiny models in the shape of Stable Diffusion 1, 2 and XL, with random weights that numpy alone makes.

Both sides of the comparison build the same weights from this module: `make_reference.py` for diffusers
on torch, and the tests for ours. Nothing but numpy is imported here.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES = ("sd1", "sd2", "sdxl")
SCHEDULERS = ("euler", "euler_ancestral", "ddim", "dpmpp_2m")
PREDICTIONS = ("epsilon", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
STEPS = 5
GUIDANCE = 4.0
PROMPT = "a red circle on a blue background"
NEGATIVE = "a small square"
WIDTH, HEIGHT, PIXELS_PER_LATENT = 24, 32, 2
STRENGTH = 0.6
DATA = Path(__file__).parent / "reference"

NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
_CLASSES = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}


def configs(family: str) -> dict[str, dict[str, Any]]:
    """The configuration of every part, as diffusers and transformers take them."""
    text: dict[str, Any] = {
        "vocab_size": 594,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu" if family == "sd1" else "gelu",
        "projection_dim": 24,
        "bos_token_id": 592,
        "eos_token_id": 593,
        "pad_token_id": 593,
        "model_type": "clip_text_model",
    }
    unet: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": [16, 32],
        "norm_num_groups": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "use_linear_projection": False,
    }
    if family != "sd1":
        unet |= {"attention_head_dim": [2, 4], "use_linear_projection": True}
    made = {"unet": unet, "text_encoder": text}
    if family == "sdxl":
        made["text_encoder_2"] = {**text, "hidden_size": 20, "projection_dim": 20, "hidden_act": "gelu"}
        unet |= {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 2,
            "transformer_layers_per_block": [1, 2],
            "cross_attention_dim": 44,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 20,
        }
    made["vae"] = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 32,
        "scaling_factor": 0.5,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    }
    return made


def scheduler_config(name: str, prediction: str, spacing: str) -> dict[str, Any]:
    """A ``scheduler_config.json``."""
    return {
        "_class_name": _CLASSES[name],
        **NOISE,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
    }


def random(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Standard normal numbers that depend on the name alone (numpy keeps this generator's stream fixed)."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weight(family: str, part: str, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A tensor of the size that training would give it; biases and norms are random as well."""
    values = random(f"{family}/{part}/{name}", shape)
    if len(shape) == 1:
        return values * np.float32(0.1) + np.float32(1.0 if name.endswith("weight") else 0.0)
    if "embedding.weight" in name:
        return values * np.float32(0.5)
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


def noise(index: int) -> np.ndarray[Any, Any]:
    """The starting noise (index 0) or what step ``index - 1`` adds: (1, height, width, 4)."""
    return random(f"noise/{index}", (1, HEIGHT // PIXELS_PER_LATENT, WIDTH // PIXELS_PER_LATENT, 4))


def picture() -> np.ndarray[Any, Any]:
    """A picture to start from: (HEIGHT, WIDTH, 3) uint8, smooth."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)]
    return np.round(127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


def shapes(family: str) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of every tensor, by part, as the torch side wrote them."""
    found: dict[str, dict[str, list[int]]] = json.loads((DATA / f"{family}.shapes.json").read_text())
    return found


def write_repository(family: str, folder: Path, tokenizer: Path, scheduler: dict[str, Any]) -> Path:
    """Lay the model out as a diffusers repository."""
    from safetensors.numpy import save_file

    parts = configs(family)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    for part, config in parts.items():
        target = folder / part
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(config))
        tensors = {
            name: weight(family, part, name, tuple(shape)) for name, shape in shapes(family)[part].items()
        }
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        save_file(tensors, target / f"{stem}.safetensors")
        if part.startswith("text_encoder"):
            last = part == "text_encoder_2"
            index[part] = ["transformers", "CLIPTextModelWithProjection" if last else "CLIPTextModel"]
            words = folder / part.replace("text_encoder", "tokenizer")
            words.mkdir()
            index[words.name] = ["transformers", "CLIPTokenizer"]
            for file in tokenizer.iterdir():
                (words / file.name).write_bytes(file.read_bytes())
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
