"""What a request brings along, as adapters, ControlNets, a refiner and taught words: found and fetched."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from attrs import evolve
from mlxengine import Event, ImageControl, ImageRequest, IPAdapter, RunContext
from mlxengine.errors import FeatureUnavailableError
from mlxengine.toolkit.from_bin import PICKLES

from ._checks import number, refuse, several, unable
from ._pictures import open_picture, pixels_of
from .backends._work import Guide, Job, Pipeline, Seen
from .features import LORA

_LORA_FILES = ("*.safetensors", "*.json")
_CONTROL_FILES = ("config.json", "diffusion_pytorch_model*.safetensors")
_TENSOR_FILES = ("*.safetensors",)
_Shown = TypeVar("_Shown", ImageControl, IPAdapter)


def _shown(
    kind: type[_Shown], what: str, items: Sequence[_Shown], context: RunContext
) -> Iterator[tuple[_Shown, Path, Any]]:
    """Each network that is shown a picture, with its place and that picture."""
    for item in items:
        if not isinstance(item, kind):
            refuse(f"{what}s are {kind.__name__} values, found a {type(item).__name__}.")
        number(f"{what}'s strength", item.strength, -10, 10)
        picture = open_picture(item.image, name=f"image of {what}")
        yield item, reference(what, item.source, context), picture


def guides_of(
    pipeline: Pipeline, request: ImageRequest, size: tuple[int, int], context: RunContext
) -> tuple[Guide, ...]:
    """The ControlNets, each with its picture in the ``size`` of the one that is made."""
    several("controls", request.controls, "control")
    if request.controls and not pipeline.abilities.controls:
        raise unable(pipeline, "applies no ControlNets")
    found = []
    for item, path, picture in _shown(ImageControl, "ControlNet", request.controls, context):
        number("ControlNet's start", item.start, 0, 1)
        number("ControlNet's end", item.end, item.start, 1)
        found.append(
            Guide(
                path=path,
                pixels=pixels_of(picture, size),
                strength=float(item.strength),
                start=float(item.start),
                end=float(item.end),
            )
        )
    return tuple(found)


def seen_of(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> tuple[Seen, ...]:
    """The IP-Adapters, each with its picture."""
    several("ip_adapters", request.ip_adapters, "adapter")
    if request.ip_adapters and not pipeline.abilities.ip_adapter:
        raise unable(pipeline, "applies no IP-Adapters")
    return tuple(
        Seen(path=path, pixels=pixels_of(picture, picture.size), strength=float(item.strength))
        for item, path, picture in _shown(IPAdapter, "IP-Adapter", request.ip_adapters, context)
    )


def refiner_of(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> Path | None:
    """The model that does the last steps."""
    if request.refiner is None:
        if request.refiner_at is not None:
            refuse("refiner_at has no meaning without refiner.")
        return None
    if not pipeline.abilities.refiner:
        raise FeatureUnavailableError(
            f"This model takes no refiner ({pipeline.info.get('library')}).",
            hint="Stable Diffusion XL does. To go over a finished picture, use init_image.",
        )
    if request.refiner_at is not None:
        number("refiner_at", request.refiner_at, 0, 1)
    return reference("refiner", request.refiner, context)


def adapters_of(
    pipeline: Pipeline, request: ImageRequest, context: RunContext
) -> tuple[tuple[Path, float], ...]:
    """The adapters, each with its strength."""
    several("lora", request.lora, '("adapter", 0.8)')
    if not request.lora:
        return ()
    context.features.require(LORA)
    if not pipeline.abilities.lora:
        raise unable(pipeline, "applies no LoRA adapters")
    found = []
    for item in request.lora:
        if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str | Path):
            refuse(f"lora holds (reference, scale) pairs, found {item!r}.")
        source, scale = item
        number("lora scale", scale, -100, 100)
        found.append((reference("adapter", source, context), float(scale)))
    return tuple(found)


def taught_words(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> tuple[Path, ...]:
    """The words that were taught."""
    several("textual_inversions", request.textual_inversions, '"words.safetensors"')
    if request.textual_inversions and not pipeline.abilities.textual_inversion:
        raise unable(pipeline, "takes no textual inversions")
    return tuple(reference("textual inversion", item, context) for item in request.textual_inversions)


def reference(what: str, value: Any, context: RunContext) -> Path:
    """A file or folder, or the name of a repository, which is fetched when the request runs.

    Raises:
        InvalidParameterError: it names none, or a pickle.
    """
    if not isinstance(value, str | Path):
        refuse(f"{value!r} names no {what}.", "Give a file, a folder or a repository.")
    path = Path(value).expanduser()
    refuse_pickles(path)
    if not path.exists():
        # one of a repository's files has a place behind the repository's name
        if path.is_absolute() or (path.suffix == ".safetensors" and len(path.parts) < 3):
            refuse(f"There is no {what} {value!s}.", "Check the path. A repository is named owner/name.")
        if context.fetch is None:
            refuse(f"The {what} {value!s} does not exist, and nothing can be fetched here.")
    return path


def refuse_pickles(path: Path) -> None:
    """Say what to do instead about a file that is a pickle, or a folder that holds nothing else.

    Raises:
        InvalidParameterError: it is one.
    """
    found = [path]
    if path.is_dir():
        found = [file for pattern in ("*", "*/*") for file in path.glob(pattern)]
        if any(file.suffix == ".safetensors" for file in found):
            return
    if pickles := [file for file in found if file.suffix.lower() in PICKLES]:
        ending = "-safetensors" if path.is_dir() else ".safetensors"
        refuse(
            f"{pickles[0]} is a pickle, which can run code and is never loaded.",
            "Take the .safetensors file of the same thing where there is one, or write it again without "
            f"running it: mlxengine convert {path} {path.stem}{ending} --from-bin.",
        )


def fetched(job: Job, usual: str, context: RunContext) -> Generator[Event | None, None, Job]:
    """The job with the folders of everything it names that is on the hub.

    ``usual`` is the file that stands for a repository of IP-Adapters.
    """

    def present(path: Path, files: tuple[str, ...]) -> Generator[Event | None, None, Path]:
        if context.fetch is None or path.exists():
            return path
        return (yield from context.fetch(str(path), files))

    adapters, guides, words, seen = [], [], [], []
    for path, scale in job.lora:
        adapters.append(((yield from present(path, _LORA_FILES)), scale))
    for guide in job.controls:
        guides.append(evolve(guide, path=(yield from present(guide.path, _CONTROL_FILES))))
    for item in job.ip_adapters:
        place = item.path
        if not place.exists():
            file = "/".join(place.parts[2:]) or usual
            encoder = _encoder_of(file)
            wanted = (file, f"{encoder}/config.json", f"{encoder}/*.safetensors")
            place = (yield from present(Path(*place.parts[:2]), wanted)) / file
        seen.append(evolve(item, path=place))
    for path in job.textual_inversions:
        words.append((yield from present(path, _TENSOR_FILES)))
    refiner = job.refiner
    if refiner is not None:
        place = yield from present(refiner, ("unet/config.json", "unet/*.fp16*.safetensors"))
        if not any((place / "unet").glob("*.safetensors")):  # it has none in half precision
            place = yield from present(refiner, ("unet/*",))
        refiner = place
    upscale = job.upscale
    if upscale is not None:
        upscale = yield from present(upscale, _TENSOR_FILES)
    return evolve(
        job,
        lora=tuple(adapters),
        controls=tuple(guides),
        ip_adapters=tuple(seen),
        refiner=refiner,
        textual_inversions=tuple(words),
        upscale=upscale,
    )


def _encoder_of(file: str) -> str:
    """The folder of a repository that holds the image encoder of one of its IP-Adapters.

    SDXL's adapters for the smaller encoder, which say so in their names, share that of Stable Diffusion 1.
    """
    path = PurePosixPath(file)
    if path.parent.name == "image_embedder":  # Redux, as diffusers has it
        path = path.parent
    return "models/image_encoder" if "vit-h" in path.name else str(path.parent / "image_encoder")


__all__ = [
    "adapters_of",
    "fetched",
    "guides_of",
    "reference",
    "refiner_of",
    "refuse_pickles",
    "seen_of",
    "taught_words",
]
