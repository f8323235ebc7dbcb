"""Compute where diffusers' schedulers go with a model that is a formula: the stored reference.

    python make_sampler_reference.py [OUT_FOLDER]

A tiny network says nearly the same at every step, so that its pictures hardly show a solver's order.
Needs torch, diffusers and safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import geometry as g
import torch
from diffusers.schedulers import scheduling_ddpm
from make_reference import nchw, nhwc, sampler
from safetensors.numpy import save_file


class Fresh:
    """Stands in for the random numbers of a stochastic sampler."""

    def __init__(self) -> None:
        self.index = 0

    def __call__(self, *_: Any, **__: Any) -> torch.Tensor:
        self.index += 1
        return nchw(g.walk_noise(self.index))


@torch.no_grad()
def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else g.DATA
    ends = {}
    for label, config in g.walks().items():
        scheduler = sampler(config)
        scheduler.set_timesteps(g.WALK)
        scheduling_ddpm.randn_tensor = Fresh()
        sample = nchw(g.walk_noise(0)) * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            shown = scheduler.scale_model_input(sample, time)
            output = torch.from_numpy(g.said(shown.numpy(), float(time)))
            sample = scheduler.step(output, time, sample).prev_sample
        ends[label] = nhwc(sample.float())
    save_file(ends, out / "samplers.safetensors")
    print(len(ends), "walks")


if __name__ == "__main__":
    main()
