"""Tiny Wans with random weights in diffusers' layout; torch's side and ours build the same from their names.

Nothing but numpy is imported here. Names and shapes of the tensors are stored: they are diffusers' own.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]
DATA = Path(__file__).parent / "data"
PROMPT, NEGATIVE = "a red circle on blue", "a small square"
STEPS, FRAMES, GUIDANCE = 4, 5, 4.0
FAMILIES = ("t2v", "ti2v", "two", "i2v")
"""2.1; 2.2 from a prompt or a picture; 2.2's two transformers from a prompt, and from a picture."""
SIZE = {"t2v": (48, 32), "ti2v": (64, 32), "two": (48, 32), "i2v": (48, 32)}
SOLVED = (
    (5.0, 2, 6, ()),
    (1.0, 2, 3, ()),
    (3.0, 1, 5, ()),
    (3.0, 3, 8, ()),
    (8.0, 2, 7, (0, 2)),
    (3.0, 2, 1, ()),
)
"""Shift, order and steps of UniPC, and steps after which it does not correct."""
SHIFTS = (1.0, 3.0, 5.0, 12.0)
"""Shifts whose timesteps are stored for 1 to 60 steps."""
LONG = "a wide sky, " * 30
_CHANNELS = {"t2v": 4, "ti2v": 48, "two": 4, "i2v": 4}
TEXT: dict[str, Any] = {
    "model_type": "umt5",
    "architectures": ["UMT5EncoderModel"],
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}

TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "model_max_length": 512,
}


def transformer(family: str) -> dict[str, Any]:
    """A transformer's configuration."""
    channels = _CHANNELS[family]
    return {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 2 * channels + 4 if family == "i2v" else channels,
        "out_channels": channels,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
    }


def vae(family: str) -> dict[str, Any]:
    """An autoencoder's configuration; mean and deviation of its latents are not those of the real ones."""
    channels = _CHANNELS[family]
    shared = {
        "z_dim": channels,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
        "dropout": 0.0,
        "latents_mean": [round(0.2 * math.sin(index), 4) for index in range(channels)],
        "latents_std": [round(1 + 0.5 * math.cos(index), 4) for index in range(channels)],
    }
    if family == "ti2v":
        own = {"base_dim": 8, "decoder_base_dim": 16, "is_residual": True, "in_channels": 12}
        return {**shared, **own, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
    return {**shared, "base_dim": 8}


def scheduler(family: str) -> dict[str, Any]:
    """The scheduler's settings, as the releases have them."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 5.0 if family == "ti2v" else 3.0,
        "num_train_timesteps": 1000,
        "solver_order": 2,
        "solver_type": "bh2",
        "beta_schedule": "linear",
        "timestep_spacing": "linspace",
    }


def index(family: str) -> dict[str, Any]:
    """``model_index.json``."""
    two = family in ("two", "i2v")
    return {
        "_class_name": "WanImageToVideoPipeline" if family == "i2v" else "WanPipeline",
        "boundary_ratio": 0.8 if two else None,
        "expand_timesteps": family == "ti2v",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"] if two else [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "image_encoder": [None, None],
    }


def parts(family: str) -> tuple[str, ...]:
    """The folders with weights."""
    second = ("transformer_2",) if family in ("two", "i2v") else ()
    return ("text_encoder", "transformer", *second, "vae")


def weight(part: str, name: str, shape: tuple[int, ...]) -> Array:
    """A tensor of the size that training would give it; biases, norms and modulations are random as well."""
    numbers = np.random.RandomState(zlib.crc32(f"{part}/{name}".encode()))
    values = numbers.standard_normal(shape).astype(np.float32)
    if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
        return values * np.float32(0.1) + np.float32(1)
    if len(shape) == 1:
        return values * np.float32(0.1)
    if "scale_shift_table" in name:
        return values / np.float32(np.sqrt(shape[-1]))
    if "shared" in name or "bias.weight" in name:
        return values * np.float32(0.5)
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


def random(seed: int, *shape: int) -> Array:
    """Numbers to show a network."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def shown(family: str) -> dict[str, Array]:
    """What the networks of a family are shown one by one, in torch's order of axes, without a batch.

    Latents for the transformer, states of a text of 20 tokens, latents for the decoder (before they are
    normalised), and frames (3, 9, height, width) for the encoder.
    """
    channels, side = _CHANNELS[family], 32 if family == "ti2v" else 16
    places = (1, 2) if family == "ti2v" else (2, 3)
    return {
        "latents": random(1, transformer(family)["in_channels"], 2, 4, 6),
        "text": random(2, 20, TEXT["d_model"]),
        "hidden": random(4, channels, 3, *places),
        "frames": np.tanh(random(5, 3, 9, side, 2 * side)),
    }


TIME = 700


def noise(family: str) -> Array:
    """What a video starts from, (channels, time, height, width)."""
    width, height = SIZE[family]
    stride = 16 if family == "ti2v" else 8
    shape = (_CHANNELS[family], 1 + (FRAMES - 1) // 4, height // stride, width // stride)
    return random(3, *shape)


def picture(family: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A first frame, (height, width, 3)."""
    width, height = SIZE[family]
    down, across = np.mgrid[:height, :width]
    return np.stack([down * 7 % 256, across * 5 % 256, (down + across) * 3 % 256], axis=-1).astype(np.uint8)


def shapes() -> dict[str, dict[str, dict[str, list[int]]]]:
    """Names and shapes of every tensor: by family, by part."""
    found: dict[str, dict[str, dict[str, list[int]]]] = json.loads((DATA / "wan.shapes.json").read_text())
    return found


def tensors(family: str, part: str) -> dict[str, Array]:
    """A part's weights."""
    known = shapes()[family][part.removesuffix("_2")]
    return {name: weight(part, name, tuple(shape)) for name, shape in known.items()}


def documents(family: str) -> dict[str, dict[str, Any]]:
    """The configurations, by their paths in the repository."""
    configs: dict[str, dict[str, Any]] = {
        "transformer": {"_class_name": "WanTransformer3DModel", **transformer(family)},
        "text_encoder": TEXT,
        "vae": {"_class_name": "AutoencoderKLWan", **vae(family)},
    }
    return {
        "model_index.json": index(family),
        "scheduler/scheduler_config.json": scheduler(family),
        "tokenizer/tokenizer_config.json": TOKENIZER,
        **{f"{part}/config.json": configs[part.removesuffix("_2")] for part in parts(family)},
    }


def write(family: str, folder: Path) -> Path:
    """Lay the repository out; gives the folder."""
    from safetensors.numpy import save_file

    for place, known in documents(family).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(json.dumps(known))
    for part in parts(family):
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(tensors(family, part), folder / part / f"{name}.safetensors")
    write_tokenizer(folder / "tokenizer")
    return folder


def write_tokenizer(folder: Path) -> None:
    """Letters as tokens, with T5's special ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, ",": 3}
    vocabulary |= {letter: 4 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")]
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
