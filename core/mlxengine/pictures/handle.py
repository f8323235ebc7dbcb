"""Handles of image-generation models, and the picture that they make."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from attrs import field, frozen

from .._files import write_atomically
from ..contract._convert import only
from ..contract.events import Array, Event
from ..errors import BackendUnavailableError, InvalidParameterError, ModelNotFoundError
from ..handle import AsyncModelHandle, ModelHandle
from ..readonly import freeze
from .exchange import RECIPE_KEY, held, saving
from .outputs import ImageReady
from .requests import ImageControl, ImageRequest, IPAdapter

if TYPE_CHECKING:
    import numpy as np


@frozen(kw_only=True)
class Picture:
    """A finished picture: ``pixels`` of shape (height, width, 3), uint8, and the recipe to make it again."""

    pixels: Array = field(repr=lambda value: f"<{value.shape[1]} × {value.shape[0]}>")
    recipe: Mapping[str, Any] = field(factory=dict, converter=freeze)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def numpy(self) -> np.ndarray[Any, Any]:
        """The pixels as a read-only numpy array (height, width, 3) of uint8."""
        return self.pixels.numpy()

    def pil(self) -> Any:
        """The pixels as a PIL image.

        Raises:
            BackendUnavailableError: Pillow is not installed.
        """
        return _pil().fromarray(self.numpy())

    def save(self, path: str | Path) -> Path:
        """Write the picture in the format that the name says; PNG, JPEG and WebP hold the recipe.

        A file that is there already stays until the new one is whole.

        Raises:
            InvalidParameterError: the name's ending is no picture format that Pillow writes.
            BackendUnavailableError: Pillow is not installed.
            OSError: the file cannot be written.
        """
        target = Path(path).expanduser()
        kind = picture_format(target)
        data = io.BytesIO()
        self.pil().save(data, kind, **saving(target.suffix.lower(), self.recipe))
        path = target.resolve()  # through links, as any writer
        if path.exists() and not path.is_file():  # a pipe or a device stays what it is
            path.write_bytes(data.getvalue())
        else:
            write_atomically(path, data.getvalue())
        return target


def picture_format(path: Path) -> str:
    """The format that Pillow writes under a name.

    Raises:
        InvalidParameterError: there is none for the name's ending.
        BackendUnavailableError: Pillow is not installed.
    """
    from_pil = _pil()
    found: str = from_pil.registered_extensions().get(path.suffix.lower(), "")
    if found not in from_pil.SAVE:  # some are only read
        raise InvalidParameterError(
            f"{path.name!r} does not end like a picture that can be written.",
            hint="Write for example picture.png.",
        )
    return found


def read_recipe(path: str | Path) -> Mapping[str, Any]:
    """The recipe that a PNG, JPEG or WebP of ours holds, or of another program that writes ``parameters``.

    What another program's text has no name for here stands under ``"other"``, its model's name under
    ``"model_name"``.

    Raises:
        ModelNotFoundError: there is no such file.
        InvalidParameterError: it is no picture, or holds no recipe.
        BackendUnavailableError: Pillow is not installed.
    """
    source = Path(path).expanduser()
    try:
        with _pil().open(source) as opened:
            found = held(opened)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"There is no file {source}.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidParameterError(f"{source.name} cannot be read as a picture: {error}.") from error
    if found is None:
        raise InvalidParameterError(
            f"{source.name} holds no recipe.",
            hint="PNG, JPEG and WebP files hold one that MLXEngine or a web UI saved last.",
        )
    frozen_recipe: Mapping[str, Any] = freeze(found)
    return frozen_recipe


def _pil() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise BackendUnavailableError(
            "Pictures are read and written with Pillow, which is not installed.", hint="pip install pillow"
        ) from error
    return Image


class ImageOptions(TypedDict, total=False):
    """What a call may say about a picture; `ImageRequest` says what each means. Left out: the model's own."""

    negative: str | None
    size: tuple[int, int] | None
    steps: int | None
    guidance: float | None
    seed: int | None
    scheduler: str | None
    sigmas: str | None
    clip_skip: int | None
    prompt_weights: bool | None
    guidance_rescale: float | None
    init_image: Any
    mask: Any
    strength: float | None
    references: tuple[Any, ...]
    controls: tuple[ImageControl, ...]
    ip_adapters: tuple[IPAdapter, ...]
    refiner: str | None
    refiner_at: float | None
    lora: tuple[tuple[str, float], ...]
    textual_inversions: tuple[str, ...]
    upscale: str | None
    low_memory: bool | None
    vae_tiling: bool | None


def image_request(prompt: str, n: int | None = None, **options: Unpack[ImageOptions]) -> ImageRequest:
    """A prompt and its options as a request for ``n`` pictures (``None``: one).

    Raises:
        InvalidParameterError: the prompt is no text, or an option is unknown.
    """
    if not isinstance(prompt, str):
        raise InvalidParameterError(f"A prompt is a str, found {type(prompt).__name__}.")
    only(options, ImageOptions, "n")
    return ImageRequest(prompt=prompt, n=1 if n is None else n, **options)


class ImageHandle(ModelHandle):
    """A loaded image-generation model. `stream` an `ImageRequest` to see each denoising step."""

    @overload
    def image(self, prompt: str, *, n: None = None, **options: Unpack[ImageOptions]) -> Picture: ...

    @overload
    def image(self, prompt: str, *, n: int, **options: Unpack[ImageOptions]) -> tuple[Picture, ...]: ...

    def image(
        self, prompt: str, *, n: int | None = None, **options: Unpack[ImageOptions]
    ) -> Picture | tuple[Picture, ...]:
        """Make one picture; or ``n`` of them, as a tuple, with the seeds ``seed``, ``seed + 1`` …

        Raises:
            InvalidParameterError, UnsupportedInputError: a value is bad, or the model cannot do it.
            MLXEngineError: what the request ended with.
        """
        pictures = _pictures(self.run(image_request(prompt, n, **options)).events)
        return pictures[0] if n is None else pictures


class AsyncImageHandle(AsyncModelHandle):
    """A loaded image-generation model, for asyncio. `stream` an `ImageRequest` to see each denoising step."""

    @overload
    async def image(self, prompt: str, *, n: None = None, **options: Unpack[ImageOptions]) -> Picture: ...

    @overload
    async def image(self, prompt: str, *, n: int, **options: Unpack[ImageOptions]) -> tuple[Picture, ...]: ...

    async def image(
        self, prompt: str, *, n: int | None = None, **options: Unpack[ImageOptions]
    ) -> Picture | tuple[Picture, ...]:
        """Make one picture; or ``n`` of them, as a tuple, with the seeds ``seed``, ``seed + 1`` …

        Raises:
            InvalidParameterError, UnsupportedInputError: a value is bad, or the model cannot do it.
            MLXEngineError: what the request ended with.
        """
        pictures = _pictures((await self.run(image_request(prompt, n, **options))).events)
        return pictures[0] if n is None else pictures


def _pictures(events: Iterable[Event]) -> tuple[Picture, ...]:
    ready = sorted((event for event in events if isinstance(event, ImageReady)), key=lambda item: item.index)
    return tuple(Picture(pixels=event.pixels, recipe=event.recipe) for event in ready)


__all__ = [
    "RECIPE_KEY",
    "AsyncImageHandle",
    "ImageHandle",
    "ImageOptions",
    "Picture",
    "image_request",
    "picture_format",
    "read_recipe",
]
