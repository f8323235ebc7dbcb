"""Repositories of picture models in their real shapes, written here with zeros or random numbers for weights.

Geometry is as the authors' repositories have it; `write` needs the libraries that the model is served by.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import random_weights
from benchmarks.random_weights import Numbers

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tests" / "models" / "tiny-shapes-sd" / "tokenizer"
sys.path[:0] = [
    str(ROOT / "core"),
    str(ROOT / "plugins" / "mlxengine-diffusion" / "src"),
    str(ROOT / "plugins" / "mlxengine-diffusion" / "tests" / "extras"),
]

Shapes = Mapping[str, tuple[int, ...]]

_COMMON: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "norm_num_groups": 32, "layers_per_block": 2}
SD15: dict[str, Any] = {
    **_COMMON,
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SDXL: dict[str, Any] = {
    **_COMMON,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "vocab_size": 594,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "bos_token_id": 592,
    "eos_token_id": 593,
}
CLIP = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 49408}
BIG_CLIP = {"hidden_size": 1280, "num_attention_heads": 20, "num_hidden_layers": 32, "vocab_size": 49408}
WIDE_VAE = {
    **VAE,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
QWEN3 = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
}
T5 = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}
Model = tuple[str, str, dict[str, dict[str, Any]]]
# Back end, pipeline's class, and each part's configuration.
MODELS: dict[str, Model] = {
    "sd-1.5": (
        "sd",
        "StableDiffusionPipeline",
        {
            "text_encoder": {**TEXT, **CLIP, "projection_dim": 768},
            "unet": SD15,
            "vae": VAE,
        },
    ),
    "sdxl": (
        "sd",
        "StableDiffusionXLPipeline",
        {
            "text_encoder": {**TEXT, **CLIP, "projection_dim": 768},
            "text_encoder_2": {**TEXT, **BIG_CLIP, "projection_dim": 1280, "intermediate_size": 5120},
            "unet": SDXL,
            "vae": {**VAE, "sample_size": 1024},
        },
    ),
    "flux": (
        "mflux",
        "FluxPipeline",
        {
            "text_encoder": {**TEXT, **CLIP, "projection_dim": 768},
            "text_encoder_2": T5,
            "transformer": {
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
                "axes_dims_rope": [16, 56, 56],
            },
            "vae": WIDE_VAE,
        },
    ),
    "flux2-klein": (
        "mlx_vlm",
        "Flux2KleinPipeline",
        {
            "text_encoder": QWEN3,
            "transformer": {
                "patch_size": 1,
                "in_channels": 128,
                "num_layers": 5,
                "num_single_layers": 20,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 7680,
                "timestep_guidance_channels": 256,
                "mlp_ratio": 3.0,
                "axes_dims_rope": [32, 32, 32, 32],
                "rope_theta": 2000,
                "guidance_embeds": False,
            },
            "vae": {
                **VAE,
                "sample_size": 1024,
                "latent_channels": 32,
                "patch_size": [2, 2],
            },
        },
    ),
    "z-image": (
        "mlx_vlm",
        "ZImagePipeline",
        {
            "text_encoder": QWEN3,
            "transformer": {
                "dim": 3840,
                "n_layers": 30,
                "n_refiner_layers": 2,
                "n_heads": 30,
                "n_kv_heads": 30,
                "cap_feat_dim": 2560,
                "axes_dims": [32, 48, 48],
                "axes_lens": [1536, 512, 512],
            },
            "vae": WIDE_VAE,
        },
    ),
    "qwen-image": (
        "mflux",
        "QwenImagePipeline",
        {
            "text_encoder": {
                "vocab_size": 152064,
                "hidden_size": 3584,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "intermediate_size": 18944,
                "max_position_embeddings": 128000,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0,
                "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]},
            },
            "transformer": {
                "patch_size": 2,
                "in_channels": 64,
                "out_channels": 16,
                "num_layers": 60,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 3584,
                "guidance_embeds": False,
                "axes_dims_rope": [16, 56, 56],
            },
            "vae": {
                "base_dim": 96,
                "z_dim": 16,
                "dim_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "latents_mean": [0.0] * 16,
                "latents_std": [1.0] * 16,
            },
        },
    ),
}
LAYERS = {"num_layers", "num_single_layers", "n_layers", "num_hidden_layers"}


_SMALL: dict[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 2,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "projection_dim": 64,
    "pooled_projection_dim": 64,
    "cap_feat_dim": 64,
    "dim": 64,
    "axes_dims": [8, 12, 12],
    "d_model": 64,
    "d_ff": 64,
    "base_dim": 8,
}


def small(model: Model) -> Model:
    """The model with little in it."""
    library, pipeline, parts = model
    made = {part: {k: _SMALL.get(k, v) for k, v in config.items()} for part, config in parts.items()}
    if widths := made["vae"].get("block_out_channels"):
        made["vae"]["block_out_channels"] = [32] * len(widths)
    if "unet" in parts:
        wide = sum(64 for part in parts if part.startswith("text_encoder"))
        made["unet"] = {
            **parts["unet"],
            "block_out_channels": [32] * len(parts["unet"]["block_out_channels"]),
            "attention_head_dim": 4,
            "cross_attention_dim": wide,
            "sample_size": 8,
        }
        if "text_encoder_2" in parts:
            made["unet"] |= {
                "transformer_layers_per_block": 1,
                "projection_class_embeddings_input_dim": 6 * 256 + 64,
            }
    elif "joint_attention_dim" in made["transformer"]:
        wide = 64
        if pipeline == "Flux2KleinPipeline":  # it is told the states of three layers of the text encoder
            wide, made["text_encoder"]["num_hidden_layers"] = 3 * 64, 28
        made["transformer"]["joint_attention_dim"] = wide
    if "rope_scaling" in made["text_encoder"]:
        made["text_encoder"]["rope_scaling"] |= {"mrope_section": [4, 6, 6]}
    return library, pipeline, made


def with_share(model: Model, share: float) -> Model:
    """The model with that share of its transformer's layers, and the fewest in its text encoders."""
    library, pipeline, parts = model
    least = 28 if pipeline == "Flux2KleinPipeline" else 2  # FLUX.2 is told the states of the 27th
    made = {}
    for part, config in parts.items():
        made[part] = dict(config)
        for key in LAYERS & config.keys():
            if part == "transformer":
                made[part][key] = max(1, round(config[key] * share))
            elif part.startswith("text_encoder"):
                made[part][key] = least
    return library, pipeline, made


def place() -> str | None:
    """Where to write weights: into memory if there is plenty, which no disk is as quick as."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 48 * 2**30
    return str(memory) if roomy else None


@contextmanager
def recorded() -> Iterator[dict[str, dict[str, tuple[int, ...]]]]:
    """Networks are built and not filled; what they would be filled with is noted by part, name and shape."""
    from mlx.utils import tree_flatten
    from mlxengine_diffusion.backends import _networks
    from mlxengine_diffusion.sd import weights

    found: dict[str, dict[str, tuple[int, ...]]] = {}

    def note(module: Any, part: str, _source: Any, place_of: Any, _dtype: Any) -> None:
        for path, value in tree_flatten(module.parameters()):
            if (place := place_of(path)) is not None:
                shape = weights._expected(value.shape, place.half)
                found.setdefault(part, {})[place.name] = shape

    with mock.patch.object(weights, "fill_by_name", note), mock.patch.object(_networks, "fill_by_name", note):
        yield found


def write_zeros(file: Path, shapes: Shapes) -> None:
    """A safetensors file of zeros in bfloat16 that takes no blocks on the disk."""
    random_weights.zeros(file, {name: Numbers(shape, "bfloat16") for name, shape in shapes.items()})


def write_random(file: Path, shapes: Shapes, dtype: str) -> None:
    """A safetensors file of random numbers of the size that training gives; vectors are ones."""
    random_weights.write(
        file,
        {
            name: Numbers(shape, dtype, mean=1.0)
            if len(shape) < 2
            else Numbers(shape, dtype, math.prod(shape[1:]) ** -0.5)
            for name, shape in shapes.items()
        },
    )


def write(model: Model, folder: Path, fill: Callable[[Path, Shapes], None] = write_zeros) -> None:
    """The repository of a model, its weights as ``fill`` writes them."""
    from mlxengine.toolkit import blas

    blas.load()  # before anything imports mlx
    import tiny_kit
    import tiny_z_image
    from mlxengine import InferenceEngine, LoadContext
    from mlxengine_diffusion.backends import backend

    library, pipeline, parts = model
    index: dict[str, Any] = {"_class_name": pipeline}
    for part, config in parts.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        kind = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
        index[part] = ["", kind.get(part, "CLIPTextModelWithProjection")]
        if not part.startswith("text_encoder"):
            continue
        words = folder / part.replace("text_encoder", "tokenizer")
        index[words.name] = ["", "CLIPTokenizer"]
        words.mkdir()
        if "hidden_act" in config or config.get("max_position_embeddings") == 77:
            for file in TOKENIZER.iterdir():
                (words / file.name).write_bytes(file.read_bytes())
        elif "d_model" in config:
            tiny_kit.write_t5_tokenizer(words)
        else:
            tiny_z_image.write_tokenizer(words)
    (folder / "scheduler").mkdir()
    noise = {
        "_class_name": "EulerDiscreteScheduler" if library == "sd" else "FlowMatchEulerDiscreteScheduler"
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(noise))
    (folder / "model_index.json").write_text(json.dumps(index))
    with recorded() as shapes, InferenceEngine() as engine:
        card = engine.resolve(folder)
        context = LoadContext(
            path=folder,
            configuration=card.configuration,
            features=engine.features.view(),
            device=engine.device,
        )
        backend(library).load(card, context)
    for part, named in shapes.items():
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        fill(folder / part / f"{stem}.safetensors", named)
