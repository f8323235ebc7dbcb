"""Compute what diffusers makes of the tiny Wans: the stored references.

    python make_wan_reference.py [OUT_FOLDER]

Needs torch, diffusers, transformers, ftfy and safetensors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from safetensors.numpy import save_file
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_wan as w

_VIDEOS = ("plain", "guided", "picture")


def filled(module: Any, part: str) -> dict[str, list[int]]:
    """Give a module its weights; their names and shapes."""
    state = module.state_dict()
    state.pop("encoder.embed_tokens.weight", None)
    made = {name: torch.from_numpy(w.weight(part, name, tuple(value.shape))) for name, value in state.items()}
    missing, unknown = module.load_state_dict(made, strict=False)
    assert not unknown
    assert set(missing) <= {"encoder.embed_tokens.weight"}
    module.eval()
    return {name: list(value.shape) for name, value in state.items()}


def built(family: str, words: Path) -> tuple[dict[str, Any], dict[str, dict[str, list[int]]]]:
    """A pipeline's parts, and their tensors' shapes."""
    made: dict[str, Any] = {
        "transformer": WanTransformer3DModel(**w.transformer(family)),
        "vae": AutoencoderKLWan(**w.vae(family)),
        "text_encoder": UMT5EncoderModel(UMT5Config(**w.TEXT)),
    }
    shapes = {part: filled(module, part) for part, module in made.items()}
    if "transformer_2" in w.parts(family):
        made["transformer_2"] = WanTransformer3DModel(**w.transformer(family))
        filled(made["transformer_2"], "transformer_2")
    settings = {key: value for key, value in w.scheduler(family).items() if not key.startswith("_")}
    made["scheduler"] = UniPCMultistepScheduler(**settings)
    made["tokenizer"] = AutoTokenizer.from_pretrained(words)
    return made, shapes


def videos(family: str, made: dict[str, Any]) -> dict[str, Any]:
    """Whole pipelines: a family's videos, (frames, height, width, 3)."""
    known = w.index(family)
    options = {
        "boundary_ratio": known["boundary_ratio"],
        "expand_timesteps": known["expand_timesteps"],
        "transformer_2": made.get("transformer_2"),
    }
    parts = {**{key: value for key, value in made.items() if key != "transformer_2"}, **options}
    width, height = w.SIZE[family]
    found = {}
    for name, guidance in zip(_VIDEOS, (1.0, w.GUIDANCE, w.GUIDANCE), strict=True):
        if name not in (("picture",) if family == "i2v" else _VIDEOS[: 3 if family == "ti2v" else 2]):
            continue
        shown = name == "picture"
        pipe: Any = (WanImageToVideoPipeline if shown else WanPipeline)(**parts)
        pipe.set_progress_bar_config(disable=True)
        frames = pipe(
            **({"image": Image.fromarray(w.picture(family))} if shown else {}),
            prompt=w.PROMPT,
            negative_prompt=w.NEGATIVE,
            height=height,
            width=width,
            num_frames=w.FRAMES,
            num_inference_steps=w.STEPS,
            guidance_scale=guidance,
            latents=torch.from_numpy(w.noise(family))[None],
            output_type="np",
        ).frames[0]
        found[f"{family}.{name}"] = np.round(frames * 255).astype(np.uint8)
        print(family, name, frames.shape, "deviation", frames.std(), "of steps", frames.mean(axis=(1, 2, 3)))
    return found


def networks(family: str, made: dict[str, Any]) -> dict[str, Any]:
    """Each network by itself."""
    shown = {name: torch.from_numpy(value)[None] for name, value in w.shown(family).items()}
    found: dict[str, Any] = {}
    text = torch.cat([shown["text"], torch.zeros(1, 512 - shown["text"].shape[1], w.TEXT["d_model"])], dim=1)
    call = {"encoder_hidden_states": text, "return_dict": False}
    found["transformer"] = made["transformer"](shown["latents"], torch.tensor([w.TIME]), **call)[0][0]
    if family == "ti2v":
        each = torch.cat([torch.zeros(1, 6), torch.full((1, 6), float(w.TIME))], dim=1)
        found["transformer.each"] = made["transformer"](shown["latents"], each, **call)[0][0]
    if family in ("t2v", "ti2v"):
        vae = made["vae"]
        found["decoded"] = vae.decode(shown["hidden"], return_dict=False)[0][0].permute(1, 2, 3, 0)
        for name, count in (("encoded", 9), ("encoded.one", 1)):
            found[name] = vae.encode(shown["frames"][:, :, :count]).latent_dist.mode()[0]
    return {f"{family}.{name}": value.contiguous().numpy() for name, value in found.items()}


def solved() -> dict[str, Any]:
    """UniPC over a velocity that is a function of latents and time, and its timesteps."""
    found: dict[str, Any] = {}
    known = w.scheduler("t2v")
    usual = {key: value for key, value in known.items() if not key.startswith("_")}
    for number, (shift, order, steps, uncorrected) in enumerate(w.SOLVED):
        made = UniPCMultistepScheduler(
            **{**usual, "flow_shift": shift, "solver_order": order, "disable_corrector": list(uncorrected)}
        )
        made.set_timesteps(steps)
        latents, way = torch.from_numpy(w.random(6, 1, 12)), []
        for time in made.timesteps:
            velocity = torch.sin(latents * 2 + time / 300) + 0.3 * latents
            latents = made.step(velocity, time, latents, return_dict=False)[0]
            way.append(latents[0])
        found[f"solver.{number}"] = torch.stack(way).numpy()
    for shift in w.SHIFTS:
        told = []
        for steps in range(1, 61):
            made = UniPCMultistepScheduler(**{**usual, "flow_shift": shift})
            made.set_timesteps(steps)
            told.append(made.timesteps.numpy())
        found[f"told.{shift}"] = np.concatenate(told).astype(np.int16)
    return found


def buckets() -> Any:
    """In which of its buckets UMT5 sees each distance between two tokens."""
    layer = UMT5EncoderModel(UMT5Config(**w.TEXT)).encoder.block[0].layer[0].SelfAttention
    return layer._relative_position_bucket(torch.arange(-511, 512)).numpy().astype(np.int8)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else w.DATA
    shapes, found = {}, {**solved(), "text.buckets": buckets()}
    with tempfile.TemporaryDirectory() as folder:
        w.write_tokenizer(Path(folder))
        for family in w.FAMILIES:
            made, shapes[family] = built(family, Path(folder))
            found |= networks(family, made) | videos(family, made)
            if family == "t2v":
                pipe = WanPipeline(**made)
                for name, text in (("prompt", w.PROMPT), ("long", w.LONG)):
                    states = pipe.encode_prompt(text, max_sequence_length=512)[0][0]
                    found[f"text.{name}"] = states[states.abs().sum(dim=-1) > 0].numpy()
    (out / "wan.shapes.json").write_text(json.dumps(shapes) + "\n")
    save_file({key: np.ascontiguousarray(value) for key, value in found.items()}, out / "wan.safetensors")


if __name__ == "__main__":
    main()
