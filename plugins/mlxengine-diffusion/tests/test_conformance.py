"""The clauses that every plugin keeps, on the trained tiny model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
from mlxengine import ImageControl, ImageRequest, IPAdapter
from mlxengine.errors import InvalidParameterError, UnsupportedInputError
from mlxengine.testing import Example, PluginConformance, Specimen
from safetensors.numpy import save_file

pytest_plugins = ["mlxengine.testing.pytest"]

TINY = Path(__file__).parents[3] / "tests" / "models" / "tiny-shapes-sd"
GREY = np.full((32, 32, 3), 128, np.uint8)
HOLE = np.arange(32)[:, None] > np.full((32, 32), 15)

_FOLDER = tempfile.TemporaryDirectory(prefix="mlxengine-diffusion-")
ADAPTER = Path(_FOLDER.name) / "adapter.safetensors"
WORD = Path(_FOLDER.name) / "toy.safetensors"
save_file({"emb_params": np.ones((2, 64), np.float32)}, WORD)
_LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
save_file(
    {
        f"{_LAYER}.lora_A.weight": np.ones((2, 96), np.float32),
        f"{_LAYER}.lora_B.weight": np.ones((96, 2), np.float32),
    },
    ADAPTER,
)
NET = g.write_tiny_control(TINY, Path(_FOLDER.name) / "net")
SEEN = g.write_ip("tiny", "plain", Path(_FOLDER.name))


def ask(**values: Any) -> ImageRequest:
    wanted = {"prompt": "a red circle", "size": (32, 32), "steps": 3, "guidance": 3.0, "seed": 0, **values}
    return ImageRequest(**wanted)


class TestDiffusion(PluginConformance):
    name = "diffusion"
    specimen = Specimen(
        path=TINY,
        examples=[
            Example(request=ask(), shows={"image_generation"}),
            Example(request=ask(negative="a square", seed=1), shows={"negative_prompt"}),
            Example(request=ask(init_image=GREY, strength=0.7), shows={"image_to_image"}),
            Example(request=ask(init_image=GREY, mask=HOLE), shows={"image_to_image", "inpainting"}),
            Example(
                request=ask(low_memory=True, vae_tiling=True, steps=2), shows={"low_memory", "vae_tiling"}
            ),
            Example(
                request=ask(prompt="a toy", textual_inversions=(str(WORD),), steps=1),
                shows={"textual_inversion"},
            ),
            Example(request=ask(lora=((str(ADAPTER), 1.0),), steps=1), shows={"lora"}),
            Example(
                request=ask(controls=(ImageControl(source=str(NET), image=GREY),), steps=1),
                shows={"controlnet"},
            ),
            Example(
                request=ask(ip_adapters=(IPAdapter(source=str(SEEN), image=GREY),), steps=1),
                shows={"ip_adapter"},
            ),
        ],
        refused=[
            (ask(steps=0), InvalidParameterError),
            (ask(init_image=b"no picture"), UnsupportedInputError),
        ],
    )
