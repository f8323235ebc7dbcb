"""Tiny models in the shape of Stable Diffusion 1, 2 and XL, with random weights that numpy alone makes.

Both sides of the comparison build the same weights from this module: `make_reference.py` for diffusers
on torch, and the tests for ours. Nothing but numpy is imported here.
"""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES = ("sd1", "sd2", "sdxl")
_CLASSES = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "dpmpp_sde": "DPMSolverSDEScheduler",
    "heun": "HeunDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "ddpm": "DDPMScheduler",
}
SCHEDULERS = tuple(_CLASSES)
TWICE = ("heun", "dpmpp_sde")
"""Samplers that ask the model twice a step."""
PLACED = ("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_sde", "deis", "unipc")
"""Samplers whose noise levels can be placed otherwise than by timestep."""
PLACEMENTS = ("karras", "exponential", "beta")
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "third order": ("dpmpp_2m", {"solver_order": 3, "num_steps": 7}),
    "first order": ("dpmpp_2m", {"solver_order": 1}),
    "heun's formula": ("dpmpp_2m", {"solver_type": "heun"}),
    "heun's formula, stochastic": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "heun's formula in pairs": ("dpmpp_2s", {"solver_type": "heun"}),
    "pairs to the lowest level": ("dpmpp_2s", {"final_sigmas_type": "sigma_min", "num_steps": 6}),
    "euler at the end": ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
    "high order to the end": ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    "many steps": ("deis", {"num_steps": 16}),
    "unipc of third order": ("unipc", {"solver_order": 3, "num_steps": 7}),
    "unipc with the other function": ("unipc", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    "unipc that does not correct": ("unipc", {"disable_corrector": [0, 2]}),
    "unipc over a range": ("unipc", {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0}),
    "euler over a range": ("euler", {"use_exponential_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0}),
    "euler to the lowest level": ("euler", {"final_sigmas_type": "sigma_min"}),
    "log linear": ("euler", {"interpolation_type": "log_linear"}),
    "continuous": ("euler", {"prediction_type": "v_prediction", "timestep_type": "continuous"}),
    "pure noise at first": ("euler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    "pure noise at first, 2M": (
        "dpmpp_2m",
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    "cut latents": ("ddim", {"clip_sample": True, "clip_sample_range": 1.5}),
    "cut latents, lcm": ("lcm", {"clip_sample": True, "clip_sample_range": 1.5}),
    "distilled otherwise": ("lcm", {"original_inference_steps": 20, "timestep_scaling": 0.01}),
    "runge-kutta first": ("pndm", {"skip_prk_steps": False, "num_steps": 7}),
    "pndm to no noise": ("pndm", {"set_alpha_to_one": True}),
    "pndm of one step": ("pndm", {"num_steps": 1}),
    "ddpm of large variance": ("ddpm", {"variance_type": "fixed_large"}),
    "cut latents, ddpm": ("ddpm", {"clip_sample": True, "clip_sample_range": 1.5}),
    "pure noise at first, ddpm": (
        "ddpm",
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    "linear betas": ("heun", {"beta_schedule": "linear"}),
}
"""What a scheduler's configuration can say besides; ``num_steps`` is for the call."""
FILLING = "filling"
"""Stable Diffusion 1 for inpainting: nine channels instead of four."""
PREDICTIONS = ("epsilon", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
STEPS = 5
GUIDANCE = 4.0
PROMPT = "a red circle on a blue background"
NEGATIVE = "a small square"
LONG = " ".join([PROMPT] * 11 + ["a yellow ring on a white background"])
"""More than the text encoder takes at once."""
WEIGHED = "a (red:1.4) circle on [a (blue) background] ((white"
FRAGMENTS = (
    ("a", 1.0),
    ("red", 1.4),
    ("circle on", 1.0),
    ("a", 1 / 1.1),
    ("blue", 1.0),
    ("background", 1 / 1.1),
    ("white", 1.21),
)
"""What `WEIGHED` says in the syntax of AUTOMATIC1111's web UI."""
LAYER, RESCALE = 3, 0.6
WIDTH, HEIGHT, PIXELS_PER_LATENT = 24, 32, 2
STRENGTH = 0.6
TILED = (28, 20)
"""Height and width in latents of what takes several tiles of 16."""
WORD = "<toy>"
TAUGHT = f"a {WORD} circle on a blue background"
"""A prompt with a word that textual inversion taught."""
TAESD: dict[str, Any] = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [2, 1],
    "latent_channels": 4,
}
ESRGAN = {"width": 8, "growth": 4, "blocks": 2}
ETA = 0.3
"""What TCD's own scheduler takes where a pipeline says nothing; DDIM's is 0."""
DATA = Path(__file__).parent / "reference"

NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "skip_prk_steps": True,
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
        "hidden_act": "quick_gelu" if family in ("sd1", FILLING) else "gelu",
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
    if family == FILLING:
        unet["in_channels"] = 9
    elif family != "sd1":
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


def control_config(family: str) -> dict[str, Any]:
    """The configuration of a ControlNet for a family's UNet."""
    unet = {
        key: value for key, value in configs(family)["unet"].items() if not key.startswith(("up_", "out_"))
    }
    del unet["sample_size"]
    return {**unet, "_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [8, 12]}


CONTROLS = {
    "controlled": (("edges", 1.0, 0.0, 1.0),),
    "controlled for a while": (("edges", 0.7, 0.2, 0.8),),
    "controlled twice": (("edges", 0.5, 0.0, 1.0), ("depth", 0.8, 0.0, 0.6)),
}
"""ControlNets by name, with strength, start and end."""


def control_tensors(family: str, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """A ControlNet's weights."""
    stored = json.loads((DATA / "control.shapes.json").read_text())[family]
    return {key: weight(family, f"control {name}", key, tuple(shape)) for key, shape in stored.items()}


def write_control(family: str, name: str, folder: Path) -> Path:
    """Lay a ControlNet out as a diffusers repository."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(control_config(family)))
    save_file(control_tensors(family, name), folder / "diffusion_pytorch_model.safetensors")
    return folder


def write_tiny_control(tiny: Path, folder: Path) -> Path:
    """A ControlNet with random weights for the trained tiny model."""
    from safetensors.numpy import load_file, save_file

    unet = json.loads((tiny / "unet" / "config.json").read_text())
    kept = {key: value for key, value in unet.items() if not key.startswith(("up_", "out_", "_"))}
    scale = len(json.loads((tiny / "vae" / "config.json").read_text())["block_out_channels"])
    folder.mkdir()
    widths = [8] * scale
    config = {**kept, "_class_name": "ControlNetModel", "conditioning_embedding_out_channels": widths}
    (folder / "config.json").write_text(json.dumps(config))
    found = load_file(tiny / "unet" / "diffusion_pytorch_model.safetensors")
    tensors = {
        name: value.astype(np.float32)
        for name, value in found.items()
        if not name.startswith(("up_", "conv_norm", "conv_out"))
    }
    skips = [kept["block_out_channels"][0]]
    for level, width in enumerate(kept["block_out_channels"]):
        last = level == len(kept["block_out_channels"]) - 1
        skips += [width] * (kept["layers_per_block"] + (not last))
    shapes = {f"controlnet_down_blocks.{number}": (width, width, 1, 1) for number, width in enumerate(skips)}
    shapes["controlnet_mid_block"] = (skips[-1], skips[-1], 1, 1)
    shapes["controlnet_cond_embedding.conv_in"] = (8, 3, 3, 3)
    shapes["controlnet_cond_embedding.conv_out"] = (skips[0], 8, 3, 3)
    for number in range(2 * (scale - 1)):
        shapes[f"controlnet_cond_embedding.blocks.{number}"] = (8, 8, 3, 3)
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = weight("tiny", "control", name, shape)
        tensors[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def control_picture(name: str) -> np.ndarray[Any, Any]:
    """What a ControlNet is shown: (HEIGHT, WIDTH, 3) uint8."""
    return picture() if name == "edges" else np.ascontiguousarray(picture()[::-1, ::-1])


def refiner_config() -> dict[str, Any]:
    """The configuration of the UNet of a refiner for Stable Diffusion XL."""
    unet = configs("sdxl")["unet"]
    return {**unet, "cross_attention_dim": 20, "projection_class_embeddings_input_dim": 5 * 8 + 20}


REFINED = {
    "refined": ("euler", 0.6, {}),
    "refined earlier": ("dpmpp_2m", 0.4, {}),
    "refined with noise": ("euler_ancestral", 0.6, {}),
    "refined without a negative prompt": ("ddim", 0.4, {"negative": None}),
    "refined without guidance": ("euler", 0.6, {"negative": None, "guidance": 1.0}),
}
"""Pictures that a refiner ends: the sampler, where it takes over, and what else is asked."""


def write_refiner(folder: Path) -> Path:
    """Lay a refiner out as a diffusers repository, as far as it is read."""
    from safetensors.numpy import save_file

    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps(refiner_config()))
    stored = json.loads((DATA / "refiner.shapes.json").read_text())
    tensors = {name: weight("sdxl", "refiner", name, tuple(shape)) for name, shape in stored.items()}
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


IMAGE_ENCODER = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
    "projection_dim": 20,
    "hidden_act": "gelu",
}
SEEN = {
    "plain": (("plain", 1.0),),
    "plus": (("plus", 0.8),),
    "full": (("full", 0.8),),
    "two": (("plain", 0.5), ("plus", 0.7)),
}
"""IP-Adapters by kind, with strength."""
ADAPTED = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
"""The layer that an adapter changes beside an IP-Adapter."""
_ENDS = ("weight", "bias")


def ip_tensors(family: str, kind: str) -> dict[str, np.ndarray[Any, Any]]:
    """An IP-Adapter's weights, as its authors name them."""
    if family == "tiny":
        tiny = Path(__file__).parents[3] / "tests" / "models" / "tiny-shapes-sd" / "unet"
        layers = _cross_attentions(tiny / "diffusion_pytorch_model.safetensors")
    else:
        unet = shapes(family)["unet"].items()
        layers = [tuple(shape) for name, shape in unet if name.endswith("attn2.to_k.weight")]
    width, summary, context = 16, 20, layers[0][1]
    ends: dict[str, tuple[int, ...]]
    if kind == "plain":
        ends = {"proj": (4 * context, summary), "norm": (context,)}
    elif kind == "full":
        ends = {"proj.0": (width, width), "proj.2": (context, width), "proj.3": (context,)}
    else:
        ends = {"proj_in": (24, width), "proj_out": (context, 24), "norm_out": (context,)}
    named = {f"{name}.{end}": shape[: 1 + (end == "weight")] for name, shape in ends.items() for end in _ENDS}
    if kind == "plus":
        named["latents"] = (1, 5, 24)
        for layer in ("layers.0", "layers.1", "layers.2", "layers.3"):
            named |= {
                f"{layer}.{norm}.{end}": (24,) for norm in ("0.norm1", "0.norm2", "1.0") for end in _ENDS
            }
            named |= {f"{layer}.0.to_q.weight": (128, 24), f"{layer}.0.to_kv.weight": (256, 24)}
            named |= {f"{layer}.0.to_out.weight": (24, 128)}
            named |= {f"{layer}.1.1.weight": (96, 24), f"{layer}.1.3.weight": (24, 96)}
    named = {f"image_proj.{name}": shape for name, shape in named.items()}
    for number, shape in enumerate(layers):
        named |= {f"ip_adapter.{2 * number + 1}.to_{letter}_ip.weight": shape for letter in "kv"}
    return {name: weight(family, f"ip {kind}", name, shape) for name, shape in named.items()}


def _cross_attentions(file: Path) -> list[tuple[int, ...]]:
    """Shapes of a UNet's keys, the middle's last."""
    from safetensors.numpy import load_file

    found = {
        name: value.shape for name, value in load_file(file).items() if name.endswith("attn2.to_k.weight")
    }
    return [
        found[name] for start in ("down", "up", "mid") for name in sorted(found) if name.startswith(start)
    ]


def write_ip(family: str, kind: str, root: Path) -> Path:
    """Lay an IP-Adapter out as its authors do: the file, and the image encoder in a folder beside it."""
    from safetensors.numpy import save_file

    folder = root / ("sdxl_models" if family == "sdxl" else "models")
    encoder = folder / "image_encoder"
    encoder.mkdir(parents=True, exist_ok=True)
    (encoder / "config.json").write_text(json.dumps(IMAGE_ENCODER))
    stored = json.loads((DATA / "ip.shapes.json").read_text())
    tensors = {name: weight("ip", "image_encoder", name, tuple(shape)) for name, shape in stored.items()}
    save_file(tensors, encoder / "model.safetensors")
    file = folder / f"ip-adapter-{kind}.safetensors"
    save_file(ip_tensors(family, kind), file)
    return file


def ip_picture() -> np.ndarray[Any, Any]:
    """What an IP-Adapter is shown: wider than high, (20, 31, 3) uint8."""
    return np.ascontiguousarray(picture().transpose(1, 0, 2)[2:22, :31, ::-1])


def adapter_of_one() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """An adapter of rank 2 for `ADAPTED` of Stable Diffusion 1: down and up."""
    return random("one/down", (2, 32)) * np.float32(0.3), random("one/up", (32, 2)) * np.float32(0.3)


def scheduler_config(name: str, prediction: str, spacing: str) -> dict[str, Any]:
    """A ``scheduler_config.json``."""
    return {
        "_class_name": _CLASSES[name],
        **NOISE,
        **({"algorithm_type": "sde-dpmsolver++"} if name == "dpmpp_2m_sde" else {}),
        "prediction_type": prediction,
        "timestep_spacing": spacing,
    }


def combinations(family: str) -> list[tuple[str, str, str]]:
    """Sampler, prediction type and spacing of each picture: all of them for one family.

    Samplers do not know which network they serve. One of them has no spacings.
    """
    names = SCHEDULERS if family == "sd1" else ("euler", "euler_ancestral", "ddim", "dpmpp_2m")
    every = itertools.product(names, PREDICTIONS, SPACINGS)
    return [item for item in every if item[0] != "dpmpp_2s" or item[2] == "linspace"]


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


WALKERS = ("euler", "heun", "ddim", "dpmpp_2m", "dpmpp_2s", "deis", "unipc", "pndm", "lms", "ddpm")
"""Samplers that are also compared without a network, which hides what their orders do."""
WALK = 9


def walks() -> dict[str, dict[str, Any]]:
    """Scheduler configurations, by label."""
    found = {"/".join(item): scheduler_config(*item) for item in combinations("sd1") if item[0] in WALKERS}
    for label, (name, changes) in SETTINGS.items():
        if name in WALKERS and "num_steps" not in changes and "disable_corrector" not in changes:
            found[label] = {**scheduler_config(name, "epsilon", "leading"), **changes}
    large = {"variance_type": "fixed_large"}
    found["large variance to the end"] = {**scheduler_config("ddpm", "epsilon", "linspace"), **large}
    found["runge-kutta first"] = {**scheduler_config("pndm", "epsilon", "leading"), "skip_prk_steps": False}
    return found


def said(sample: np.ndarray[Any, Any], time: float) -> np.ndarray[Any, Any]:
    """What a model says that changes its mind at every step."""
    return np.sin(3 * sample + time / 90).astype(np.float32)


def walk_noise(index: int) -> np.ndarray[Any, Any]:
    """Where a walk starts (index 0), and what its steps add: (1, 2, 3, 4)."""
    return random(f"walk/{index}", (1, 2, 3, 4))


def vectors(width: int) -> np.ndarray[Any, Any]:
    """Two embeddings of `WORD`: (2, width)."""
    return random(f"vectors/{width}", (2, width)) * np.float32(0.5)


def picture() -> np.ndarray[Any, Any]:
    """A picture to start from: (HEIGHT, WIDTH, 3) uint8, smooth."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)]
    return np.round(127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


def mask() -> np.ndarray[Any, Any]:
    """Which part of `picture` to make anew: (HEIGHT, WIDTH) uint8, 255 in a disc that is cut off."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.where((x - 15) ** 2 + (y - 12) ** 2 < 90, 255, 0).astype(np.uint8)


def shapes(family: str) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of every tensor, by part, as the torch side wrote them."""
    source = "sd1" if family == FILLING else family
    found: dict[str, dict[str, list[int]]] = json.loads((DATA / f"{source}.shapes.json").read_text())
    if family == FILLING:
        found["unet"]["conv_in.weight"][1] = 9
    return found


def write_repository(family: str, folder: Path, tokenizer: Path, scheduler: dict[str, Any]) -> Path:
    """Lay the model out as a diffusers repository."""
    from safetensors.numpy import save_file

    parts = configs(family)
    index: dict[str, Any] = {
        "_class_name": {"sdxl": "StableDiffusionXLPipeline", FILLING: "StableDiffusionInpaintPipeline"}.get(
            family, "StableDiffusionPipeline"
        ),
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
