"""What back ends do with a picture: the job, its steps, and a loaded model that does it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from . import Defaults

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]
    """A picture: shape (height, width, 3), uint8."""
else:
    Pixels = Any


@frozen(kw_only=True)
class Abilities:
    """What a pipeline can be asked for.

    Args:
        defaults: for what a request leaves open.
        schedulers: names of the samplers to choose from; a single one cannot be chosen.
        placements: names of the ways to place their noise levels.
        size_step: width and height must be multiples of this.
        largest: longest side in pixels.
        most_steps: most denoising steps.
        negative: whether negative prompts work (with a guidance above 1).
        guided: whether a guidance above 1 has an effect.
        init_image: whether a picture can be the start.
        mask: whether a part of that picture can be made anew and the rest kept.
        fills: whether it is made for nothing else.
        references: how many pictures it can look at while it makes one; 0 for none.
        reference_sizes: the sizes that those must have; empty for any of up to a million pixels.
        reference_area: pixels that they are scaled to, and the new picture with them; they come as they are.
            0: they come scaled, as the sizes say.
        edits: whether a picture to start from is edited, where neither a strength nor a mask comes with it.
        controls: whether ControlNets can be applied.
        ip_adapter: the file that stands for a repository of IP-Adapters; empty where none can be applied.
        refiner: whether another UNet can do the last steps.
        lora: whether adapters can be applied.
        prompt_weights: whether brackets in a prompt weigh its words.
        text_layers: how many layers the text encoder has to choose from with ``clip_skip``; 0 for no choice.
        guidance_rescale: whether guidance can be rescaled.
        low_memory: whether parts can be freed after their stage.
        vae_tiling: whether the autoencoder can work on tiles.
        textual_inversion: whether words can be taught.
        together: most pixels of pictures that are made at once; 0 where they are made one after another.
    """

    defaults: Defaults = Defaults()  # noqa: RUF009 - a frozen value
    schedulers: tuple[str, ...] = ()
    placements: tuple[str, ...] = ()
    size_step: int = 8
    largest: int = 4096
    most_steps: int = 999
    negative: bool = True
    guided: bool = True
    init_image: bool = False
    mask: bool = False
    fills: bool = False
    references: int = 0
    reference_sizes: tuple[tuple[int, int], ...] = ()
    reference_area: int = 0
    edits: bool = False
    controls: bool = False
    ip_adapter: str = ""
    refiner: bool = False
    lora: bool = False
    prompt_weights: bool = False
    text_layers: int = 0
    guidance_rescale: bool = False
    low_memory: bool = False
    vae_tiling: bool = False
    together: int = 0
    textual_inversion: bool = False


@frozen(kw_only=True)
class Guide:
    """A picture that a ControlNet is shown: of the size of the one that is made.

    Args:
        path: of the ControlNet's folder, or its repository's name until it is fetched.
        strength: what its features are multiplied with.
        start, end: the share of the steps before which, and after which, it says nothing.
    """

    path: Path
    pixels: Pixels
    strength: float
    start: float
    end: float

    def speaks(self, index: int, count: int) -> bool:
        """Whether it has a say in evaluation ``index`` of ``count``."""
        return index / count >= self.start and (index + 1) / count <= self.end


@frozen(kw_only=True)
class Seen:
    """A picture that an IP-Adapter is shown, of any size.

    Args:
        path: of the adapter's file or of its folder, or its name on the hub until it is fetched.
        strength: what the attention to it is multiplied with.
    """

    path: Path
    pixels: Pixels
    strength: float


@frozen(kw_only=True)
class Job:
    """Pictures to make at once, ``n`` of them with seeds from ``seed`` on; everything is decided.

    ``mask`` has the picture's height and width; what is above zero is made anew. ``references`` have sizes of
    their own, multiples of the model's step. With ``vae_tiling`` the autoencoder works on tiles.
    The ``refiner`` takes over after the share ``refiner_at`` of the noise levels.
    """

    prompt: str
    negative: str | None
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    scheduler: str
    n: int = 1
    sigmas: str | None = None
    clip_skip: int | None = None
    prompt_weights: bool = False
    guidance_rescale: float = 0.0
    init: Pixels | None = None
    mask: Pixels | None = None
    references: tuple[Pixels, ...] = ()
    controls: tuple[Guide, ...] = ()
    ip_adapters: tuple[Seen, ...] = ()
    refiner: Path | None = None
    refiner_at: float = 1.0
    strength: float = 1.0
    lora: tuple[tuple[Path, float], ...] = ()
    low_memory: bool = False
    vae_tiling: bool = False
    textual_inversions: tuple[Path, ...] = ()
    upscale: Path | None = None


@frozen(kw_only=True)
class Step:
    """One denoising step is done.

    Args:
        done, total: how many, of how many.
        latents: the state after it; the last one's goes to `Pipeline.decode`.
        clean: the picture's latents as the model believes them now, for previews (``None``: no previews).
    """

    done: int
    total: int
    latents: Any
    clean: Any = None


@frozen(kw_only=True)
class PromptReport:
    """What became of the prompt: tokens used, and the text that did not fit."""

    tokens: int = 0
    truncated: str = ""


class Pipeline(Protocol):
    """A loaded model. Every call comes on the scheduler's thread."""

    @property
    def abilities(self) -> Abilities:
        """What it can be asked for."""
        ...

    @property
    def info(self) -> dict[str, Any]:
        """Facts for people: the library, the number format …"""
        ...

    def read_prompt(self, job: Job) -> PromptReport:
        """Look at the prompt without computing anything on the device."""
        ...

    def denoise(self, job: Job) -> Iterator[Step | None]:
        """Make latents, one denoising step at a time; ``None`` marks a step of preparation.

        Those of several pictures stand one after the other along the first axis.

        With no step to do (image-to-image at strength 0) yields one `Step` with ``total`` 0.
        """
        ...

    def decode(self, latents: Any, job: Job) -> Generator[None, None, Pixels]:
        """The picture that latents stand for, in as many turns as it takes."""
        ...

    def preview(self, clean: Any, job: Job) -> Generator[None, None, Pixels]:
        """The same, small and quick."""
        ...

    def warm(self) -> Iterator[None]:
        """Evaluate the weights a slice at a time."""
        ...

    @property
    def kept(self) -> int:
        """Bytes kept beside the weights for pictures to come; asked on any thread."""
        ...

    def trim(self, most: int) -> None:
        """Let go of those until at most so many are kept."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


__all__ = ["Abilities", "Guide", "Job", "Pipeline", "Pixels", "PromptReport", "Seen", "Step"]
