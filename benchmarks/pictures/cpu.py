"""Processor seconds of a denoising step: ours against diffusers on torch, same weights, taking turns.

    python -m benchmarks.pictures.cpu --torch-python PYTHON [--rounds 6] [--threads 1]

PYTHON is an interpreter that has torch and diffusers. Each side is a process of its own that builds the
same random UNet; they run by turns (A B A B …), so that other work on the machine strikes both alike. The
ratio of the medians of processor time is what counts. Everything runs in float32 on one thread a side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.pictures.repositories import SD15, SDXL

POOLED = 1280  # width of SDXL's pooled prompt
SDXL_HALF = {**SDXL, "block_out_channels": [160, 320, 640], "cross_attention_dim": 1024}
CASES: dict[str, dict[str, Any]] = {
    # the trained tiny model's UNet at its 64 x 64 pixels
    "tiny-shapes 64 px": {
        "latents": 16,
        "unet": {
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 16,
            "layers_per_block": 1,
            "block_out_channels": [32, 64, 96],
            "norm_num_groups": 32,
            "attention_head_dim": [2, 4, 6],
            "cross_attention_dim": 64,
            "use_linear_projection": True,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        },
    },
    # Stable Diffusion 1.5 with a quarter of its channels, at 256 x 256 pixels
    "sd-1.5 quarter width 256 px": {
        "latents": 32,
        "unet": {
            **SD15,
            "block_out_channels": [80, 160, 320, 320],
            "norm_num_groups": 16,
            "cross_attention_dim": 192,
        },
    },
    # the whole of it, 3.4 GB of weights on either side
    "sd-1.5 256 px": {"latents": 32, "unet": SD15},
    "sd-1.5 512 px": {"latents": 64, "unet": SD15},
    # SDXL with half of its channels: the whole of it twice, in float32, is more than most machines hold
    "sdxl half width 256 px": {"latents": 32, "unet": SDXL_HALF},
    "sdxl half width 512 px": {"latents": 64, "unet": SDXL_HALF},
}


def ours(case: dict[str, Any]) -> Any:
    from mlxengine.toolkit import blas

    blas.load()
    import mlx.core as mx
    from mlxengine_diffusion.sd.unet import build_unet

    unet = build_unet(case["unet"])
    side, width = case["latents"], case["unet"]["cross_attention_dim"]
    latents, context = mx.random.normal((2, side, side, 4)), mx.random.normal((2, 77, width))
    pooled, sizes = mx.random.normal((2, POOLED)), mx.full((2, 6), side * 8.0)
    added = (pooled, sizes) if "addition_embed_type" in case["unet"] else None
    mx.eval(unet.parameters(), latents, context, pooled, sizes)
    told = unet.told(context)  # once a picture, as the times' part is

    def step() -> None:
        timed = unet.timed(mx.array([500.0, 500.0]), added, mx.float32)
        mx.eval(unet.predicted(latents, timed, told))

    return step


def torchs(case: dict[str, Any]) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_grad_enabled(False)
    unet = UNet2DConditionModel(**case["unet"]).eval()
    side, width = case["latents"], case["unet"]["cross_attention_dim"]
    latents, context = torch.randn(2, 4, side, side), torch.randn(2, 77, width)
    added = {"text_embeds": torch.randn(2, POOLED), "time_ids": torch.full((2, 6), side * 8.0)}
    return lambda: unet(latents, 500, context, added_cond_kwargs=added)


def work(side: str, name: str) -> None:
    """Time one step for every line on stdin."""
    step = (ours if side == "ours" else torchs)(CASES[name])
    step()
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        step()
        print(time.process_time() - start, flush=True)


def compare(name: str, torch_python: str, rounds: int, threads: int) -> dict[str, Any]:
    limits = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    workers = {
        side: subprocess.Popen(
            [python, "-m", "benchmarks.pictures.cpu", "--worker", side, "--case", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **limits},
        )
        for side, python in (("ours", sys.executable), ("torch", torch_python))
    }
    seconds: dict[str, list[float]] = {side: [] for side in workers}

    def say(worker: subprocess.Popen[str]) -> str:
        assert worker.stdout is not None
        return worker.stdout.readline().strip()

    try:
        for worker in workers.values():
            while (line := say(worker)) != "ready":
                if not line and worker.poll() is not None:
                    raise SystemExit("a worker ended early")
        for _ in range(rounds):
            for side, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                seconds[side].append(float(say(worker)))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    medians = {side: statistics.median(found) for side, found in seconds.items()}
    pairs = [torch / mine for mine, torch in zip(seconds["ours"], seconds["torch"], strict=True)]
    return {
        "ours_seconds": medians["ours"],
        "torch_seconds": medians["torch"],
        "speed_against_torch": medians["torch"] / medians["ours"],
        "pairs": [round(ratio, 2) for ratio in sorted(pairs)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=tuple(CASES))
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.case)
        return
    for name in (options.case,) if options.case else CASES:
        figures = compare(name, options.torch_python, options.rounds, options.threads)
        print(f"{name}: {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    main()
