"""What PEFT makes of a layer's weight with LoHa, LoKr and DoRA: stored adapters and merged weights.

    python make_adapter_reference.py [OUT_FOLDER]

Writes ``adapters.safetensors``: for each case the layer's weight, the adapter's tensors under PEFT's names,
and the weight after merging at strength 1. Needs torch and peft.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geometry as g
import numpy as np
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.numpy import save_file

RANK, ALPHA = 3, 6


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 8)
        self.conv = torch.nn.Conv2d(6, 8, 3)


def configs() -> dict[str, object]:
    both = {"target_modules": ["linear", "conv"], "r": RANK}
    return {
        "loha": LoHaConfig(alpha=ALPHA, **both),
        "loha of factors": LoHaConfig(alpha=ALPHA, use_effective_conv2d=True, **both),
        "lokr": LoKrConfig(alpha=ALPHA, decompose_factor=2, **both),
        "lokr of factors": LoKrConfig(
            alpha=ALPHA, decompose_both=True, use_effective_conv2d=True, **{**both, "r": 1}
        ),
        "dora": LoraConfig(lora_alpha=ALPHA, use_dora=True, **both),
    }


@torch.no_grad()
def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else g.DATA
    found: dict[str, np.ndarray] = {}
    for label, config in configs().items():
        layers = Layers()
        for name, value in layers.state_dict().items():
            value.copy_(torch.from_numpy(g.random(f"adapter/{name}", tuple(value.shape))))
        before = {name: getattr(layers, name).weight.numpy().copy() for name in ("linear", "conv")}
        model = get_peft_model(layers, config)
        for name, value in model.named_parameters():
            if value.requires_grad:
                fresh = g.random(f"adapter/{label}/{name}", tuple(value.shape)) * np.float32(0.5)
                value.copy_(torch.from_numpy(np.abs(fresh) + 1 if "magnitude" in name else fresh))
        for name, value in get_peft_model_state_dict(model).items():
            found[f"{label}|adapter|{name}"] = value.numpy().copy()
        merged = model.merge_and_unload()
        for name, weight in before.items():
            found[f"{label}|before|{name}"] = weight
            found[f"{label}|after|{name}"] = getattr(merged, name).weight.numpy().copy()
    save_file(
        {name: np.ascontiguousarray(value) for name, value in found.items()}, out / "adapters.safetensors"
    )


if __name__ == "__main__":
    main()
