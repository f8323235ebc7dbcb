"""The verb ``mlxengine image``: make a picture from a prompt, or read how one was made."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxengine import ImageControl, ImageHandle, ImageReady, ImageRequest, IPAdapter, Picture
from mlxengine.cli.verbs import Output, ProgressLine, add_model, engine, load_named
from mlxengine.errors import InvalidParameterError
from mlxengine.pictures.handle import picture_format, read_recipe
from mlxengine.readonly import thaw

from . import terminal
from .features import BACKEND, QUANTIZE, VAE
from .sd.scheduler_classes import samplers
from .sd.scheduler_config import PLACEMENTS

_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)"
_CONTROL = re.compile(
    rf"(?P<source>[^=]+)=(?P<image>.+?)(?:@(?P<strength>{_NUMBER})(?:,(?P<start>{_NUMBER}),(?P<end>{_NUMBER}))?)?"
)
_CONTROL_USUAL = (("strength", 1), ("start", 0), ("end", 1))
_PICTURES = {
    "init_sha256": "picture to start from",
    "mask_sha256": "mask",
    "controls": "ControlNet's picture",
    "ip_adapters": "IP-Adapter's picture",
    "references_sha256": "reference",
}
_SIZE = re.compile(r"(\d+)\s*[x×]\s*(\d+)")


def run(options: argparse.Namespace, out: Output) -> int:
    """Make the pictures, or print a recipe."""
    recipe = read_recipe(options.recipe) if options.recipe else {}
    if options.recipe and options.out is None:
        found = thaw(recipe)
        out.emit(found, lambda: out.line(json.dumps(found, ensure_ascii=False, indent=2)))
        return 0
    if other := recipe.get("other"):
        out.note(f"Not understood of the recipe: {', '.join(f'{k}: {v}' for k, v in other.items())}.")
    model, request = _asked(options, recipe)
    target = _target(options, request)
    for feature, chosen in (
        (BACKEND, options.backend),
        (QUANTIZE, options.bits or recipe.get("bits")),
        (VAE, options.vae or recipe.get("vae")),
    ):
        if chosen is not None:
            options.feature.append(f"{feature.name}={chosen}")
    made: list[tuple[Picture, Path]] = []
    # Making CUDA graphs takes longer than launching what is in them; mlx asks when it first uses the device.
    os.environ.setdefault("MLX_USE_CUDA_GRAPHS", "0")
    with engine(options, out) as loader:
        # Not as a context manager: to close it after Ctrl-C would wait for the step that runs.
        handle = load_named(model, loader, options, out, ImageHandle)
        with ProgressLine(out) as line, handle.stream(request) as stream:
            for event in stream:
                line(event)
                if isinstance(event, ImageReady):
                    picture = Picture(pixels=event.pixels, recipe=event.recipe)
                    if not made:
                        _compare(recipe, event.recipe, out)
                    made.append((picture, _saved(picture, _numbered(target, event.index, request.n))))
    out.emit(_paths(made), lambda: _show(made, out))
    return 0


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``mlxengine image``."""
    add_model(parser)
    parser.add_argument("prompt", nargs="?", help="what the picture shows")
    parser.add_argument("-o", "--out", type=Path, help="file to write; its ending is the format")
    parser.add_argument("--negative", help="what the picture should not show")
    parser.add_argument("--size", help="pixels, as 512x512")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--guidance", type=float, help="how strictly to follow the prompt")
    parser.add_argument("--seed", type=int, help="the same seed makes the same picture")
    parser.add_argument("--scheduler", metavar="NAME", help=f"the sampler: {', '.join(samplers())}")
    parser.add_argument(
        "--sigmas", type=str.lower, choices=PLACEMENTS, help="how the sampler's noise levels are placed"
    )
    parser.add_argument("--clip-skip", type=int, metavar="N", help="the text encoder's layer, 1 for the last")
    parser.add_argument(
        "--plain-prompt",
        dest="prompt_weights",
        action="store_false",
        default=None,
        help="brackets in the prompt are letters, not weights",
    )
    parser.add_argument("--guidance-rescale", type=float, metavar="X", help="less contrast, 0 to 1")
    parser.add_argument("--init", type=Path, help="a picture to start from")
    parser.add_argument("--mask", type=Path, help="white where that picture is to be made anew")
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a picture to look at or to edit; may be given again",
    )
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="REF=FILE[@STRENGTH[,START,END]]",
        help="a ControlNet and the picture that it is shown; may be given again",
    )
    parser.add_argument(
        "--ip-adapter",
        action="append",
        default=[],
        metavar="REF=FILE[@STRENGTH]",
        help="an IP-Adapter and the picture that counts as a prompt; may be given again",
    )
    parser.add_argument("--refiner", metavar="MODEL", help="XL's second UNet, for the last steps")
    parser.add_argument("--refiner-at", type=float, metavar="X", help="where it takes over: 0.8 of the way")
    parser.add_argument("--strength", type=float, help="how far to leave it, 0 to 1")
    parser.add_argument("-n", type=int, default=1, help="how many pictures")
    parser.add_argument("--lora", action="append", default=[], metavar="REF[=SCALE]", help="an adapter")
    parser.add_argument(
        "--textual-inversion",
        dest="textual_inversions",
        action="append",
        metavar="REF",
        help="words that were taught; the prompt holds them",
    )
    parser.add_argument("--upscale", metavar="REF", help="an ESRGAN network that makes the picture larger")
    parser.add_argument("--low-memory", action="store_true", default=None, help="free parts by stage")
    parser.add_argument(
        "--vae-tiling", action="store_true", default=None, help="let the autoencoder work on tiles"
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantize the denoiser")
    parser.add_argument("--vae", metavar="REF", help="an autoencoder to take instead of the model's own")
    parser.add_argument("--backend", help="the library to use")
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="print how a picture was made; with --out make it again"
    )


def _asked(options: argparse.Namespace, recipe: Mapping[str, Any]) -> tuple[str, ImageRequest]:
    """The model and the request: what the command line says, else the recipe."""
    prompt = options.prompt if options.prompt is not None else recipe.get("prompt")
    if prompt is None:
        raise InvalidParameterError(
            "What should the picture show?", hint='Write mlxengine image "a red circle".'
        )
    if recipe.get("strength") is not None and options.init is None:
        raise InvalidParameterError(
            "This picture was made from another one, which the recipe does not hold.",
            hint="Name it with --init.",
        )
    if recipe.get("mask_sha256") is not None and options.mask is None:
        raise InvalidParameterError(
            "A part of this picture was made with a mask, which the recipe does not hold.",
            hint="Name it with --mask.",
        )
    if recipe.get("controls") is not None and not options.control:
        raise InvalidParameterError(
            "This picture was made with ControlNets and pictures for them, which the recipe does not hold.",
            hint="Name them with --control.",
        )
    if recipe.get("ip_adapters") is not None and not options.ip_adapter:
        raise InvalidParameterError(
            "This picture was made with IP-Adapters and pictures for them, which the recipe does not hold.",
            hint="Name them with --ip-adapter.",
        )
    if recipe.get("references_sha256") is not None and not options.reference:
        raise InvalidParameterError(
            "This picture was made from others, which the recipe does not hold.",
            hint="Name them with --reference.",
        )
    size: Any = _size(options.size)
    if size is None and recipe.get("width"):
        size = recipe["width"], recipe["height"]
    if options.model is None and (name := recipe.get("model_name")):
        raise InvalidParameterError(
            f"Another program made this picture with a model that it calls {name}.",
            hint="Name that model, or another one, with --model.",
        )
    model = options.model or recipe.get("model") or "auto:diffusion"
    if options.model is None and recipe.get("commit") and not Path(model).exists():
        model = f"{model}@{recipe['commit']}"

    def told(name: str) -> Any:
        given = getattr(options, name)
        return recipe.get(name) if given is None else given

    adapters = [_adapter(text) for text in options.lora] or [tuple(item) for item in recipe.get("lora", ())]
    return model, ImageRequest(
        prompt=prompt,
        negative=told("negative"),
        size=size,
        steps=told("steps"),
        guidance=told("guidance"),
        seed=told("seed"),
        scheduler=told("scheduler") or None,
        sigmas=told("sigmas"),
        clip_skip=told("clip_skip"),
        prompt_weights=False if told("prompt_weights") is False else None,
        guidance_rescale=told("guidance_rescale"),
        init_image=options.init,
        mask=options.mask,
        references=tuple(options.reference),
        controls=tuple(_control(text) for text in options.control),
        ip_adapters=tuple(_ip_adapter(text) for text in options.ip_adapter),
        refiner=told("refiner"),
        refiner_at=told("refiner_at"),
        strength=told("strength"),
        n=options.n,
        lora=tuple(adapters),
        low_memory=options.low_memory,
        textual_inversions=tuple(told("textual_inversions") or ()),
        upscale=told("upscale"),
        vae_tiling=told("vae_tiling"),
    )


def _compare(recipe: Mapping[str, Any], made: Mapping[str, Any], out: Output) -> None:
    """Say it where a picture was to be made again, and was made from other pictures."""
    for name, what in _PICTURES.items():
        before, now = recipe.get(name), made.get(name)
        if before is None or now is None:
            continue
        if name in ("controls", "ip_adapters"):
            before, now = ([item[-1] for item in items] for items in (before, now))
        if list(before) != list(now):
            out.note(f"The {what} of the recipe was another: this is not the same picture again.")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidParameterError(f"--size {text!r} is no size.", hint="Write it as 512x512.")
    return int(match[1]), int(match[2])


def _adapter(text: str) -> tuple[str, float]:
    reference, equals, scale = text.partition("=")
    try:
        return reference, float(scale) if equals else 1.0
    except ValueError as error:
        raise InvalidParameterError(f"--lora {text!r}: {scale!r} is no number.") from error


def _control(text: str) -> ImageControl:
    match = _CONTROL.fullmatch(text)
    if match is None:
        raise InvalidParameterError(
            f"--control {text!r} is no ControlNet with its picture.",
            hint="Write it as REPOSITORY=picture.png, or REPOSITORY=picture.png@0.8 or …@0.8,0,0.5.",
        )
    strength, start, end = (float(match[name] or usual) for name, usual in _CONTROL_USUAL)
    return ImageControl(source=match["source"], image=match["image"], strength=strength, start=start, end=end)


def _ip_adapter(text: str) -> IPAdapter:
    match = _CONTROL.fullmatch(text)
    if match is None or match["start"]:
        raise InvalidParameterError(
            f"--ip-adapter {text!r} is no IP-Adapter with its picture.",
            hint="Write it as REPOSITORY=picture.png, or REPOSITORY=picture.png@0.6.",
        )
    return IPAdapter(source=match["source"], image=match["image"], strength=float(match["strength"] or 1))


def _target(options: argparse.Namespace, request: ImageRequest) -> Path:
    """The file to write, checked before any work is done."""
    words = re.findall(r"\w+", request.prompt.lower())[:8]
    target: Path = (options.out or Path("-".join(words) or "picture").with_suffix(".png")).expanduser()
    picture_format(target)
    if not os.access(target.parent, os.W_OK) or target.is_dir():
        raise InvalidParameterError(f"{target} cannot be written.", hint="Name a file in an existing folder.")
    return target


def _saved(picture: Picture, target: Path) -> Path:
    try:
        return picture.save(target)
    except OSError as error:
        raise InvalidParameterError(
            f"{target} cannot be written: {error.strerror or error}.",
            hint=f"With --seed {picture.recipe['seed']} the same picture is made again.",
        ) from error


def _numbered(target: Path, index: int, count: int) -> Path:
    return target if count == 1 else target.with_stem(f"{target.stem}-{index}")


def _paths(made: list[tuple[Picture, Path]]) -> dict[str, object]:
    return {"pictures": [{"path": path.resolve(), "recipe": thaw(picture.recipe)} for picture, path in made]}


def _show(made: list[tuple[Picture, Path]], out: Output) -> None:
    name = terminal.protocol(os.environ) if out.interactive else None
    for picture, path in made:
        if name:
            png = io.BytesIO()
            picture.pil().save(png, "png")
            sys.stdout.write(terminal.escape(png.getvalue(), name))  # our own sequences, so not through `out`
        out.line(str(path))


__all__ = ["configure", "run"]
