"""Writes ``gguf_reference.safetensors``: random blocks, and their numbers by the ``gguf`` package.

    python tests/unit/make_gguf_reference.py

``gguf`` (MIT, by ggml's authors) unpacks with numpy what llama.cpp's C code packs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "gguf_reference.safetensors"
COLUMNS = 512

# bytes of a block, numbers in it, and where its fp16 numbers are
BLOCKS = {
    "Q4_0": (18, 32, (0,)),
    "Q4_1": (20, 32, (0, 2)),
    "Q5_0": (22, 32, (0,)),
    "Q5_1": (24, 32, (0, 2)),
    "Q8_0": (34, 32, (0,)),
    "Q2_K": (84, 256, (80, 82)),
    "Q3_K": (110, 256, (108,)),
    "Q4_K": (144, 256, (0, 2)),
    "Q5_K": (176, 256, (0, 2)),
    "Q6_K": (210, 256, (208,)),
}


def reference() -> dict[str, Any]:
    """Two rows of every type: ``TYPE.raw`` (uint8) and ``TYPE.values`` (fp32)."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    random = np.random.default_rng(17)
    found = {}
    for kind, (size, numbers, halves) in BLOCKS.items():
        raw = random.integers(0, 256, (2, COLUMNS // numbers, size), dtype=np.uint8)
        for at in halves:
            value = random.uniform(-0.02, 0.02, (*raw.shape[:2], 1)).astype(np.float16)
            raw[..., at : at + 2] = value.view(np.uint8)
        found[f"{kind}.raw"] = raw.reshape(2, -1)
        found[f"{kind}.values"] = dequantize(found[f"{kind}.raw"], GGMLQuantizationType[kind])
    return found


if __name__ == "__main__":
    from safetensors.numpy import save_file

    save_file(reference(), PATH)
