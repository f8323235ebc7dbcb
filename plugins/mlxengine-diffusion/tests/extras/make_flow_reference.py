"""Compute what diffusers makes of the tiny models of flow matching, adapted or from pictures: references.

    python make_flow_reference.py CLIP_TOKENIZER_FOLDER [OUT_FOLDER]

Needs torch, diffusers, peft, transformers and safetensors.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import tiny_adapters as a
import tiny_flux1 as f1
import tiny_flux2 as f2
import tiny_kit as k
import tiny_qwen_image as q
import tiny_z_image as z
import torch
from diffusers import (
    Flux2KleinInpaintPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
)
from diffusers.loaders import lora_conversion_utils as convert
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from make_mflux_reference import flux1_pipe, flux2_pipe, picture, qwen_image_pipe
from make_z_image_reference import z_image_pipe
from PIL import Image
from safetensors.numpy import save_file

SIDE = f2.SIDE
_CONVERTERS: dict[tuple[str, str], Any] = {
    ("flux1", "kohya"): convert._convert_kohya_flux_lora_to_diffusers,
    ("flux2", "kohya"): convert._convert_kohya_flux2_lora_to_diffusers,
    ("flux2", "comfyui"): convert._convert_non_diffusers_flux2_lora_to_diffusers,
    ("z_image", "kohya"): convert._convert_non_diffusers_z_image_lora_to_diffusers,
    ("qwen_image", "kohya"): convert._convert_non_diffusers_qwen_lora_to_diffusers,
    ("qwen_image", "comfyui"): convert._convert_non_diffusers_qwen_lora_to_diffusers,
    ("xlabs", "xlabs"): convert._convert_xlabs_flux_lora_to_diffusers,
}
_ENDS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)
# What diffusers' converters do not take: FLUX.1's width is written into one, and the other forgets keys.
_LEFT_OUT = {("flux1", "kohya"): ("linear1", "img_in"), ("z_image", "kohya"): ("cap_embedder",)}


def changes(tensors: Any) -> dict[str, Any]:
    """What an adapter adds to each layer, by diffusers' name."""
    found = {}
    tensors = {key.replace(".to_q_lora.", ".q_proj.lora."): value for key, value in tensors.items()}
    for key, down in tensors.items():
        for end, other in _ENDS:
            if key.endswith(end):
                name = key.removesuffix(end).removeprefix("transformer.")
                up = tensors[key.replace(end, other)]
                found[name] = np.asarray(up, np.float32) @ np.asarray(down, np.float32)
    return found


def check_forms() -> None:
    """Other forms of keys mean what diffusers makes of them."""
    for (name, form), converter in _CONVERTERS.items():
        left_out = _LEFT_OUT.get((name, form), ())
        tensors = a.xlabs() if form == "xlabs" else a.FORMS[form](name)
        kept = {key: value for key, value in tensors.items() if not any(part in key for part in left_out)}
        theirs = changes(converter({key: torch.from_numpy(value) for key, value in kept.items()}))
        ours = changes(a.peft(name))
        assert theirs, (name, form)
        for layer, change in theirs.items():
            if layer == "norm_out.linear" and (name, form) == ("flux1", "kohya"):
                change = change * (a.ALPHA / a.RANK)  # this one's alpha is read by nobody there
            assert np.abs(change - ours[layer]).max() < 1e-5, (name, form, layer)
        missing = {
            layer for layer in set(ours) - set(theirs) if "single" not in layer and "embedder" not in layer
        }
        assert not missing, (name, form, missing)


def families(t5_words: Path, words: Path, clip_words: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Pipelines, and what each is asked for."""
    common: dict[str, Any] = {"height": SIDE, "width": SIDE}
    places = torch.from_numpy(a.noise("flux2")).reshape(1, SIDE // 16, SIDE // 16, 128).permute(0, 3, 1, 2)
    return {
        "flux1": (
            flux1_pipe(t5_words, clip_words)[0],
            {
                **common,
                "prompt": f1.PROMPT,
                "num_inference_steps": f1.STEPS,
                "guidance_scale": f1.GUIDANCE,
                "latents": torch.from_numpy(a.noise("flux1")),
            },
        ),
        "flux2": (
            flux2_pipe(words)[0],
            {
                **common,
                "prompt": f2.PROMPT,
                "num_inference_steps": f2.STEPS,
                "guidance_scale": f2.GUIDANCES["plain"],
                "latents": places,
            },
        ),
        "z_image": (
            z_image_pipe(words)[0],
            {
                **common,
                "prompt": z.PROMPT,
                "num_inference_steps": z.STEPS,
                "guidance_scale": 0.0,
                "latents": torch.from_numpy(a.noise("z_image")[:, :, 0]),
            },
        ),
        "qwen_image": (
            qwen_image_pipe(words)[0],
            {
                **common,
                "prompt": q.PROMPT,
                "num_inference_steps": q.STEPS,
                "true_cfg_scale": q.GUIDANCES["plain"],
                "latents": torch.from_numpy(a.noise("qwen_image")),
            },
        ),
    }


@contextmanager
def shared_noise(pipe: Any, name: str) -> Iterator[None]:
    """Let a pipeline draw our noise, and take the mean of what an autoencoder gives."""
    module = sys.modules[type(pipe).__module__]
    kept = {key: getattr(module, key) for key in ("randn_tensor", "retrieve_latents") if hasattr(module, key)}
    drawn = torch.from_numpy(a.noise(name))

    def draw(shape: tuple[int, ...], **_: Any) -> Any:
        if name == "flux2":
            return drawn.reshape(1, SIDE // 16, SIDE // 16, 128).permute(0, 3, 1, 2).reshape(shape)
        return torch.from_numpy(k.noise()[:, :, : SIDE // 8, : SIDE // 8].copy()).reshape(shape)

    module.randn_tensor = draw
    module.retrieve_latents = lambda made, **_: made.latent_dist.mode()
    yield
    for key, value in kept.items():
        setattr(module, key, value)


def from_pictures(family: str, pipe: Any, asked: dict[str, Any], t5_words: Path, clip_words: Path) -> Any:
    """What a family makes of a picture, by the name that `tiny_adapters.changes` has for it."""
    start, other = Image.fromarray(a.start()), Image.fromarray(a.other())
    given = {"image": start, "mask_image": Image.fromarray(a.mask()), "strength": a.STRENGTH}
    asked = {key: value for key, value in asked.items() if key != "latents"}
    pictures = {}

    def make(name: str, made: Any, **options: Any) -> None:
        with shared_noise(made, family):
            pictures[name] = picture(made, **{**asked, **options})

    if family == "flux2":
        del asked["height"], asked["width"]
        make("a part anew", Flux2KleinInpaintPipeline(**pipe.components), **given)
        sized = {"height": SIDE, "width": SIDE}
        make("looking at two", pipe, image=[start, other], **sized)
        make("looking at one", pipe, image=other, **sized)
        # diffusers has no pipeline for this: the same steps with the first ones left out.
        usual, first = pipe.scheduler.set_timesteps, int(f2.STEPS - f2.STEPS * a.STRENGTH)

        @wraps(usual)
        def later(*values: Any, **options: Any) -> None:
            usual(*values, **options)
            pipe.scheduler.timesteps = pipe.scheduler.timesteps[first:]
            pipe.scheduler.sigmas = pipe.scheduler.sigmas[first:]

        later(sigmas=np.linspace(1.0, 1 / f2.STEPS, f2.STEPS), mu=compute_empirical_mu(16, f2.STEPS))
        level = pipe.scheduler.sigmas[0]
        clean = pipe._encode_vae_image(pipe.image_processor.preprocess(start), generator=None)
        noise = torch.from_numpy(a.noise("flux2")).reshape(1, 4, 4, 128).permute(0, 3, 1, 2)
        pipe.scheduler.set_timesteps = later
        make("from a picture", pipe, latents=level * noise + (1 - level) * clean, **sized)
        pipe.scheduler.set_timesteps = usual
        return pictures
    classes = {
        "flux1": (FluxImg2ImgPipeline, FluxInpaintPipeline),
        "z_image": (ZImageImg2ImgPipeline, ZImageInpaintPipeline),
        "qwen_image": (QwenImageImg2ImgPipeline, QwenImageInpaintPipeline),
    }[family]
    parts = {
        key: value
        for key, value in pipe.components.items()
        if key not in ("image_encoder", "feature_extractor")
    }
    make("from a picture", classes[0](**parts), image=start, strength=a.STRENGTH)
    make("a part anew", classes[1](**parts), **given)
    if family == "flux1":
        make(
            "looking at one",
            FluxKontextPipeline(**parts),
            image=other,
            max_area=SIDE * SIDE,
            _auto_resize=False,
        )
        wide, _ = flux1_pipe(t5_words, clip_words, f1.FILL)
        parts = {**parts, "transformer": wide.transformer}
        make("fill", FluxFillPipeline(**parts), **{**given, "strength": 1.0})
    return pictures


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    clip_words = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else k.DATA
    check_forms()
    pictures = {}
    with tempfile.TemporaryDirectory() as folder:
        t5_words, words = Path(folder) / "t5", Path(folder) / "words"
        t5_words.mkdir()
        z.write_tokenizer(words)
        for family, (pipe, asked) in families(t5_words, words, clip_words).items():
            plain = picture(pipe, **asked)
            for name, made in from_pictures(family, pipe, asked, t5_words, clip_words).items():
                pictures[f"{family}/{name}"] = made
                print(family, name, made.shape, np.abs(made.astype(int) - plain).mean())
            for name in (family, "xlabs") if family == "flux1" else (family,):
                tensors = {key: torch.from_numpy(value) for key, value in a.peft(name).items()}
                pipe.load_lora_weights(tensors)
                pictures[f"{name}/lora"] = made = picture(pipe, **asked)
                pipe.unload_lora_weights()
                difference = np.abs(made.astype(int) - plain)
                print(name, "adapted", difference.max(), difference.mean())
    save_file(pictures, out / "flow.pictures.safetensors")


if __name__ == "__main__":
    main()
