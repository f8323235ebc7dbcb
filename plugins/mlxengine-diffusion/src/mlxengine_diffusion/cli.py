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
from typing import Any, NoReturn

from mlxengine import Event, ImageReady, ImageRequest, InferenceEngine, Picture, Progress
from mlxengine.errors import InvalidParameterError
from mlxengine.pictures.handle import read_recipe
from mlxengine.readonly import thaw

from . import terminal
from .features import BACKEND, QUANTIZE

_SIZE = re.compile(r"(\d+)\s*[x×]\s*(\d+)")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidParameterError(f"{self.prog}: {message}.", hint=f"`{self.prog} --help` shows the usage.")


def main(words: list[str]) -> int:
    """Run the verb and return its exit code; errors of ours are raised for the frame to show."""
    options = _parser().parse_args(words)
    recipe = read_recipe(options.recipe) if options.recipe else {}
    if options.recipe and options.out is None:
        _write(json.dumps(thaw(recipe), ensure_ascii=False, indent=None if options.json else 2))
        return 0
    model, request = _asked(options, recipe)
    target = _target(options, request)
    features = {BACKEND.name: options.backend, QUANTIZE.name: options.bits}
    made = []
    with (
        _Bar(quiet=options.quiet or options.json) as bar,
        InferenceEngine(offline=True if options.offline else None) as engine,
        engine.load_images(
            model,
            features={name: value for name, value in features.items() if value is not None},
            on_progress=bar,
        ) as handle,
    ):
        for event in handle.stream(request):
            bar(event)
            if isinstance(event, ImageReady):
                picture = Picture(pixels=event.pixels, recipe=event.recipe)
                made.append((picture, picture.save(_numbered(target, event.index, request.n))))
    _tell(options, made)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mlxengine image", description=__doc__, allow_abbrev=False)
    parser.add_argument("prompt", nargs="?", help="what the picture shows")
    parser.add_argument(
        "-m",
        "--model",
        help="repository, folder or auto:diffusion (default: the recipe's, else auto:diffusion)",
    )
    parser.add_argument("-o", "--out", type=Path, help="file to write; its ending is the format")
    parser.add_argument("--negative", help="what the picture should not show")
    parser.add_argument("--size", help="pixels, as 512x512")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--guidance", type=float, help="how strictly to follow the prompt")
    parser.add_argument("--seed", type=int, help="the same seed makes the same picture")
    parser.add_argument("--scheduler", help="euler, euler_ancestral, ddim or dpmpp_2m")
    parser.add_argument("--init", type=Path, help="a picture to start from")
    parser.add_argument("--strength", type=float, help="how far to leave it, 0 to 1")
    parser.add_argument("-n", type=int, default=1, help="how many pictures")
    parser.add_argument("--lora", action="append", default=[], metavar="REF[=SCALE]", help="an adapter")
    parser.add_argument("--low-memory", action="store_true", default=None, help="free parts by stage")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantize the denoiser")
    parser.add_argument("--backend", help="the library to use")
    parser.add_argument("--offline", action="store_true", help="use only what is on this machine")
    parser.add_argument(
        "--recipe", type=Path, metavar="PNG", help="print how a picture was made; with --out make it again"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("-v", "--verbose", action="count", default=0, help=argparse.SUPPRESS)
    return parser


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
    size: Any = _size(options.size) or ((recipe["width"], recipe["height"]) if recipe else None)
    model = options.model or recipe.get("model") or "auto:diffusion"
    if options.model is None and recipe and not Path(model).exists():
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
        init_image=options.init,
        strength=told("strength"),
        n=options.n,
        lora=tuple(adapters),
        low_memory=options.low_memory,
    )


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


def _target(options: argparse.Namespace, request: ImageRequest) -> Path:
    """The file to write, checked before any work is done."""
    from PIL import Image

    words = re.findall(r"\w+", request.prompt.lower())[:8]
    target: Path = (options.out or Path("-".join(words) or "picture").with_suffix(".png")).expanduser()
    if target.suffix.lower() not in Image.registered_extensions():
        raise InvalidParameterError(
            f"{target.name!r} does not end like a picture.", hint="Write --out x.png."
        )
    if not os.access(target.parent, os.W_OK) or target.is_dir():
        raise InvalidParameterError(f"{target} cannot be written.", hint="Name a file in an existing folder.")
    return target


def _numbered(target: Path, index: int, count: int) -> Path:
    return target if count == 1 else target.with_stem(f"{target.stem}-{index}")


def _tell(options: argparse.Namespace, made: list[tuple[Picture, Path]]) -> None:
    if options.json:
        pictures = [{"path": str(path.resolve()), "recipe": thaw(picture.recipe)} for picture, path in made]
        _write(json.dumps({"pictures": pictures}, ensure_ascii=False))
        return
    name = terminal.protocol(os.environ) if sys.stdout.isatty() else None
    for picture, path in made:
        if name:
            png = io.BytesIO()
            picture.pil().save(png, "png")
            sys.stdout.write(terminal.escape(png.getvalue(), name))
        _write(str(path))


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class _Bar:
    """Progress on stderr: one line that changes in a terminal, and nothing elsewhere."""

    def __init__(self, *, quiet: bool, width: int = 30) -> None:
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._width = width

    def __call__(self, event: Event) -> None:
        """Show an event that says how far something is."""
        done, total = getattr(event, "done", None), getattr(event, "total", None)
        if not self._live or done is None or not total:
            return
        filled = round(self._width * min(1.0, done / total))
        stage = event.stage if isinstance(event, Progress) else "download"
        counts = f" {done:g}/{total:g}" if getattr(event, "unit", "") == "steps" else f" {done / total:.0%}"
        sys.stderr.write(f"\r\x1b[K{stage:<9}{'█' * filled}{'░' * (self._width - filled)}{counts}")
        sys.stderr.flush()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


__all__ = ["main"]
