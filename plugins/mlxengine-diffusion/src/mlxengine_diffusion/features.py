"""Feature flags of the diffusion plugin."""

from __future__ import annotations

import importlib.util

from mlxengine import Feature, LLMEngineFeatures

KIND = ("diffusion",)


def _needs(*modules: str) -> str | None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed" if absent else None


def _probe_pictures() -> str | None:
    if reason := _needs("mlx", "diffuse_mlx", "transformers", "PIL"):
        return reason
    from mlxengine.toolkit import blas

    blas.load()  # a flag that is set when the engine is made is tried before anything else imports mlx
    import mlx.core as mx

    grid = mx.arange(16, dtype=mx.float32).reshape(1, 4, 4, 1)
    found = mx.conv2d(grid, mx.ones((1, 3, 3, 1)), padding=1)[0, 1, 1, 0].item()
    return None if found == 45 else f"a convolution on this device gave {found} instead of 45"


def _probe_quantized() -> str | None:
    if reason := _probe_pictures():
        return reason
    import mlx.core as mx

    for bits in (4, 8):
        packed = mx.quantize(mx.ones((32, 32)), group_size=32, bits=bits)
        found = mx.quantized_matmul(mx.ones((1, 32)), *packed, group_size=32, bits=bits)[0, 0].item()
        if abs(found - 32) > 0.5:
            return f"a {bits}-bit product on this device gave {found} instead of 32"
    return None


IMAGES = Feature(
    name="diffusion.images",
    default=True,
    summary="Make pictures from text.",
    applies_to=KIND,
    provides=LLMEngineFeatures.IMAGE_GENERATION,
    probe=_probe_pictures,
)
IMAGE_TO_IMAGE = Feature(
    name="diffusion.image_to_image",
    default=True,
    summary="Start from a picture, and leave it as far as the strength says.",
    applies_to=KIND,
    provides=LLMEngineFeatures.IMAGE_TO_IMAGE,
    probe=_probe_pictures,
)
LORA = Feature(
    name="diffusion.lora",
    default=True,
    summary="Apply LoRA, LoHa, LoKr and DoRA adapters to a request, in the usual key forms.",
    applies_to=KIND,
    provides=LLMEngineFeatures.LORA,
    probe=_probe_pictures,
)
LOW_MEMORY = Feature(
    name="diffusion.low_memory",
    default=True,
    summary="Let a request free each part of the pipeline after its stage.",
    applies_to=KIND,
    provides=LLMEngineFeatures.LOW_MEMORY,
    probe=_probe_pictures,
)
KEEP_LOADED = Feature(
    name="diffusion.keep_loaded",
    default=True,
    summary="Keep all parts between pictures; off makes low memory the rule, from loading on.",
    applies_to=KIND,
    provides=LLMEngineFeatures.STAGED_PARTS,
)
VAE_TILING = Feature(
    name="diffusion.vae_tiling",
    default="auto",
    summary="Let the autoencoder work on tiles, which bounds its memory; auto does where it would not fit.",
    applies_to=KIND,
    provides=LLMEngineFeatures.VAE_TILING,
    choices=("auto", "on", "off"),
)
VAE: Feature[str | None] = Feature(
    name="diffusion.vae",
    default=None,
    summary="Autoencoder to take instead of Stable Diffusion's own: a file, a folder or a repository.",
    applies_to=KIND,
)
TAESD: Feature[str | None] = Feature(
    name="diffusion.taesd",
    default=None,
    summary="Small autoencoder (TAESD) for Stable Diffusion's previews: a file, a folder or a repository.",
    applies_to=KIND,
)
QUANTIZE = Feature(
    name="diffusion.quantize",
    default=0,
    summary="Bits of the denoiser's linear layers: 8 or 4; 0 leaves them as they are.",
    applies_to=KIND,
    provides=LLMEngineFeatures.QUANTIZATION,
    choices=(0, 4, 8),
    probe=_probe_quantized,
)
BACKEND_DTYPE = Feature(
    name="diffusion.dtype",
    default="auto",
    summary="Number format of the denoiser and text encoders; auto is float32 on a CPU, float16 on a GPU.",
    applies_to=KIND,
    choices=("auto", "float32", "float16", "bfloat16"),
)
BACKEND = Feature(
    name="diffusion.backend",
    default="auto",
    summary="The library to make pictures with; auto takes the first installed one that serves the model.",
    applies_to=KIND,
    choices=("auto", "sd", "mlx_vlm", "mflux", "diffusionkit"),
)

COMPILE = Feature(
    name="diffusion.compile",
    default="auto",
    summary=(
        "Compile Stable Diffusion's UNet, once for a size of pictures; auto does so with Metal alone: "
        "on CUDA the kernels of the first picture take about a minute, in which other requests wait."
    ),
    applies_to=KIND,
    choices=("auto", "on", "off"),
)

FEATURES = (
    IMAGES,
    IMAGE_TO_IMAGE,
    LORA,
    LOW_MEMORY,
    KEEP_LOADED,
    VAE_TILING,
    VAE,
    TAESD,
    QUANTIZE,
    BACKEND_DTYPE,
    BACKEND,
    COMPILE,
)

__all__ = [
    "BACKEND",
    "BACKEND_DTYPE",
    "COMPILE",
    "FEATURES",
    "IMAGES",
    "IMAGE_TO_IMAGE",
    "KEEP_LOADED",
    "LORA",
    "LOW_MEMORY",
    "QUANTIZE",
    "TAESD",
    "VAE",
    "VAE_TILING",
]
