"""Adapters of the tiny models of flow matching, in every form of keys. Imports no library of models."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import tiny_flux2 as f2
import tiny_kit as k
from attrs import evolve

RANK, ALPHA = 4, 2.0
_TEXT = "text_model."
_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def _under(block: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{block}.{name}" for name in names)


# What is adapted: a layer's name where the model was published first, and what it stacks in diffusers.
LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    "flux1": {
        "double_blocks.0.img_attn.qkv": _under("transformer_blocks.0.attn", _QKV),
        "double_blocks.1.txt_attn.qkv": _under("transformer_blocks.1.attn", _ADDED),
        "double_blocks.0.img_attn.proj": ("transformer_blocks.0.attn.to_out.0",),
        "double_blocks.1.img_mlp.0": ("transformer_blocks.1.ff.net.0.proj",),
        "double_blocks.0.txt_mlp.2": ("transformer_blocks.0.ff_context.net.2",),
        "double_blocks.0.img_mod.lin": ("transformer_blocks.0.norm1.linear",),
        "single_blocks.0.linear1": (
            *_under("single_transformer_blocks.0.attn", _QKV),
            "single_transformer_blocks.0.proj_mlp",
        ),
        "single_blocks.1.linear2": ("single_transformer_blocks.1.proj_out",),
        "single_blocks.1.modulation.lin": ("single_transformer_blocks.1.norm.linear",),
        "img_in": ("x_embedder",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        f"{_TEXT}encoder.layers.0.self_attn.q_proj": (f"{_TEXT}encoder.layers.0.self_attn.q_proj",),
    },
    # XLabs' files know the attention alone.
    "xlabs": {
        "double_blocks.0.processor.qkv_lora1": _under("transformer_blocks.0.attn", _QKV),
        "double_blocks.1.processor.qkv_lora2": _under("transformer_blocks.1.attn", _ADDED),
        "double_blocks.1.processor.proj_lora1": ("transformer_blocks.1.attn.to_out.0",),
        "double_blocks.0.processor.proj_lora2": ("transformer_blocks.0.attn.to_add_out",),
        "single_blocks.0.processor.qkv_lora": _under("single_transformer_blocks.0.attn", _QKV),
        "single_blocks.1.processor.proj_lora": ("single_transformer_blocks.1.proj_out",),
    },
    "flux2": {
        "double_blocks.0.img_attn.qkv": _under("transformer_blocks.0.attn", _QKV),
        "double_blocks.1.txt_attn.qkv": _under("transformer_blocks.1.attn", _ADDED),
        "double_blocks.0.img_attn.proj": ("transformer_blocks.0.attn.to_out.0",),
        "double_blocks.1.img_mlp.0": ("transformer_blocks.1.ff.linear_in",),
        "double_blocks.0.txt_mlp.2": ("transformer_blocks.0.ff_context.linear_out",),
        "single_blocks.0.linear1": ("single_transformer_blocks.0.attn.to_qkv_mlp_proj",),
        "single_blocks.1.linear2": ("single_transformer_blocks.1.attn.to_out",),
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
    },
    "z_image": {
        "layers.0.attention.qkv": _under("layers.0.attention", _QKV),
        "layers.1.attention.out": ("layers.1.attention.to_out.0",),
        "noise_refiner.0.feed_forward.w1": ("noise_refiner.0.feed_forward.w1",),
        "context_refiner.0.feed_forward.w2": ("context_refiner.0.feed_forward.w2",),
        "layers.1.adaLN_modulation.0": ("layers.1.adaLN_modulation.0",),
        "cap_embedder.1": ("cap_embedder.1",),
    },
    "qwen_image": {
        name: (name,)
        for name in (
            "transformer_blocks.0.attn.to_q",
            "transformer_blocks.1.attn.add_k_proj",
            "transformer_blocks.0.attn.to_out.0",
            "transformer_blocks.1.img_mlp.net.0.proj",
            "transformer_blocks.0.txt_mlp.net.2",
            "transformer_blocks.0.img_mod.1",
            "proj_out",
        )
    },
}


def layers(name: str) -> dict[str, tuple[k.Array, k.Array, tuple[int, ...]]]:
    """By first name: down (rank, inputs), up (outputs, rank), and how many outputs each layer below has."""
    family = "flux1" if name == "xlabs" else name
    stored = json.loads((k.DATA / f"{family}.shapes.json").read_text())
    shapes = {**stored["transformer"], **stored["text_encoder"]}
    found = {}
    for first, members in LAYERS[name].items():
        numbers = np.random.RandomState(zlib.crc32(f"{name}/{first}".encode()))
        outputs = tuple(shapes[f"{member}.weight"][0] for member in members)
        inputs = shapes[f"{members[0]}.weight"][1]
        down = numbers.standard_normal((RANK, inputs)) / np.sqrt(inputs)
        up = numbers.standard_normal((sum(outputs), RANK)) * 0.7
        found[first] = down.astype(np.float32), up.astype(np.float32), outputs
    return found


def peft(name: str) -> dict[str, k.Array]:
    """As diffusers saves it: the scale is in the matrices."""
    tensors = {}
    for first, (down, up, outputs) in layers(name).items():
        rows = np.split(up * np.float32(ALPHA / RANK), np.cumsum(outputs)[:-1])
        for member, part in zip(LAYERS[name][first], rows, strict=True):
            prefix = "text_encoder" if member.startswith(_TEXT) else "transformer"
            if first == "final_layer.adaLN_modulation.1":
                part = k._halves_swapped(part)
            tensors[f"{prefix}.{member}.lora_A.weight"] = down
            tensors[f"{prefix}.{member}.lora_B.weight"] = np.ascontiguousarray(part)
    return tensors


def kohya(name: str) -> dict[str, k.Array]:
    """As kohya's trainer saves it: the first names with underscores, and alphas."""
    tensors: dict[str, Any] = {}
    for first, (down, up, _) in layers(name).items():
        key = ("lora_te1_" if first.startswith(_TEXT) else "lora_unet_") + first.replace(".", "_")
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        tensors[f"{key}.alpha"] = np.array(ALPHA, np.float32)
    return tensors


def comfyui(name: str) -> dict[str, k.Array]:
    """As ComfyUI and ai-toolkit save it: the first names behind a prefix."""
    tensors: dict[str, Any] = {}
    for first, (down, up, _) in layers(name).items():
        prefix = "text_encoders.clip_l.transformer" if first.startswith(_TEXT) else "diffusion_model"
        tensors[f"{prefix}.{first}.lora_A.weight"] = down
        tensors[f"{prefix}.{first}.lora_B.weight"] = up * np.float32(ALPHA / RANK)
    return tensors


def xlabs() -> dict[str, k.Array]:
    """As XLabs' trainer saves it, for FLUX.1."""
    tensors = {}
    for first, (down, up, _) in layers("xlabs").items():
        tensors[f"{first}.down.weight"], tensors[f"{first}.up.weight"] = down, up * np.float32(ALPHA / RANK)
    return tensors


FORMS = {"peft": peft, "kohya": kohya, "comfyui": comfyui}


def start() -> np.ndarray[Any, Any]:
    """A picture to start from, (64, 64, 3) uint8."""
    across, down = np.meshgrid(np.linspace(0, 255, f2.SIDE), np.linspace(0, 255, f2.SIDE))
    return np.stack([across, down, 255 - across], axis=-1).round().astype(np.uint8)


def other() -> np.ndarray[Any, Any]:
    """A second picture to look at, of another shape: (64, 96, 3) uint8."""
    return np.ascontiguousarray(np.concatenate([start(), start()[:, ::-1]], axis=1)[:, :96, ::-1])


def mask() -> np.ndarray[Any, Any]:
    """What of it is made anew, (64, 64) uint8; aligned to what the models see as one place."""
    found = np.zeros((f2.SIDE, f2.SIDE), np.uint8)
    found[16:48, 32:] = 255
    return found


STRENGTH = 0.6


def noise(name: str) -> k.Array:
    """What a picture of 64 pixels a side starts from, in a family's form."""
    small = k.noise()[:, :, : f2.SIDE // 8, : f2.SIDE // 8]
    if name == "flux2":
        return f2.noise()
    return np.ascontiguousarray(small[:, :, None]) if name == "z_image" else k.packed(small)


def changes() -> dict[str, dict[str, Any]]:
    """What jobs have besides, by the name of the stored picture."""
    return {
        "from a picture": {"init": start(), "strength": STRENGTH},
        "a part anew": {"init": start(), "mask": mask(), "strength": STRENGTH},
        "looking at two": {"references": (start(), other())},
        "looking at one": {"references": (other(),)},
    }


def job(model: Any, guidance: float, **more: Any) -> Any:
    """What is asked of a tiny model (its module here) where its picture of 64 pixels a side is compared."""
    return evolve(k.job(model, guidance), width=f2.SIDE, height=f2.SIDE, **more)
