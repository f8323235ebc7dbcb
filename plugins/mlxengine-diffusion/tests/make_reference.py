"""Compute the stored references with diffusers on torch, on the same random weights.

    python make_reference.py TOKENIZER_FOLDER [OUT_FOLDER]

Writes, for each family, the tensors' names and shapes and what diffusers makes of them: each part's
output, a picture for every sampler, prediction type and spacing, and pictures made from a picture.
Needs torch, diffusers, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import geometry as g
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as img2img
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint
from diffusers.schedulers import (
    scheduling_ddpm,
    scheduling_dpmsolver_multistep,
    scheduling_dpmsolver_sde,
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
    scheduling_tcd,
)
from PIL import Image
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

STOCHASTIC = (
    scheduling_ddpm,
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
    scheduling_tcd,
)


def fill(module: torch.nn.Module, family: str, part: str) -> dict[str, list[int]]:
    """Give a module the shared random weights; its tensors' shapes."""
    found = {}
    for name, value in module.state_dict().items():
        if name.endswith("position_ids"):
            continue
        found[name] = list(value.shape)
        value.copy_(torch.from_numpy(g.weight(family, part, name, tuple(value.shape))))
    module.eval()
    return found


def nchw(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def nhwc(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.detach().permute(0, 2, 3, 1).numpy())


class Noises:
    """Stands in for the random numbers of stochastic samplers: step by step, the shared ones."""

    def __init__(self, first: int) -> None:
        self.index = first

    def __call__(self, shape: Any, **_: Any) -> torch.Tensor:
        self.index += 1
        return nchw(g.noise(self.index - 1))


class Walk(Noises):
    """Stands in for the Brownian motion of DPM-Solver++ (SDE): a step is one walk with its first half."""

    def __call__(self, level: Any, following: Any) -> torch.Tensor:  # type: ignore[override]
        self.index += 1
        fresh = nchw(g.noise(self.index - 1))
        if self.index % 2 == 0:
            self.first, self.middle = fresh, following
            return fresh
        halves = (level - self.middle) ** 0.5, (self.middle - following) ** 0.5
        return (self.first * halves[0] + fresh * halves[1]) / (level - following) ** 0.5


def share_noise(first: int) -> None:
    """Let every stochastic sampler take the shared noise, from number ``first`` on."""
    for module in STOCHASTIC:
        module.randn_tensor = Noises(first)
    scheduling_dpmsolver_sde.BrownianTreeNoiseSampler = lambda *_, **__: Walk(first)


def sampler(config: dict[str, Any]) -> Any:
    return getattr(diffusers, config["_class_name"]).from_config(config)


def build(family: str, tokenizer_folder: Path) -> tuple[Any, dict[str, dict[str, list[int]]]]:
    configs = g.configs(family)
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**configs["unet"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        "vae": AutoencoderKL(**configs["vae"]),
    }
    if family == "sdxl":
        parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"]))
    shapes = {name: fill(part, family, name) for name, part in parts.items()}
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    if family == "sdxl":
        made: Any = StableDiffusionXLPipeline(
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=EulerDiscreteScheduler(),
            add_watermarker=False,
            **parts,
        )
    else:
        made = StableDiffusionPipeline(
            tokenizer=tokenizer,
            scheduler=EulerDiscreteScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )
    made.set_progress_bar_config(disable=True)
    return made, shapes


def components(pipe: Any, family: str) -> dict[str, np.ndarray[Any, Any]]:
    ids = torch.tensor(pipe.tokenizer([g.PROMPT], padding="max_length", max_length=77).input_ids)
    found: dict[str, np.ndarray[Any, Any]] = {}
    first = pipe.text_encoder(ids, output_hidden_states=True)
    added = None
    context = first.last_hidden_state
    if family == "sdxl":
        second = pipe.text_encoder_2(ids, output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        sizes = torch.tensor([[g.HEIGHT, g.WIDTH, 0, 0, g.HEIGHT, g.WIDTH]], dtype=torch.float32)
        added = {"text_embeds": second.text_embeds, "time_ids": sizes}
        found["pooled"] = second.text_embeds.numpy()
    found["context"] = context.numpy()
    # An odd size: it is halved and doubled again on the way through the UNet.
    odd = g.random("odd", (1, 9, 7, 4))
    output = pipe.unet(nchw(odd), 321.0, context, added_cond_kwargs=added).sample
    found["unet"] = nhwc(output)
    found["decoded"] = nhwc(pipe.vae.decode(nchw(g.noise(0)) / pipe.vae.config.scaling_factor).sample)
    pixels = torch.from_numpy(g.picture().astype(np.float32) / 127.5 - 1)[None].permute(0, 3, 1, 2)
    found["encoded"] = nhwc(pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor)
    return {name: value.astype(np.float32) for name, value in found.items()}


def call(pipe: Any, **more: Any) -> np.ndarray[Any, Any]:
    values = {
        "prompt": g.PROMPT,
        "negative_prompt": g.NEGATIVE,
        "num_inference_steps": g.STEPS,
        "guidance_scale": g.GUIDANCE,
        "output_type": "np",
        "eta": g.ETA if isinstance(pipe.scheduler, diffusers.TCDScheduler) else 0.0,
        **more,
    }
    return np.ascontiguousarray(np.round(pipe(**values).images[0] * 255).astype(np.uint8))


def pictures(pipe: Any, family: str, tokenizer_folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    size = {"height": g.HEIGHT, "width": g.WIDTH}
    for name, prediction, spacing in g.combinations(family):
        pipe.scheduler = sampler(g.scheduler_config(name, prediction, spacing))
        share_noise(1)
        found[f"{name}/{prediction}/{spacing}"] = call(pipe, latents=nchw(g.noise(0)), **size)
    pipe.scheduler = sampler(g.scheduler_config("euler", "epsilon", "leading"))
    latents = nchw(g.noise(0))
    found["no negative"] = call(pipe, latents=latents, negative_prompt=None, **size)
    found["no guidance"] = call(pipe, latents=latents, negative_prompt=None, guidance_scale=1.0, **size)
    found["rescaled"] = call(pipe, latents=latents, guidance_rescale=g.RESCALE, **size)
    # diffusers counts the layers that are left out, besides the one that SDXL always leaves out.
    pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder  # where it looks for the norm
    left_out = g.LAYER - (2 if family == "sdxl" else 1)
    # It leaves them out of the prompt alone, so without guidance there is nothing to differ about.
    plain = {"negative_prompt": None, "guidance_scale": 1.0, **size}
    found["another layer"] = call(pipe, latents=latents, clip_skip=left_out, **plain)
    for label, fragments in {"weighed": g.FRAGMENTS, "long": ((g.LONG, 1.0),)}.items():
        told = words(pipe, fragments, ((g.NEGATIVE, 1.0),))
        found[label] = call(pipe, latents=latents, prompt=None, negative_prompt=None, **told, **size)
    if family == "sd1":
        found |= otherwise(pipe)
        found |= from_picture(pipe)
        found |= filled(pipe, "")
        filling, _ = build(g.FILLING, tokenizer_folder)
        found |= filled(filling, " by nine channels")
    return found


def words(pipe: Any, prompt: Any, negative: Any) -> dict[str, torch.Tensor]:
    """Weighed and long prompts as the pipeline's embeddings: chunks of 75 tokens, side by side."""
    xl = hasattr(pipe, "text_encoder_2")
    encoders = [(pipe.tokenizer, pipe.text_encoder)]
    if xl:
        encoders.append((pipe.tokenizer_2, pipe.text_encoder_2))
    found: dict[str, torch.Tensor] = {}
    texts = [" ".join(text for text, _ in each) for each in (prompt, negative)]
    longest = max(len(pipe.tokenizer(text).input_ids) for text in texts)
    count = -(-(longest - 2) // 75)
    for name, fragments in (("prompt_embeds", prompt), ("negative_prompt_embeds", negative)):
        states = []
        for tokenizer, encoder in encoders:
            told = [
                (token, weight)
                for text, weight in fragments
                for token in tokenizer(text, add_special_tokens=False).input_ids
            ]
            chunks = []
            for start in range(0, 75 * count, 75):
                part = told[start : start + 75]
                row = [tokenizer.bos_token_id, *(token for token, _ in part), tokenizer.eos_token_id]
                ids = torch.tensor([row + [tokenizer.pad_token_id] * (77 - len(row))])
                weights = torch.ones(1, 77, 1)
                weights[0, 1 : 1 + len(part), 0] = torch.tensor([weight for _, weight in part])
                output = encoder(ids, output_hidden_states=True)
                state = output.hidden_states[-2] if xl else output.last_hidden_state
                mean = state.mean()
                state = state * weights
                chunks.append(state * (mean / state.mean()))
                if xl and start == 0:
                    found[name.replace("prompt_embeds", "pooled_prompt_embeds")] = output[0]
            states.append(torch.cat(chunks, dim=1))
        found[name] = torch.cat(states, dim=-1)
    return found


def otherwise(pipe: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Pictures with noise levels placed otherwise, and with what else a configuration can say."""
    cases = {
        f"{name}/{placement}": (name, {f"use_{placement}_sigmas": True})
        for name in g.PLACED
        for placement in g.PLACEMENTS
    }
    found = {}
    for label, (name, changes) in {**cases, **g.SETTINGS}.items():
        config = {**g.scheduler_config(name, "epsilon", "leading"), **changes}
        steps = config.pop("num_steps", g.STEPS)
        pipe.scheduler = sampler(config)
        share_noise(1)
        size = {"height": g.HEIGHT, "width": g.WIDTH, "num_inference_steps": steps}
        found[label] = call(pipe, latents=nchw(g.noise(0)), **size)
    return found


def from_picture(pipe: Any) -> dict[str, np.ndarray[Any, Any]]:
    # The autoencoder's mean instead of a sample: what ours does, so that strength 0 is the picture itself.
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mean
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    found = {}
    for name in g.SCHEDULERS:
        other.scheduler = sampler(g.scheduler_config(name, "epsilon", "leading"))
        img2img.randn_tensor = Noises(0)
        # Ours numbers the fresh noise by the evaluations of the whole schedule.
        share_noise(1 + (g.STEPS - int(g.STEPS * g.STRENGTH)) * (2 if name in g.TWICE else 1))
        found[f"{name}/from picture"] = call(other, image=Image.fromarray(g.picture()), strength=g.STRENGTH)
    return found


def filled(pipe: Any, how: str) -> dict[str, np.ndarray[Any, Any]]:
    """Pictures of which a part was made anew."""
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mean
    other = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    told = {"image": Image.fromarray(g.picture()), "mask_image": Image.fromarray(g.mask())}
    size = {"height": g.HEIGHT, "width": g.WIDTH}
    found = {}
    for name in ("euler", "ddim", "dpmpp_2m", "unipc", "lcm", "heun"):
        for strength in (1.0, g.STRENGTH):
            other.scheduler = sampler(g.scheduler_config(name, "epsilon", "leading"))
            inpaint.randn_tensor = Noises(0)
            left = g.STEPS - int(g.STEPS * strength)
            share_noise(1 + left * (2 if name in g.TWICE else 1))
            found[f"{name}/filled{how}/{strength}"] = call(other, strength=strength, **told, **size)
    return found


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    tokenizer = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else g.DATA
    out.mkdir(parents=True, exist_ok=True)
    for family in g.FAMILIES:
        pipe, shapes = build(family, tokenizer)
        (out / f"{family}.shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
        save_file(components(pipe, family), out / f"{family}.components.safetensors")
        made = pictures(pipe, family, tokenizer)
        save_file(made, out / f"{family}.pictures.safetensors")
        spread = [float(picture.std()) for picture in made.values()]
        print(
            family, len(made), "pictures, standard deviations", round(min(spread)), "to", round(max(spread))
        )


if __name__ == "__main__":
    main()
