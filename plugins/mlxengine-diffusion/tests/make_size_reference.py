"""Compute the stored references of tiles, textual inversion, previews and upscaling with torch.

    python make_size_reference.py TOKENIZER_FOLDER [OUT_FOLDER]

The random weights are those of `geometry.py`. Needs torch, diffusers, transformers and safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import torch
from diffusers import AutoencoderTiny
from make_reference import build, call, fill, nchw, nhwc, sampler
from safetensors.numpy import save_file
from torch import nn
from transformers import CLIPTokenizer


def tiled(vae: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Latents and a picture of two by three tiles."""
    vae.enable_tiling()
    latents = g.random("tiles/latents", (1, *g.TILED, 4))
    height, width = (side * g.PIXELS_PER_LATENT for side in g.TILED)
    pixels = np.tanh(g.random("tiles/pixels", (1, height, width, 3)))
    made = {
        "decoded": nhwc(vae.decode(nchw(latents) / vae.config.scaling_factor).sample),
        "encoded": nhwc(vae.encode(nchw(pixels)).latent_dist.mean * vae.config.scaling_factor),
    }
    vae.disable_tiling()
    return made


def taught(tokenizer_folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Pictures with words of two vectors each that textual inversion taught."""
    found = {}
    size = {"height": g.HEIGHT, "width": g.WIDTH}
    for family in ("sd1", "sdxl"):
        pipe, _ = build(family, tokenizer_folder)
        pipe.scheduler = sampler(g.scheduler_config("euler", "epsilon", "leading"))
        first = torch.from_numpy(g.vectors(24))
        pipe.load_textual_inversion({g.WORD: first}, token=g.WORD)
        if family == "sdxl":
            pipe.tokenizer_2 = CLIPTokenizer.from_pretrained(tokenizer_folder)
            pipe.load_textual_inversion(
                {g.WORD: torch.from_numpy(g.vectors(20))},
                token=g.WORD,
                text_encoder=pipe.text_encoder_2,
                tokenizer=pipe.tokenizer_2,
            )
        found[family] = call(pipe, latents=nchw(g.noise(0)), prompt=g.TAUGHT, **size)
    return found


def small_decoder() -> dict[str, np.ndarray[Any, Any]]:
    vae = AutoencoderTiny(**g.TAESD)
    fill(vae, "sd1", "taesd")
    return {"taesd": nhwc(vae.decode(nchw(g.noise(0))).sample)}


class Dense(nn.Module):
    """Five convolutions, each shown all that came before (Wang et al. 2018, arXiv:1809.00219)."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for number in range(5):
            out = growth if number < 4 else width
            setattr(self, f"conv{number + 1}", nn.Conv2d(width + number * growth, out, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for number in range(1, 5):
            seen.append(nn.functional.leaky_relu(getattr(self, f"conv{number}")(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class Block(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(width, growth) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """ESRGAN's generator with the names of Real-ESRGAN's files."""

    def __init__(self, scale: int, width: int, growth: int, blocks: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = nn.Conv2d(3 * (4 // scale) ** 2, width, 3, padding=1)
        self.body = nn.Sequential(*(Block(width, growth) for _ in range(blocks)))
        for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
            setattr(self, name, nn.Conv2d(width, width, 3, padding=1))
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_first(nn.functional.pixel_unshuffle(x, 4 // self.scale))
        x = x + self.conv_body(self.body(x))
        for layer in (self.conv_up1, self.conv_up2):
            x = nn.functional.leaky_relu(layer(nn.functional.interpolate(x, scale_factor=2)), 0.2)
        return self.conv_last(nn.functional.leaky_relu(self.conv_hr(x), 0.2))


def upscaled() -> dict[str, np.ndarray[Any, Any]]:
    """A corner of the picture, enlarged by a factor of two and of four."""
    found = {}
    for scale in (2, 4):
        network = RRDBNet(scale, **g.ESRGAN)
        fill(network, "sd1", f"esrgan{scale}")
        small = torch.from_numpy(g.picture()[:16, :12]).permute(2, 0, 1)[None].float() / 255
        found[f"esrgan{scale}"] = nhwc(network(small))[0]
    return found


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    tokenizer = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else g.DATA
    pipe, _ = build("sd1", tokenizer)
    made = {**tiled(pipe.vae), **small_decoder(), **upscaled()}
    save_file(made, out / "size.components.safetensors")
    save_file(taught(tokenizer), out / "size.pictures.safetensors")
    print({name: (value.shape, round(float(value.std()), 3)) for name, value in made.items()})


if __name__ == "__main__":
    main()
