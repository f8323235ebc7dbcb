"""Seconds a denoising step in real shapes on a GPU: ours beside diffusers on torch, by turns.

    python scripts/uninstalled.py -m benchmarks.pictures.gpu [--only sd-1.5 sdxl flux2-klein flux]

Ours is the engine and the plugin as they are, with ``diffusion.compile`` as it is by itself and on: the time
between the `Progress` events of a picture. Theirs is diffusers' network and sampler in the loop of its
pipeline, as they are, with its repeated blocks compiled (``compile_repeated_blocks``), and
whole by ``torch.compile`` (both with channels last). Each side is a process of its own; they
hold the GPU together and take turns (ABBA), a turn being one picture's steps. Everything is run before it is
timed, all sides at once; what is not ready when ``--ready`` of ``--seconds`` are over is left out, as is what
needs a library that is not there: torch, diffusers; for FLUX.2 klein mlx-vlm, for FLUX.1 mflux. What each
side has done until then is said with its seconds. FLUX has that ``--share`` of its transformer's layers, and
text encoders of few layers, not part of a step. ``--tiny`` tries it on small networks; a CPU will do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.pictures.repositories import MODELS, place, small, with_share, write, write_random

CASES = {"sd-1.5": 512, "sdxl": 1024, "flux2-klein": 1024, "flux": 1024}
SIDES = ("ours", "ours compiled", "diffusers", "diffusers blocks", "diffusers compiled")
WORDS = 512  # that FLUX's transformer reads beside the picture
GUIDANCE = 7.5
_MARK = "@ "  # before what a worker says; libraries print as well


class Side:
    """A process that makes the steps of a picture for every line that it is sent."""

    def __init__(self, side: str, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.pictures.gpu", "--worker", side, *arguments]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                self._lines.put(line.removeprefix(_MARK))
        self._lines.put("")

    def answer(self, until: float) -> dict[str, Any]:
        """What it says next; ``failed`` if it ends before, or says nothing until then.

        ``phases`` are the seconds of what it has done, in order: where it stood when it failed.
        """
        phases: dict[str, float] = {}
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return {"failed": "out of time", "phases": phases}
            if not line:
                return {"failed": f"ended with {self._process.wait()}", "phases": phases}
            said: dict[str, Any] = json.loads(line)
            if "phase" not in said:
                return {**said, "phases": phases} if phases else said
            phases[said["phase"]] = said["seconds"]

    def turn(self, until: float) -> dict[str, Any]:
        """One picture's steps."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.answer(until)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def say(**facts: Any) -> None:
    print(_MARK + json.dumps(facts), flush=True)


class Phases:
    """Says how long each phase took since the one before."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def __call__(self, phase: str) -> None:
        now = time.perf_counter()
        say(phase=phase, seconds=round(now - self._since, 2))
        self._since = now


def ours(folder: Path, side: int, options: argparse.Namespace) -> None:
    """The engine with the plugin, asked for pictures: nothing is done for it here."""
    phases = Phases()
    from mlxengine.toolkit import blas

    os.environ.setdefault("MLX_USE_CUDA_GRAPHS", "0")  # as `mlxengine image` does
    blas.load()  # before mlx is imported: on a CPU its products are slow without
    import mlx.core as mx
    from mlxengine import ImageRequest, InferenceEngine, Progress

    sd = (folder / "unet").is_dir()
    flags: dict[str, object] = {"diffusion.dtype": options.dtype} if sd else {}
    if options.worker == "ours compiled":
        flags["diffusion.compile"] = "on"
    pipeline = json.loads((folder / "model_index.json").read_text())["_class_name"]
    # one evaluation a step for FLUX: the first version is told its guidance, klein needs none
    guidance = {"guidance": GUIDANCE} if sd else {"guidance": 1.0} if pipeline.startswith("Flux2") else {}
    phases("imported")
    with InferenceEngine() as engine, engine.load_images(folder, features=flags) as model:
        phases("loaded")
        request = ImageRequest(
            prompt="a red circle", size=(side, side), steps=options.steps + 1, seed=1, **guidance
        )

        def turn() -> list[float]:
            return [time.perf_counter() for event in model.stream(request) if isinstance(event, Progress)]

        began = time.perf_counter()
        first: list[float] = []
        for event in model.stream(request):
            if isinstance(event, Progress):
                first.append(time.perf_counter())
                if len(first) < 3:
                    phases(f"step {len(first)}")
        phases("first picture")
        turn()
        phases("second picture")
        say(
            first_step_seconds=first[0] - began,
            first_picture_seconds=first[-1] - began,
            compiled=model.info.get("compiled"),
            mlx=mx.__version__,
            device=str(mx.default_device()),
            peak_gib=mx.get_peak_memory() / 2**30,
        )
        for _ in sys.stdin:
            # from one step's end to the next, so that reading the prompt and decoding are left out
            moments = turn()
            say(
                seconds=(moments[-1] - moments[0]) / options.steps,
                fastest=min(later - earlier for earlier, later in itertools.pairwise(moments)),
            )


def network_of(folder: Path, kind: Any) -> tuple[Any, dict[str, Any]]:
    """diffusers' network of a repository's configuration, with weights of its own."""
    import diffusers

    (part,) = (name for name in ("unet", "transformer") if (folder / name).is_dir())
    config = json.loads((folder / part / "config.json").read_text())
    index = json.loads((folder / "model_index.json").read_text())
    names = {"FluxPipeline": "FluxTransformer2DModel", "Flux2KleinPipeline": "Flux2Transformer2DModel"}
    named = getattr(diffusers, names.get(index["_class_name"], "UNet2DConditionModel"))
    made = named(**config)
    return made.to(kind).eval(), config


def theirs(folder: Path, side: int, options: argparse.Namespace) -> None:
    """diffusers' network and sampler, in the loop of its pipeline."""
    phases = Phases()
    import diffusers
    import torch

    phases("imported")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sd = (folder / "unet").is_dir()
    kind = getattr(torch, options.dtype if sd else "float32" if device == "cpu" else "bfloat16")
    torch.set_grad_enabled(False)
    with torch.device(device):
        network, config = network_of(folder, kind)
        step = (sd_step if sd else flux_step)(network, config, side, kind)
        if options.worker != "diffusers":
            if sd:
                network.to(memory_format=torch.channels_last)
            whole = options.worker == "diffusers compiled"
            (network.compile if whole else network.compile_repeated_blocks)(mode=options.torch_mode)

        def turn() -> float:
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            step(options.steps)
            if device == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() - began) / options.steps

        phases("built")
        began = time.perf_counter()
        step(1)  # which is what compiles
        phases("step 1")
        turn()
        phases("first picture")
        first = time.perf_counter() - began
        turn()
        phases("second picture")
        say(
            first_picture_seconds=first,
            torch=torch.__version__,
            diffusers=diffusers.__version__,
            device=device,
            peak_gib=torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        )
        for _ in sys.stdin:
            say(seconds=turn())


def sd_step(unet: Any, config: dict[str, Any], side: int, kind: Any) -> Callable[[int], None]:
    """Stable Diffusion's steps: prompt and negative prompt as a batch of two."""
    import torch
    from diffusers import EulerDiscreteScheduler

    context = torch.randn(2, 77, config["cross_attention_dim"], dtype=kind)
    added = None
    if "addition_embed_type" in config:
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {
            "text_embeds": torch.randn(2, width, dtype=kind),
            "time_ids": torch.full((2, 6), float(side), dtype=kind),
        }
    noise = torch.randn(1, 4, side // 8, side // 8, dtype=kind)

    def steps(count: int) -> None:
        with torch.device("cpu"):  # it computes with numpy
            sampler = EulerDiscreteScheduler(beta_schedule="scaled_linear")
            sampler.set_timesteps(count, device=noise.device)
        latents = noise * sampler.init_noise_sigma
        for moment in sampler.timesteps:
            shown = sampler.scale_model_input(torch.cat([latents] * 2), moment)
            found = unet(shown, moment, context, added_cond_kwargs=added, return_dict=False)[0]
            without, with_prompt = found.chunk(2)
            found = without + GUIDANCE * (with_prompt - without)
            latents = sampler.step(found, moment, latents, return_dict=False)[0]

    return steps


def flux_step(network: Any, config: dict[str, Any], side: int, kind: Any) -> Callable[[int], None]:
    """FLUX's steps: one evaluation each."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    places, width = (side // 16) ** 2, len(config["axes_dims_rope"])
    told = torch.randn(1, WORDS, config["joint_attention_dim"], dtype=kind)
    first = "pooled_projection_dim" in config
    more: dict[str, Any] = {}
    if first:
        more["pooled_projections"] = torch.randn(1, config["pooled_projection_dim"], dtype=kind)
    more["guidance"] = torch.full([1], 3.5) if config["guidance_embeds"] else None
    rows, columns = (torch.arange(side // 16) for _ in range(2))
    grid = torch.zeros(side // 16, side // 16, width)
    grid[..., 1] += rows[:, None]
    grid[..., 2] += columns[None]
    words = torch.zeros(WORDS, width)
    if not first:
        words[:, 3] = torch.arange(WORDS)
    noise = torch.randn(1, places, config["in_channels"], dtype=kind)

    def steps(count: int) -> None:
        with torch.device("cpu"):  # it computes with numpy
            sampler = FlowMatchEulerDiscreteScheduler()
            sampler.set_timesteps(count, device=noise.device)
        latents = noise
        for moment in sampler.timesteps:
            found = network(
                hidden_states=latents,
                encoder_hidden_states=told,
                timestep=moment.expand(1).to(kind) / 1000,
                img_ids=grid.reshape(places, width),
                txt_ids=words,
                return_dict=False,
                **more,
            )[0]
            latents = sampler.step(found, moment, latents, return_dict=False)[0]

    return steps


def compare(name: str, side: int, options: argparse.Namespace, end: float) -> dict[str, Any]:
    """All sides of one shape, until then."""
    model, share = MODELS[name], 1.0
    if options.tiny:
        model = small(model)
    elif "unet" not in model[2]:
        share = options.share
        model = with_share(model, share)
    on_cpu = options.tiny or options.dtype == "float32"
    dtype = options.dtype if "unet" in model[2] else "float32" if on_cpu else "bfloat16"
    found: dict[str, Any] = {"side": side, "share": share}
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="mlxengine-benchmark-", dir=place()) as scratch,
        ExitStack() as stack,
    ):
        write(model, Path(scratch), partial(write_random, dtype=dtype))
        found["written_seconds"] = round(time.monotonic() - began, 2)
        found["gib"] = round(sum(file.stat().st_size for file in Path(scratch).rglob("*")) / 2**30, 2)
        print(f"{name}: {found['gib']} GiB written to {scratch} in {found['written_seconds']} s", flush=True)
        arguments = [f"--folder={scratch}", f"--side={side}", f"--steps={options.steps}"]
        arguments += [f"--dtype={options.dtype}", f"--torch-mode={options.torch_mode}"]
        running: dict[str, Side] = {}
        for label in options.sides:
            if label == "ours compiled" and "unet" not in model[2]:
                continue
            running[label] = Side(label, arguments)
            stack.callback(running[label].close)
        begun = time.monotonic()
        for label, process in list(running.items()):
            found[label] = process.answer(begun + options.ready * (end - begun))
            if "failed" in found[label]:
                process.close()
                del running[label]
            print(f"{name}: {label}: {json.dumps(found[label])}", flush=True)
        rounds: dict[str, list[float]] = {label: [] for label in running}
        longest = 0.0
        for number in range(options.rounds):
            began = time.monotonic()
            if running.keys() != rounds.keys() or (number > 1 and began + longest > end):
                break
            for label in list(running)[:: 1 if number % 2 else -1]:
                answer = running[label].turn(end + 60)
                if "failed" in answer:
                    found[label] |= answer
                    running.pop(label).close()
                    break
                rounds[label].append(answer["seconds"])
            longest = max(longest, time.monotonic() - began)
    for label, seconds in rounds.items():
        if seconds:
            found[label] |= {"seconds_per_step": statistics.median(seconds), "each": seconds}
    for mine, other in itertools.product(*([s for s in rounds if s.startswith(k)] for k in ("ours", "diff"))):
        ratios = sorted(a / b for a, b in zip(rounds[mine], rounds[other], strict=False))
        if ratios:
            found[f"{mine} / {other}"] = {
                "ratio": statistics.median(ratios),
                "spread": [ratios[0], ratios[-1]],
                "rounds": len(ratios),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=540.0, help="stop after about so many")
    parser.add_argument("--ready", type=float, default=0.7, help="share of the seconds to get ready in")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--share", type=float, default=0.4, help="of the layers of FLUX's transformer")
    parser.add_argument("--torch-mode", default="default", help="of torch.compile")
    parser.add_argument("--tiny", action="store_true", help="small networks: does it work?")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        (ours if options.worker.startswith("ours") else theirs)(options.folder, options.side, options)
        return
    if options.tiny:
        options.steps, options.dtype = min(options.steps, 3), "float32"
    began = time.monotonic()
    figures: dict[str, Any] = {"dtype": options.dtype, "steps": options.steps, "shapes": {}}
    for number, name in enumerate(options.only):
        left = options.seconds - (time.monotonic() - began)
        side = 64 if options.tiny else CASES[name]
        try:
            found = compare(name, side, options, time.monotonic() + left / (len(options.only) - number))
        except ImportError as error:
            found = {"left_out": str(error)}
        figures["shapes"][name] = found
        print(f"{name}: {json.dumps(found)}", flush=True)
        if options.output:
            options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
