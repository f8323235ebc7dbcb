"""Predicted against measured peak memory of pictures at the models' real shapes.

    python scripts/uninstalled.py -m benchmarks.pictures.memory [--only flux …] [--share 0.5] [--seconds 540]

A repository is written whose weights are zeros (files without blocks, so they take no disk), loaded by the
engine and asked for one picture of one step, each in a process of its own: whole, with tiles, and with tiles
and parts one after the other. What counts is mlx's peak, weights included, beside what `fit` said; the
stage it was in, and how long loading and drawing took, is said as well. ``--share`` keeps that share of the
transformer's layers and few of the text encoders', for machines or times that do not hold them all: what a
picture takes beside its weights stays the same. FLUX.1 and Qwen-Image need mflux, Z-Image and FLUX.2 klein
mlx-vlm; what is not installed is left out with a word, and so is what ``--seconds`` leave no time for.
``--tiny`` tries it on small networks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.pictures.repositories import MODELS, small, with_share, write

WAYS: dict[str, dict[str, object]] = {
    "whole": {"diffusion.vae_tiling": "off"},
    "tiles": {"diffusion.vae_tiling": "on"},
    "tiles and stages": {"diffusion.vae_tiling": "on", "diffusion.keep_loaded": False},
}


def measure(folder: str, way: str, side: int) -> None:
    """One picture in this process; prints bytes predicted and measured."""
    from mlxengine import ImageRequest, InferenceEngine, PictureWorkload, Progress

    flags = WAYS[way]
    began = time.perf_counter()
    with InferenceEngine(features={"core.degrade": False}) as engine:
        import mlx.core as mx

        model = engine.load_images(folder, features=flags)
        loaded, weights = time.perf_counter(), mx.get_active_memory()
        mx.reset_peak_memory()
        peaks = {}
        for event in model.stream(ImageRequest(prompt="a red circle", size=(side, side), steps=1, seed=0)):
            stage = "drawing" if isinstance(event, Progress) else "decoding"
            peaks[stage] = max(peaks.get(stage, 0), mx.get_peak_memory())
            mx.reset_peak_memory()
        drawn = time.perf_counter()
        workload = PictureWorkload(
            size=(side, side),
            vae_tiling=flags["diffusion.vae_tiling"] == "on",
            low_memory="diffusion.keep_loaded" in flags,
        )
        estimate = engine.fit(folder, workload).estimate
    found = {"predicted": estimate.total, "measured": max(peaks.values()), "weights": weights, **peaks}
    print(json.dumps({**found, "loading_s": loaded - began, "picture_s": drawn - loaded}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--tiny", action="store_true", help="small networks: does it work?")
    parser.add_argument("--seconds", type=float, default=540.0, help="stop after so many, with what there is")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options.side)
        return
    if options.tiny:
        options.side = 64
    found: dict[str, Any] = {}
    end = time.monotonic() + options.seconds
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            try:
                model = with_share(MODELS[name], options.share) if options.share < 1 else MODELS[name]
                began = time.monotonic()
                write(small(model) if options.tiny else model, Path(folder))
                print(f"{name}: written in {time.monotonic() - began:.1f} s", flush=True)
            except ImportError as error:
                print(f"{name}: left out, {error}")
                continue
            for way in options.ways:
                command = [sys.executable, "-m", "benchmarks.pictures.memory", "--side", str(options.side)]
                try:
                    done = subprocess.run(
                        [*command, "--measure", folder, way],
                        capture_output=True,
                        text=True,
                        check=False,
                        timeout=max(0.1, end - time.monotonic()),
                    )
                except subprocess.TimeoutExpired:
                    print(f"{name}, {way}: left out, the time is over", flush=True)
                    continue
                if done.returncode:
                    print(f"{name}, {way}: {done.stderr.strip()[-400:]}")
                    continue
                figures = json.loads(done.stdout.splitlines()[-1])
                error = figures["predicted"] / figures["measured"] - 1
                found[f"{name}, {way}"] = {**figures, "error": round(error, 3)}
                loading, picture = (figures.pop(key) for key in ("loading_s", "picture_s"))
                gib = ", ".join(f"{key} {value / 2**30:.2f}" for key, value in figures.items())
                took = f"loaded in {loading:.1f} s, drawn in {picture:.1f} s"
                print(f"{name}, {way}: {error:+.0%}; GiB: {gib}; {took}", flush=True)
                if options.out:
                    known = {"share": options.share, "side": options.side, "figures": found}
                    options.out.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main()
