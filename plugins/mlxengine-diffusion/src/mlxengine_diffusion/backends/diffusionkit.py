"""Stable Diffusion 3 and 3.5 and FLUX.1 schnell on diffusionkit."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from mlxengine import LoadContext, ModelCard
from mlxengine.errors import BackendUnavailableError, IncompatibleWeightsError

from ..models import defaults_for
from . import Defaults, Offer
from ._slices import steps_for, warm
from ._work import Abilities, Job, Pixels, PromptReport, Step

if TYPE_CHECKING:
    import mlx.core as mx

SUMMARY = "Stable Diffusion 3 and 3.5 and FLUX.1 schnell on diffusionkit"
REMEDY = 'pip install "mlxengine-diffusion[diffusionkit]"'
TEXT, T5 = "argmaxinc/stable-diffusion", "google/t5-v1_1-xxl"
_TEXT_FILES = ("clip_l/*", "clip_g/*", "tokenizer_l/*", "tokenizer_g/*", "t5/*")
_T5_FILES = ("config.json", "*.model", "tokenizer*.json", "special_tokens_map.json")


@frozen(kw_only=True)
class _Variant:
    """One of the library's fixed models: its key there, its files, and what it is asked with."""

    key: str
    files: tuple[str, ...]
    flux: bool
    defaults: Defaults

    @property
    def key_bias(self) -> bool:
        """Whether its files hold the keys' biases."""
        return "quantized" not in self.key


# By the file that holds the transformer. FLUX.1 dev is not among them: the library runs it with schnell's
# configuration, and where that asks for guidance, it embeds the timestep in its place.
_VARIANTS = {
    "flux-schnell.safetensors": _Variant(
        key="argmaxinc/mlx-FLUX.1-schnell",
        files=("ae.safetensors",),
        flux=True,
        defaults=Defaults(size=(1024, 1024), steps=4, guidance=0.0),
    ),
    "flux-schnell-4bit-quantized.safetensors": _Variant(
        key="argmaxinc/mlx-FLUX.1-schnell-4bit-quantized",
        files=("ae.safetensors",),
        flux=True,
        defaults=Defaults(size=(1024, 1024), steps=4, guidance=0.0),
    ),
    "sd3_medium.safetensors": _Variant(
        key="argmaxinc/mlx-stable-diffusion-3-medium",
        files=(),
        flux=False,
        defaults=Defaults(size=(1024, 1024), steps=28, guidance=7.0),
    ),
    "sd3.5_large.safetensors": _Variant(
        key="argmaxinc/mlx-stable-diffusion-3.5-large",
        files=(),
        flux=False,
        defaults=Defaults(size=(1024, 1024), steps=28, guidance=3.5),
    ),
    "sd3.5_large_4bit_quantized.safetensors": _Variant(
        key="argmaxinc/mlx-stable-diffusion-3.5-large-4bit-quantized",
        files=(),
        flux=False,
        defaults=Defaults(size=(1024, 1024), steps=28, guidance=3.5),
    ),
}


def claim(card: ModelCard) -> Offer | None:
    name = next((item.path for item in card.files if item.path in _VARIANTS), None)
    if name is None:
        return None
    needed = (name, *_VARIANTS[name].files)
    absent = sorted(set(needed) - {item.path for item in card.files})
    problem = IncompatibleWeightsError(f"{card.id} has no {', '.join(absent)}.") if absent else None
    return Offer(files=("config.json", *needed), problem=problem)


def missing() -> str | None:
    return None if importlib.util.find_spec("diffusionkit") else "diffusionkit"


def load(card: ModelCard, context: LoadContext) -> DiffusionKitPipeline:
    from . import _diffusionkit_fixes as fixes

    fixes.apply()
    import mlx.core as mx
    from diffusionkit import mlx as kit
    from diffusionkit.mlx import config

    variant = next(_VARIANTS[item.path] for item in card.files if item.path in _VARIANTS)
    if context.fetch is None:
        raise BackendUnavailableError(f"{card.id} needs {TEXT} and {T5}, and nothing can be fetched here.")
    folders = {
        variant.key: context.path,
        TEXT: context.fetch(TEXT, _TEXT_FILES),
        T5: context.fetch(T5, _T5_FILES),
    }
    half = mx.default_device().type != mx.DeviceType.cpu
    if not half:
        for item in (config.FLUX_SCHNELL, config.SD3_2b, config.SD3_8b):
            item.dtype = mx.float32
    make = kit.FluxPipeline if variant.flux else kit.DiffusionPipeline
    options = {} if variant.flux else {"shift": 3.0}
    try:
        with fixes.files(folders, key_bias=variant.key_bias, whole=True):
            made = make(w16=half, a16=half, low_memory_mode=False, model_version=variant.key, **options)
    except (ValueError, KeyError) as error:
        raise IncompatibleWeightsError(f"{card.id} does not fit diffusionkit's model: {error}") from error
    abilities = Abilities(
        defaults=defaults_for(card, variant.defaults),
        size_step=16,
        most_steps=999,
        negative=not variant.flux,
        guided=not variant.flux,
        init_image=True,
    )
    info = {"library": "diffusionkit", "dtype": "float16" if half else "float32"}
    return DiffusionKitPipeline(made, folders, abilities, info, flux=variant.flux)


class DiffusionKitPipeline:
    """A loaded model of diffusionkit's: see `backends.Pipeline` for what each method does.

    The library keeps what a prompt and its timesteps amount to inside the network, so one picture is made at
    a time; others wait their turn.
    """

    def __init__(
        self, kit: Any, folders: dict[str, Path], abilities: Abilities, info: dict[str, Any], *, flux: bool
    ) -> None:
        self.abilities = abilities
        self.info = info
        self._kit = kit
        self._folders = folders
        self._flux = flux
        self._busy = False

    def warm(self) -> Iterator[None]:
        kit = self._kit
        names = ("mmdit", "decoder", "encoder", "clip_l", "clip_g", "t5_encoder")
        yield from warm(getattr(kit, name) for name in names if hasattr(kit, name))

    @property
    def kept(self) -> int:
        return 0

    def trim(self, most: int) -> None:
        pass

    def close(self) -> None:
        self._kit = None

    def read_prompt(self, job: Job) -> PromptReport:
        """Tokens of the prompt as T5 counts them; it reads the most of it."""
        tokenizer = self._kit.t5_tokenizer
        ids = list(tokenizer._tokenizer(job.prompt, verbose=False).input_ids)
        cut = ids[tokenizer.max_length - 1 : -1] if len(ids) > tokenizer.max_length else []
        return PromptReport(
            tokens=min(len(ids), tokenizer.max_length),
            truncated=tokenizer._tokenizer.decode(cut).strip() if cut else "",
        )

    def denoise(self, job: Job, noise: mx.array | None = None) -> Iterator[Step | None]:
        while self._busy:
            yield None
        self._busy = True
        try:
            yield from self._denoise(job, noise)
        finally:
            self._busy = False

    def _denoise(self, job: Job, noise: mx.array | None) -> Iterator[Step | None]:
        import mlx.core as mx
        from diffusionkit import mlx as library

        kit = self._kit
        # SD3's conditioning always holds both prompts; a weight of 1 is no guidance. FLUX has one prompt.
        weight = 0.0 if self._flux else max(1.0, job.guidance)
        context, pooled = kit.encode_text(job.prompt, weight, job.negative or "")
        context, pooled = context.astype(kit.activation_dtype), pooled.astype(kit.activation_dtype)
        mx.eval(context, pooled)
        yield None
        clean = kit.get_empty_latent(job.height // 8, job.width // 8)
        first = 0
        if job.init is not None:
            hidden = kit.encoder(mx.array(job.init)[None].astype(mx.float32) / 127.5 - 1)
            clean = kit.latent_format.process_in(mx.split(hidden, 2, axis=-1)[0])
            mx.eval(clean)
            first = job.steps - steps_for(job.steps, job.strength)
            if first == job.steps:
                yield Step(done=0, total=0, latents=clean, clean=clean)
                return
        if noise is None:
            import numpy as np

            drawn = np.random.RandomState(job.seed % 2**32).randn(*clean.transpose(0, 3, 1, 2).shape)
            noise = mx.array(drawn.astype(np.float32)).transpose(0, 2, 3, 1)
        sigmas = kit.get_sigmas(kit.sampler, job.steps)
        latents = kit.sampler.noise_scaling(sigmas[first], noise, clean)
        denoiser = library.CFGDenoiser(kit)
        times = kit.sampler.timestep(sigmas).astype(kit.activation_dtype)
        try:
            denoiser.cache_modulation_params(pooled, times)
            for index in range(first, job.steps):
                clean = denoiser(
                    latents, times[index], sigmas[index], conditioning=context, cfg_weight=weight
                )
                derivative = library.to_d(latents, sigmas[index], clean)
                latents = latents + derivative * (sigmas[index + 1] - sigmas[index])
                mx.eval(latents, clean)
                yield Step(done=index - first + 1, total=job.steps - first, latents=latents, clean=clean)
        finally:
            from . import _diffusionkit_fixes as fixes

            # The library threw the modulation's weights away after it had used them: read them again.
            with fixes.files(self._folders, key_bias=True):
                denoiser.clear_cache()

    def decode(self, latents: mx.array, job: Job) -> Generator[None, None, Pixels]:  # noqa: ARG002
        import mlx.core as mx
        import numpy as np

        kit = self._kit
        ready = kit.latent_format.process_out(latents).astype(kit.activation_dtype)
        pixels = mx.round(kit.decode_latents_to_image(ready)[0] * 255).astype(mx.uint8)
        mx.eval(pixels)
        yield None
        found: Pixels = np.array(pixels)
        return found

    def preview(self, clean: mx.array, job: Job) -> Generator[None, None, Pixels]:
        return (yield from self.decode(clean[:, ::2, ::2], job))
