"""Checkpoints in one file, as the original code saved them: what they are, told by their tensors. Pure.

Names and shapes give everything but four facts, which go with the generation: heads of attention (eight in
Stable Diffusion 1, 64 channels each in 2 and XL; 64 in the text encoders), groups of the norms (32), the
autoencoder's scale, and what the network predicts. Source of these: the configurations that the authors
published beside the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxengine import ModelCard
from mlxengine.errors import IncompatibleWeightsError, MLXEngineError, UnsupportedArchitectureError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_MARK = f"{UNET}input_blocks.0.0.weight"
_CLIP = "cond_stage_model.transformer."
_OPEN_CLIP = "cond_stage_model.model."
_XL_CLIP = "conditioner.embedders.0.transformer."
_XL_OPEN_CLIP = "conditioner.embedders.1.model."
_REFINER = "conditioner.embedders.0.model."
_SCALES = {False: 0.18215, True: 0.13025}
_DTYPES = ("F16", "BF16", "F32", "F64", "F8_E4M3")
_CLIP_SIDE = 64
_NOISE = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
Shapes = Mapping[str, tuple[int, ...]]


def checkpoints(card: ModelCard) -> tuple[str, ...]:
    """The files of a model that are checkpoints of the original code."""
    return tuple(sorted(tensor.file for tensor in card.tensors if tensor.name == _MARK))


def part_named(name: str, *, xl: bool) -> str | None:
    """The part of the pipeline that a tensor belongs to."""
    text = (
        {"text_encoder": (_XL_CLIP,), "text_encoder_2": (_XL_OPEN_CLIP,)}
        if xl
        else {"text_encoder": (_CLIP, _OPEN_CLIP)}
    )
    places: dict[str, tuple[str, ...]] = {"unet": (UNET,), "vae": (VAE,), **text}
    return next((part for part, starts in places.items() if name.startswith(starts)), None)


def text_prefix(part: str, shapes: Shapes) -> tuple[str, bool]:
    """Where a text encoder's tensors begin, and whether they have OpenCLIP's names."""
    if part == "text_encoder_2":
        return _XL_OPEN_CLIP, True
    found = next(
        (p for p in (_XL_CLIP, _CLIP, _OPEN_CLIP) if any(name.startswith(p) for name in shapes)), _CLIP
    )
    return found, found == _OPEN_CLIP


def shapes_of(card: ModelCard, file: str) -> Shapes:
    """Names and shapes of a file's tensors."""
    return {tensor.name: tuple(tensor.shape) for tensor in card.tensors if tensor.file == file}


def problem_with(card: ModelCard, file: str) -> MLXEngineError | None:
    """Why a checkpoint cannot be loaded."""
    shapes = shapes_of(card, file)
    if any(name.startswith(_REFINER) for name in shapes):
        return UnsupportedArchitectureError(
            f"{file} is the refiner of Stable Diffusion XL, which ends another model's pictures.",
            hint="Load the base model, and name the refiner's repository in a request: refiner=…, --refiner.",
        )
    odd = {item.dtype for item in card.tensors if item.file == file and item.name.startswith((UNET, VAE))}
    if odd := odd.difference(_DTYPES):
        return UnsupportedArchitectureError(
            f"{file} holds numbers in {', '.join(sorted(odd))}, which is not implemented.",
            hint="Take the fp16 file of the same model.",
        )
    prefix, _ = text_prefix("text_encoder", shapes)
    parts = {"an autoencoder": f"{VAE}decoder.", "a text encoder": prefix}
    absent = [what for what, start in parts.items() if not any(name.startswith(start) for name in shapes)]
    if absent:
        return IncompatibleWeightsError(
            f"{file} holds a UNet without {' and '.join(absent)}.",
            hint="Take the whole checkpoint, not the pruned UNet of it.",
        )
    return None


def documents(card: ModelCard, file: str) -> dict[str, dict[str, Any]]:
    """The configurations that the model would have as a diffusers repository.

    Raises:
        IncompatibleWeightsError: a tensor that tells them is missing.
    """
    shapes = shapes_of(card, file)
    xl = f"{UNET}label_emb.0.0.weight" in shapes
    try:
        made = {"text_encoder/config.json": _text(shapes, "text_encoder", whole=xl)}
        if xl:
            made["text_encoder_2/config.json"] = _text(shapes, "text_encoder_2", whole=True)
        pooled = made["text_encoder_2/config.json"]["projection_dim"] if xl else None
        made["unet/config.json"] = _unet(shapes, pooled)
        made["vae/config.json"] = _vae(shapes, xl=xl)
    except (KeyError, IndexError, ValueError) as error:
        raise IncompatibleWeightsError(
            f"{file} is no whole checkpoint: {error} is missing.", hint="Fetch it again."
        ) from error
    # Markers that people put into checkpoints of XL that predict velocity.
    made["scheduler/scheduler_config.json"] = {
        **_NOISE,
        "prediction_type": "v_prediction" if "v_pred" in shapes else "epsilon",
        "rescale_betas_zero_snr": "ztsnr" in shapes,
    }
    name = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    made["model_index.json"] = {"_class_name": name, "force_zeros_for_empty_prompt": True}
    return made


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers in a row, from 0 on, ``pattern`` has tensors for."""
    found = 0
    while any(name.startswith(pattern.format(found)) for name in shapes):
        found += 1
    return found


def _text(shapes: Shapes, part: str, *, whole: bool) -> dict[str, Any]:
    prefix, opened = text_prefix(part, shapes)
    if opened:
        words, places = "token_embedding.weight", "positional_embedding"
        layers, inner = "transformer.resblocks.{}.", "transformer.resblocks.0.mlp.c_fc.weight"
    else:
        prefix += "text_model." if any(name.startswith(f"{prefix}text_model.") for name in shapes) else ""
        words, places = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
        layers, inner = "encoder.layers.{}.", "encoder.layers.0.mlp.fc1.weight"
    vocabulary, width = shapes[prefix + words]
    projection = shapes.get(f"{prefix}text_projection")
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": shapes[prefix + places][0],
        # Stable Diffusion 2 takes the layer before the last, and its encoder ends there.
        "num_hidden_layers": _count(shapes, prefix + layers) - (opened and not whole),
        "num_attention_heads": max(1, width // _CLIP_SIDE),
        "intermediate_size": shapes[prefix + inner][0],
        "hidden_act": "gelu" if opened else "quick_gelu",
        "projection_dim": projection[1] if projection else width,
        "layer_norm_eps": 1e-5,
    }


def _unet(shapes: Shapes, pooled: int | None) -> dict[str, Any]:
    widths: list[int] = []
    layers: list[int] = []
    depths: list[int] = []
    fresh = True
    for index in range(1, _count(shapes, UNET + "input_blocks.{}.")):
        block = f"{UNET}input_blocks.{index}."
        if f"{block}0.op.weight" in shapes:
            fresh = True
            continue
        if fresh:
            widths.append(shapes[f"{block}0.in_layers.2.weight"][0])
            layers.append(0)
            depths.append(_count(shapes, block + "1.transformer_blocks.{}."))
        layers[-1] += 1
        fresh = False
    inside = f"{UNET}middle_block.1."
    flat = len(shapes[f"{inside}proj_in.weight"]) == 2
    first = shapes[_MARK]
    made: dict[str, Any] = {
        "in_channels": first[1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "cross_attention_dim": shapes[f"{inside}transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": [max(1, width // 64) for width in widths] if flat else 8,
        "use_linear_projection": flat,
        "norm_num_groups": 32,
        "sample_size": 64 if pooled is None else 128,
    }
    if pooled is not None:
        added = shapes[f"{UNET}label_emb.0.0.weight"][1]
        made |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (added - pooled) // 6,
            "projection_class_embeddings_input_dim": added,
        }
    return made


def _vae(shapes: Shapes, *, xl: bool) -> dict[str, Any]:
    levels = _count(shapes, VAE + "encoder.down.{}.")
    return {
        "in_channels": shapes[f"{VAE}encoder.conv_in.weight"][1],
        "out_channels": shapes[f"{VAE}decoder.conv_out.weight"][0],
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "block_out_channels": [
            shapes[f"{VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)
        ],
        "layers_per_block": _count(shapes, VAE + "encoder.down.0.block.{}."),
        "norm_num_groups": 32,
        "scaling_factor": _SCALES[xl],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


__all__ = [
    "UNET",
    "VAE",
    "checkpoints",
    "documents",
    "part_named",
    "problem_with",
    "shapes_of",
    "text_prefix",
]
