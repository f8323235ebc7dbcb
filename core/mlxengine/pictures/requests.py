"""What can be asked of a model that makes pictures."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from ..contract._convert import named, optional_text, text
from ..contract.requests import Request


def _type_name(value: Any) -> str:
    return f"<{type(value).__name__}>"


@frozen(kw_only=True)
class ImageControl:
    """A picture that a ControlNet is shown while another is made: edges, depths, a pose, or another.

    Args:
        source: folder or repository of the ControlNet.
        image: the picture, scaled to the size of the one that is made: whatever `ImagePart` takes.
        strength: how much it counts; 1 is as it was trained.
        start, end: the shares of the steps between which it counts, 0 to 1.
    """

    source: str
    image: Any = field(repr=_type_name)
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@frozen(kw_only=True)
class IPAdapter:
    """A picture that counts as a prompt: what is made takes its content or its style.

    Args:
        source: the adapter: a file, a folder or a repository in the form of ``h94/IP-Adapter``, or one of its
            files, as ``h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors``. A repository alone stands
            for the plain adapter of the model's family. For FLUX.1, ``black-forest-labs/FLUX.1-Redux-dev``.
        image: the picture: whatever `ImagePart` takes. Its middle square is looked at; by Redux all of it.
        strength: how much it counts; 1 is as it was trained.
    """

    source: str
    image: Any = field(repr=_type_name)
    strength: float = 1.0


@frozen(kw_only=True, field_transformer=named)
class ImageRequest(Request):
    """Text (and a picture) in, pictures out. ``None`` is the model's own default.

    Args:
        prompt: what the picture shows.
        negative: what it should not show.
        size: (width, height) in pixels.
        steps: denoising steps, at least 1.
        guidance: classifier-free guidance scale.
        seed: 0 is a seed; picture i of n uses ``seed + i``.
        scheduler: name of the sampler, for example ``"euler"``.
        sigmas: how the sampler's noise levels are placed: ``"uniform"``, ``"karras"``, ``"exponential"`` or
            ``"beta"``.
        clip_skip: the text encoder's layer to take, counted from the end: 1 is the last, 2 the one before.
        prompt_weights: whether brackets weigh words, as in ``(words:1.2)``; ``False`` reads them as letters.
        guidance_rescale: how far to bring guidance back to the contrast of the prediction without it, 0 to 1.
        init_image: a picture to start from: whatever `ImagePart` takes.
        mask: which part of ``init_image`` to make anew: a picture of any size, light where it is; or an
            array (height, width) of bool, of uint8, or of floats from 0 to 1.
        strength: how far to leave ``init_image``, 0 (keep) to 1 (forget).
        references: pictures to look at while this one is made, or to edit, for models that can: each whatever
            `ImagePart` takes.
        controls: ControlNets to apply, several at once.
        ip_adapters: IP-Adapters, each with the picture that counts as a prompt.
        refiner: folder or repository of Stable Diffusion XL's second UNet, which does the last steps.
        refiner_at: after which share of the way it takes over, 0 to 1.
        n: number of pictures.
        lora: folders or repositories of LoRA weights, each with its scale.
        textual_inversions: files, folders or repositories of taught words, which the prompt holds.
        upscale: a file, folder or repository with ESRGAN's network, which makes the picture larger.
        low_memory: free each part of the pipeline after its stage.
        vae_tiling: let the autoencoder work on tiles; left out, where it would not fit otherwise.
        preview_every: emit an `ImagePreview` every so many steps; 0 never does.
    """

    prompt: str = field(converter=text)
    negative: str | None = field(default=None, validator=optional_text)
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    scheduler: str | None = None
    sigmas: str | None = None
    clip_skip: int | None = None
    prompt_weights: bool | None = None
    guidance_rescale: float | None = None
    init_image: Any = field(default=None, repr=_type_name)
    mask: Any = field(default=None, repr=_type_name)
    strength: float | None = None
    references: tuple[Any, ...] = field(default=(), repr=lambda value: f"<{len(value)}>")
    controls: tuple[ImageControl, ...] = ()
    ip_adapters: tuple[IPAdapter, ...] = ()
    refiner: str | None = None
    refiner_at: float | None = None
    n: int = 1
    lora: tuple[tuple[str, float], ...] = ()
    textual_inversions: tuple[str, ...] = ()
    upscale: str | None = None
    low_memory: bool | None = None
    vae_tiling: bool | None = None
    preview_every: int = 0


__all__ = ["IPAdapter", "ImageControl", "ImageRequest"]
