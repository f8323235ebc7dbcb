"""Stable Diffusion 1, 2 and XL on diffuse-mlx's modules."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxengine import LoadContext, ModelCard
from mlxengine.errors import FeatureUnavailableError, IncompatibleWeightsError
from mlxengine.readonly import thaw

from ..features import BACKEND_DTYPE, COMPILE, KEEP_LOADED, QUANTIZE, TAESD, VAE
from ..models import defaults_for
from ..sd import layout
from ..sd.config import tile_side, vae_problems
from ..sd.scheduler_config import PLACEMENTS, NoiseSettings
from . import Defaults, Offer, _memory
from ._memory import Shape, Stage

if TYPE_CHECKING:
    from ..sd.pipeline import StableDiffusion

SUMMARY = "Stable Diffusion 1, 2 and XL on diffuse-mlx's modules"
REMEDY = "pip install diffuse-mlx"
_FEW_STEPS = 4
_VOCABULARY = "openai/clip-vit-large-patch14"
_DISTILLED = re.compile(r"turbo|lightning|hyper|lcm|tcd|dmd", re.IGNORECASE)
_STEPS_IN_NAME = re.compile(r"(?<!\d)(1[0-6]|[1-9])[-_ ]?steps?", re.IGNORECASE)
_TOKENS = 2 * 77
# The file that stands for h94/IP-Adapter, of Stable Diffusion 1 and of XL: the one for the smaller encoder.
_IP_ADAPTERS = ("models/ip-adapter_sd15.safetensors", "sdxl_models/ip-adapter_sdxl_vit-h.safetensors")
# Pixels that fill a device: on a CPU more at once take as long, and everybody else waits for longer steps.
_TOGETHER = {"cpu": 256 * 256, "gpu": 2048 * 2048}


def claim(card: ModelCard) -> Offer | None:
    found = layout.read(card)
    if found is None:
        return None
    vae, unet = found.document("vae/config.json"), found.document("unet/config.json")
    side = (unet.get("sample_size") or 64) * _pixels_per_latent(vae)
    return Offer(
        files=found.files,
        problem=found.problem,
        stages=partial(_stages, card, found),
        size=(side, side),
    )


def _stages(card: ModelCard, found: layout.Layout, shape: Shape) -> list[Stage]:
    """What each part takes; a guess by the files' sizes where no header was read."""
    vae, unet = found.document("vae/config.json"), found.document("unet/config.json")
    places = (shape.width * shape.height) // _pixels_per_latent(vae) ** 2
    width = _memory.width_of(card, shape)
    made = []
    for part in found.parts:
        own = width if part != "vae" or not vae.get("force_upcast", True) else 4
        tensors = found.tensors(card, part)
        stored = sum(item.size for item in card.files if item.path in found.weights[part])
        if part == "unet":
            workspace = _memory.unet(unet, shape, places, own)
            weights = _memory.quantized(tensors, own, _memory.flag(card, QUANTIZE))
        elif part == "vae":
            workspace = _memory.autoencoder(vae, shape, tile_side(vae), own)
            weights = own * _memory.count(tensors)
        else:
            workspace = _memory.encoder(found.document(f"{part}/config.json"), _TOKENS, shape, own)
            weights = own * _memory.count(tensors)
        unread = own * _memory.encoding(tensors) if part == "vae" else 0
        made.append(
            Stage(part=part, weights=weights or own * stored // 2, workspace=workspace, unread=unread)
        )
    return made


def missing() -> str | None:
    return None


def load(card: ModelCard, context: LoadContext) -> StableDiffusion:
    import mlx.core as mx

    from ..sd.parts import Parts
    from ..sd.pipeline import StableDiffusion, Traits
    from ..sd.schedulers import SCHEDULERS
    from ..sd.taesd import read_small_decoder
    from ..sd.text import Tokenizer

    found = layout.read(card)
    assert found is not None
    folder = context.path.parent if context.path.is_file() else context.path
    noise = found.document("scheduler/scheduler_config.json")
    side = found.document("unet/config.json").get("sample_size") or 64
    if found.single is not None and _is_768(folder / found.single, found):
        noise, side = {**noise, "prediction_type": "v_prediction"}, 96
    if found.single is not None and _DISTILLED.search(found.single):
        noise = {**noise, "timestep_spacing": "trailing"}  # what such models need, and a file cannot say
    settings = NoiseSettings.read(noise)
    vae = found.document("vae/config.json")
    fills = found.document("unet/config.json")["in_channels"] != vae.get("latent_channels", 4)
    scale = _pixels_per_latent(vae)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    dtype = _dtype(context.features.get(BACKEND_DTYPE), on_cpu=on_cpu)
    bits = context.features.get(QUANTIZE)
    configs = {part: thaw(found.document(f"{part}/config.json")) for part in found.parts}
    builders = {
        part: partial(
            _build,
            part,
            configs[part],
            [folder / name for name in found.weights[part]],
            _part_dtype(part, dtype, configs["vae"]),
            bits if part == "unet" else 0,
            single=found.single is not None,
        )
        for part in found.parts
    }
    if (other := context.features.get(VAE)) is not None:
        builders["vae"] = partial(_other_vae, other, _fetched(other, context), configs["vae"])
    if (small := context.features.get(TAESD)) is not None:
        place = _fetched(small, context), vae.get("latent_channels", 4), scale
        builders["taesd"] = partial(read_small_decoder, *place)
    parts = Parts(builders, keep=context.features.get(KEEP_LOADED))
    parts.build()
    words = None if found.single is None else _words(folder, context)
    tokenizers = {
        part: Tokenizer(
            words or folder / part.replace("text_encoder", "tokenizer"),
            configs[part]["max_position_embeddings"],
            # OpenCLIP pads with the first token; a repository's own tokenizer says so by itself.
            pad=0 if words is not None and configs[part]["hidden_act"] == "gelu" else None,
        )
        for part in found.parts
        if part.startswith("text_encoder")
    }
    side *= scale
    few = _few_steps(card, settings)
    own = Defaults(
        size=(side, side),
        scheduler=settings.sampler,
        steps=few or 30,
        guidance=1.0 if few else 5.0 if found.xl else 7.5,
    )
    from ._work import Abilities

    abilities = Abilities(
        defaults=defaults_for(card, own),
        schedulers=tuple(SCHEDULERS),
        placements=PLACEMENTS,
        size_step=scale,
        most_steps=settings.train_steps - 1,
        init_image=True,
        mask=True,
        fills=fills,
        controls=True,
        ip_adapter=_IP_ADAPTERS[found.xl],
        refiner=found.xl and not fills,
        lora=True,
        prompt_weights=True,
        text_layers=min(configs[part]["num_hidden_layers"] for part in tokenizers),
        guidance_rescale=True,
        low_memory=True,
        vae_tiling=True,
        textual_inversion=True,
        together=_TOGETHER["cpu" if on_cpu else "gpu"],
    )
    traits = Traits(
        xl=found.xl,
        zero_negative=found.xl
        and bool(found.document("model_index.json").get("force_zeros_for_empty_prompt", True)),
        settings=settings,
        latent_channels=vae.get("latent_channels", 4),
        latent_scale=scale,
        text_widths={part: configs[part]["hidden_size"] for part in tokenizers},
        dtype=dtype,
        fills=fills,
        taesd=small is not None,
        compiled=_compiled(context.features.get(COMPILE), on_cpu=on_cpu),
    )
    info: dict[str, Any] = {
        "library": "diffuse-mlx",
        "dtype": str(dtype).removeprefix("mlx.core."),
        "unet_bits": bits or None,
        "prediction": settings.prediction,
        "scheduler": settings.sampler,
        "compiled": traits.compiled,
    }
    if other is not None:
        info["vae"] = other
    return StableDiffusion(parts, tokenizers, traits, abilities, info, context.cache_room)


def _few_steps(card: ModelCard, settings: NoiseSettings) -> int:
    """How many steps a distilled model takes, without guidance; 0 for a model that is not distilled.

    The sampler says so; or the trailing spacing, which distilled models need, together with the name.
    """
    named = _DISTILLED.search(card.id.rpartition("/")[2])
    if settings.distilled or (named and settings.spacing == "trailing"):
        steps = _STEPS_IN_NAME.search(card.id)
        return int(steps[1]) if steps else _FEW_STEPS
    return 0


def _is_768(file: Path, found: layout.Layout) -> bool:
    """Whether a checkpoint is Stable Diffusion 2 for 768 pixels, which predicts velocity."""
    from ..sd import single_weights, weights

    if found.xl or found.document("text_encoder/config.json")["hidden_act"] != "gelu":
        return False
    return single_weights.predicts_velocity(weights.read_tensors([file]))


def _words(folder: Path, context: LoadContext) -> Path:
    """CLIP's vocabulary, which no checkpoint holds: from beside it, or from its authors' repository."""
    beside = folder / "tokenizer"
    if beside.is_dir():
        return beside
    if context.fetch is None:
        raise IncompatibleWeightsError(
            f"{folder} has no tokenizer, and nothing can be fetched here.",
            hint=f"Put the tokenizer of {_VOCABULARY} into a folder named tokenizer beside the checkpoint.",
        )
    return context.fetch(
        _VOCABULARY, ("vocab.json", "merges.txt", "tokenizer*.json", "special_tokens_map.json")
    )


def _build(
    part: str, config: dict[str, Any], files: list[Path], dtype: Any, bits: int, *, single: bool
) -> Any:
    from ..sd import single_weights, weights
    from ..sd.autoencoder import build_vae
    from ..sd.clip import build_clip
    from ..sd.unet import build_unet
    from ._networks import quantized

    if part == "unet":
        made: Any = build_unet(config)
    elif part == "vae":
        made = build_vae(config)
    else:
        made = build_clip(config, projection=part == "text_encoder_2")
    tensors = weights.read_tensors(files)
    weights.fill(made, part, single_weights.part_of(tensors, made, part) if single else tensors, dtype)
    return quantized(made, bits) if bits else made


def _fetched(reference: str, context: LoadContext) -> Path:
    """An autoencoder's file, or the folder that holds it."""
    from .._brought import refuse_pickles

    path = Path(reference).expanduser()
    refuse_pickles(path)
    if path.exists():
        return path
    if context.fetch is None:
        raise IncompatibleWeightsError(f"There is no {reference}, and nothing can be fetched here.")
    return context.fetch(reference, ("*.safetensors", "*.json"))


def _other_vae(reference: str, path: Path, own: dict[str, Any]) -> Any:
    """An autoencoder in diffusers' form, or in the original code's, of the geometry of the model's own.

    A folder's configuration says how latents are scaled; a file has none, and is taken to go with the model.
    """
    import mlx.core as mx

    from ..sd import single_weights, weights
    from ..sd.autoencoder import build_vae
    from ..sd.single_file import VAE as PREFIX

    folder = path / "vae" if (path / "vae").is_dir() else path
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    if len(files) != 1 or files[0].suffix != ".safetensors":
        raise IncompatibleWeightsError(
            f"{reference} is no autoencoder: one .safetensors file is.",
            hint="Of several files, name one.",
        )
    config = own
    if (folder / "config.json").is_file():
        config = {**own, **json.loads((folder / "config.json").read_text())}
        if wrong := vae_problems(config):
            raise IncompatibleWeightsError(f"{reference} has settings that are not implemented: {wrong}.")
        if config["latent_channels"] != own["latent_channels"]:
            raise IncompatibleWeightsError(
                f"{reference} has {config['latent_channels']} latent channels, "
                f"the model {own['latent_channels']}."
            )
    made = build_vae(config)
    tensors = weights.read_tensors(files)
    if any(name.removeprefix(PREFIX).startswith("encoder.down.") for name in tensors):
        named = {PREFIX + name.removeprefix(PREFIX): value for name, value in tensors.items()}
        tensors = single_weights.part_of(named, made, "vae")
    weights.fill(made, "vae", tensors, mx.float32)
    return made


def _dtype(wanted: str, *, on_cpu: bool) -> Any:
    import mlx.core as mx

    if wanted != "auto":
        return getattr(mx, wanted)
    # Half precision runs on scalar kernels on a CPU, ten times slower than float32.
    return mx.float32 if on_cpu else mx.float16


def _compiled(wanted: str, *, on_cpu: bool) -> bool:
    """Whether the UNet is compiled.

    Raises:
        FeatureUnavailableError: asked for on a CPU without the compiler that mlx calls.
    """
    import mlx.core as mx

    if wanted == "auto":
        # On a CPU the time goes into products, and `sd.ops` leaves mlx for what a compiler could fuse. On
        # CUDA the first picture would build kernels for about a minute in one step, and everybody would wait.
        return not on_cpu and mx.metal.is_available()
    if wanted == "on" and on_cpu and shutil.which("g++") is None:
        raise FeatureUnavailableError(
            "diffusion.compile=on needs g++ on a CPU: mlx builds its kernels with it.",
            hint="Install it, or leave the flag at auto: on a CPU nothing is gained by compiling.",
        )
    return wanted == "on"


def _part_dtype(part: str, dtype: Any, vae: dict[str, Any]) -> Any:
    import mlx.core as mx

    # Most autoencoders overflow in half precision; their configuration says which do not.
    return mx.float32 if part == "vae" and vae.get("force_upcast", True) else dtype


def _pixels_per_latent(vae: Any) -> int:
    return int(2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1))
