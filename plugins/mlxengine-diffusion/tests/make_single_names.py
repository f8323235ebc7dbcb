"""Ask diffusers what each tensor of a checkpoint in one file is called in its own format.

    python make_single_names.py [OUT_FOLDER]

Writes ``single.names.json``: for each tiny family and part, the original code's name to diffusers'. Every
tensor goes through diffusers' converters filled with a number of its own, by which it is found again.
Needs torch, diffusers and transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geometry as g
import torch
from diffusers.loaders import single_file_utils as utils
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
BLOCK = (
    *(f"attn{number}.to_{name}" for number in (1, 2) for name in ("q", "k", "v", "out.0")),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)


def transformer(depth: int) -> Iterator[str]:
    yield from ("norm", "proj_in", "proj_out")
    yield from (f"transformer_blocks.{number}.{name}" for number in range(depth) for name in BLOCK)


def unet_layers(config: dict[str, Any]) -> Iterator[str]:
    """The layers of the original UNet: blocks are numbered through all resolutions."""
    levels = len(config["block_out_channels"])
    depths = config.get("transformer_layers_per_block", 1)
    depths = depths if isinstance(depths, list) else [depths] * levels
    layers = config["layers_per_block"]
    down = ["CrossAttn" in name for name in config["down_block_types"]]
    yield from ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2")
    if config.get("addition_embed_type"):
        yield from ("label_emb.0.0", "label_emb.0.2")
    number = 0
    for level in range(levels):
        for _ in range(layers):
            number += 1
            yield from (f"input_blocks.{number}.0.{name}" for name in RESNET)
            if down[level]:
                yield from (f"input_blocks.{number}.1.{name}" for name in transformer(depths[level]))
        if level + 1 < levels:
            number += 1
            yield f"input_blocks.{number}.0.op"
    for place in (0, 2):
        yield from (f"middle_block.{place}.{name}" for name in RESNET)
    yield from (f"middle_block.1.{name}" for name in transformer(depths[-1]))
    number = 0
    for level in reversed(range(levels)):
        for index in range(layers + 1):
            yield from (f"output_blocks.{number}.0.{name}" for name in RESNET)
            if down[level]:
                yield from (f"output_blocks.{number}.1.{name}" for name in transformer(depths[level]))
            if index == layers and level > 0:
                yield f"output_blocks.{number}.{2 if down[level] else 1}.conv"
            number += 1


def vae_layers(config: dict[str, Any]) -> Iterator[str]:
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    names = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
    yield from ("quant_conv", "post_quant_conv")
    for half, way, count, sampler in (
        ("encoder", "down", layers, "downsample"),
        ("decoder", "up", layers + 1, "upsample"),
    ):
        yield from (f"{half}.{name}" for name in ("conv_in", "norm_out", "conv_out"))
        yield from (f"{half}.mid.block_{place}.{name}" for place in (1, 2) for name in names)
        yield from (f"{half}.mid.attn_1.{name}" for name in ("norm", "q", "k", "v", "proj_out"))
        for level in range(levels):
            yield from (f"{half}.{way}.{level}.block.{i}.{n}" for i in range(count) for n in names)
            yield f"{half}.{way}.{level}.{sampler}.conv"


def numbered(layers: Iterator[str], prefix: str) -> tuple[dict[str, torch.Tensor], dict[float, str]]:
    names = [f"{prefix}{layer}.{end}" for layer in layers for end in ("weight", "bias")]
    return (
        {name: torch.full((1, 1, 1, 1), float(number)) for number, name in enumerate(names)},
        {float(number): name for number, name in enumerate(names)},
    )


def told(converted: dict[str, Any], known: dict[float, str], shapes: dict[str, Any]) -> dict[str, str]:
    found = {known[float(value.flatten()[0])]: name for name, value in converted.items() if name in shapes}
    assert set(found.values()) == set(shapes), set(shapes) - set(found.values())
    return found


def open_clip(config: dict[str, Any], prefix: str, shapes: dict[str, Any]) -> dict[str, str]:
    """OpenCLIP's joined matrices are written as three: ``name#0`` to ``name#2``; ``name#T`` is transposed."""
    width = config["hidden_size"]
    known: dict[float, str] = {}
    checkpoint: dict[str, torch.Tensor] = {}

    def put(name: str, shape: tuple[int, ...], parts: int = 1) -> None:
        start = len(known)
        rows = []
        for part in range(parts):
            known[float(start + part)] = f"{name}#{part}" if parts > 1 else name
            rows.append(torch.full((shape[0] // parts, *shape[1:]), float(start + part)))
        checkpoint[prefix + name] = torch.cat(rows)

    put("token_embedding.weight", (config["vocab_size"], width))
    put("positional_embedding", (77, width))
    put("text_projection", (width, config["projection_dim"]))
    for end in ("weight", "bias"):
        put(f"ln_final.{end}", (width,))
        for number in range(config["num_hidden_layers"]):
            layer = f"transformer.resblocks.{number}"
            put(f"{layer}.attn.in_proj_{end}", (3 * width, width) if end == "weight" else (3 * width,), 3)
            for name in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"):
                put(f"{layer}.{name}.{end}", (width, width) if end == "weight" else (width,))
    model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    converted = utils.convert_open_clip_checkpoint(model, checkpoint, prefix=prefix)
    found = {}
    for key, value in converted.items():
        # The converter writes the prefix that transformers 5 took from one class and left in the other.
        name = key.removeprefix("text_model.")
        if name in shapes or key in shapes:
            original = known[float(value.flatten()[0])]
            found[f"{original}#T" if original == "text_projection" else original] = name
    missing = {name.removeprefix("text_model.") for name in shapes} - set(found.values())
    assert not missing, missing
    return found


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else g.DATA
    made: dict[str, dict[str, dict[str, str]]] = {}
    for family in g.FAMILIES:
        configs, shapes = g.configs(family), g.shapes(family)
        checkpoint, known = numbered(unet_layers(configs["unet"]), "model.diffusion_model.")
        unet = utils.convert_ldm_unet_checkpoint(checkpoint, configs["unet"])
        made[family] = {"unet": told(unet, known, shapes["unet"])}
        checkpoint, known = numbered(vae_layers(configs["vae"]), "first_stage_model.")
        vae = utils.convert_ldm_vae_checkpoint(checkpoint, configs["vae"])
        made[family]["vae"] = told(vae, known, shapes["vae"])
        part = {"sd2": "text_encoder", "sdxl": "text_encoder_2"}.get(family)
        if part:
            prefix = "cond_stage_model.model." if family == "sd2" else "conditioner.embedders.1.model."
            names = open_clip(configs[part], prefix, shapes[part])
            made[family][part] = {prefix + key: name for key, name in names.items()}
    (out / "single.names.json").write_text(json.dumps(made, indent=0) + "\n")


if __name__ == "__main__":
    main()
