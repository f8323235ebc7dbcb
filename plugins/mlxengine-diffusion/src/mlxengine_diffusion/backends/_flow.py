"""Flow matching, as FLUX, Qwen-Image and Z-Image do it: the noise levels, and the way along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from mlxengine import LoadContext, ModelCard
from mlxengine.errors import UnsupportedArchitectureError

from ..features import KEEP_LOADED, QUANTIZE
from ..sd.layout import document
from ._slices import as_pixels, warm
from ._work import Abilities, Job, Pixels, PromptReport, Step

if TYPE_CHECKING:
    import mlx.core as mx

    from ..sd.adapter_files import AdapterFile
    from ..sd.lora import OtherNames
    from ..sd.parts import Parts

_NOT_IMPLEMENTED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


@frozen(kw_only=True)
class Levels:
    """How a repository's scheduler spaces its noise levels: the larger a picture, the more of them are high.

    After Esser et al. 2024 (Scaling Rectified Flow Transformers), in the form of diffusers'
    ``FlowMatchEulerDiscreteScheduler``.

    Args:
        shift: the factor of schedulers that do not look at the size.
        dynamic: whether the shift follows the size.
        base, most: the logarithm of the shift at ``few`` and at ``many`` places.
        linear: whether the shift itself, not its logarithm, is what follows the size.
        terminal: the last level before 0.
    """

    shift: float = 1.0
    dynamic: bool = False
    base: float = 0.5
    most: float = 1.15
    few: int = 256
    many: int = 4096
    linear: bool = False
    terminal: float | None = None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Levels:
        """From a ``scheduler_config.json``.

        Raises:
            UnsupportedArchitectureError: it asks for something that is not implemented.
        """
        name = config.get("_class_name", "FlowMatchEulerDiscreteScheduler")
        wrong = [key for key in _NOT_IMPLEMENTED if config.get(key)]
        if name != "FlowMatchEulerDiscreteScheduler" or wrong:
            found = f"{name} with {', '.join(wrong)}" if wrong else name
            raise UnsupportedArchitectureError(f"The scheduler {found} is not implemented for flow matching.")
        return cls(
            shift=config.get("shift", 1.0),
            dynamic=config.get("use_dynamic_shifting", False),
            base=config.get("base_shift", 0.5),
            most=config.get("max_shift", 1.15),
            few=config.get("base_image_seq_len", 256),
            many=config.get("max_image_seq_len", 4096),
            linear=config.get("time_shift_type", "exponential") == "linear",
            terminal=config.get("shift_terminal"),
        )

    def sigmas(self, steps: int, places: int, follow: float | None = None) -> list[float]:
        """The levels of ``steps`` steps, from 1 down, and the 0 after them.

        Args:
            places: of the picture, as the transformer sees it.
            follow: what the size amounts to, for models with a formula of their own.
        """
        slope = (self.most - self.base) / (self.many - self.few)
        mu = self.base + slope * (places - self.few) if follow is None else follow
        factor = (mu if self.linear else math.exp(mu)) if self.dynamic else self.shift
        even = [1 - index / steps for index in range(steps)]
        found = [factor / (factor + 1 / level - 1) for level in even]
        # A single step has nothing to stretch.
        if self.terminal and steps > 1:
            scale = (1 - found[-1]) / (1 - self.terminal)
            found = [1 - (1 - level) / scale for level in found]
        return [*found, 0.0]


# What every family can be asked for.
ABILITIES = Abilities(
    size_step=16, largest=2048, init_image=True, mask=True, lora=True, low_memory=True, vae_tiling=True
)


class Flow:
    """A loaded model of flow matching: see `backends.Pipeline` for what each method does.

    Families say how prompts are read, how noise is predicted, and what latents stand for.
    """

    def __init__(
        self,
        parts: Parts,
        levels: Levels,
        abilities: Abilities,
        info: dict[str, Any],
        others: OtherNames | None = None,
    ) -> None:
        self.abilities = abilities
        self.info = info
        self.parts = parts
        self.levels = levels
        self._others = others

    def warm(self) -> Iterator[None]:
        import mlx.core as mx

        from . import _gpu

        yield from self.parts.warm()
        yield from _gpu.warm(getattr(mx, self.info["dtype"]))

    @property
    def kept(self) -> int:
        return 0

    def trim(self, most: int) -> None:
        pass

    def close(self) -> None:
        self.parts.drop_idle()

    def read_prompt(self, job: Job) -> PromptReport:
        raise NotImplementedError

    @contextmanager
    def _use(self, part: str, job: Job) -> Iterator[Any]:
        """A network as the job's adapters change it."""
        import mlx.core as mx

        from ..sd.adapter_files import DENOISER
        from ..sd.lora import adapted

        with self.parts.use(part, drop=job.low_memory) as network:
            denoises = part == "transformer"
            yield adapted(
                network,
                DENOISER if denoises else part,
                self._adapters(job),
                getattr(mx, self.info["dtype"]),
                self._others if denoises else None,
            )

    def _adapters(self, job: Job) -> list[tuple[AdapterFile, float]]:
        from ..sd.adapter_files import DENOISER, read_all

        encoders = [part for part in self.parts.names if part.startswith("text_encoder")]
        return read_all(job.lora, (DENOISER, *encoders))

    def _told(self, job: Job) -> Generator[None, None, list[Any]]:
        """What the transformer is told: of the prompt, and with guidance of the negative one."""
        raise NotImplementedError

    def _shape(self, job: Job) -> tuple[int, ...]:
        """What latents are: rows of places, unless a family says otherwise."""
        return (1, job.height * job.width // 256, self.info["place_width"])

    def _sigmas(self, job: Job, places: int) -> list[float]:
        return self.levels.sigmas(job.steps, places)

    def _seen(self, job: Job) -> Generator[None, None, Any]:  # noqa: ARG002
        """What the transformer is shown beside the latents; ``None``: nothing."""
        yield from ()

    def _predict(
        self, transformer: Any, latents: mx.array, sigma: float, told: Any, seen: Any, job: Job
    ) -> mx.array:
        """The velocity at a level: the shape of ``latents``, float32."""
        raise NotImplementedError

    def _guided(self, outputs: list[mx.array], guidance: float) -> mx.array:
        return outputs[1] + guidance * (outputs[0] - outputs[1])

    def _pixels(self, grid: mx.array, job: Job) -> Generator[None, None, Pixels]:
        """The picture of latents (1, height, width, channels of a place)."""
        raise NotImplementedError

    def _hidden(self, vae: Any, pixels: mx.array, job: Job) -> Generator[None, None, mx.array]:
        """Latents (1, height / 8, width / 8, channels) of a picture (1, height, width, 3), -1 to 1."""
        raise NotImplementedError

    def _encoded(self, pixels: Pixels | mx.array, job: Job) -> Generator[None, None, mx.array]:
        """Latents of a picture: the mean of the autoencoder's distribution."""
        import mlx.core as mx

        with self.parts.use("vae", drop=job.low_memory) as vae:
            return (yield from self._hidden(vae, mx.array(pixels)[None].astype(mx.float32) / 127.5 - 1, job))

    def _laid(self, latents: mx.array) -> mx.array:
        """Latents (1, height, width, channels) as `denoise` has them."""
        grid = gathered(latents)
        return grid.reshape(1, -1, grid.shape[-1])

    def _start(self, job: Job) -> Generator[None, None, tuple[mx.array, mx.array | None]]:
        """The latents of the picture to start from, and which of them are made anew (``None``: all)."""
        import mlx.core as mx

        assert job.init is not None
        clean = yield from self._encoded(job.init, job)
        if job.mask is None or self.abilities.fills:
            return self._laid(clean), None
        scale = job.height // clean.shape[1]
        hole = mx.array(job.mask[::scale, ::scale] > 0)[None, ..., None]
        return self._laid(clean), self._laid(mx.broadcast_to(hole, clean.shape))

    def denoise(self, job: Job, noise: mx.array | None = None) -> Iterator[Step | None]:
        import mlx.core as mx

        if job.low_memory:
            self.parts.drop_idle()
        self._adapters(job)  # what is wrong with them is said before anything is computed
        told = yield from self._told(job)
        seen = yield from self._seen(job)
        if noise is None:
            noise = mx.random.normal(self._shape(job), key=mx.random.key(job.seed))
        latents, clean, hole, first = noise, noise, None, 0
        sigmas = self._sigmas(job, job.height * job.width // 256)
        if job.init is not None:
            clean, hole = yield from self._start(job)
            # A share of the steps, rounded up: what is left out is rounded down.
            first = int(job.steps - job.steps * job.strength)
            if first == job.steps:
                yield Step(done=0, total=0, latents=clean, clean=clean)
                return
            latents = sigmas[first] * noise + (1 - sigmas[first]) * clean
        with self._use("transformer", job) as transformer:
            if job.low_memory:
                yield from warm([transformer])
            for index in range(first, job.steps):
                sigma, following = sigmas[index : index + 2]
                outputs = []
                for item in told:  # one after the other: in one graph the features of both would live at once
                    outputs.append(self._predict(transformer, latents, sigma, item, seen, job))
                    mx.eval(outputs[-1])
                output = outputs[0] if len(outputs) == 1 else self._guided(outputs, job.guidance)
                believed = latents - sigma * output
                latents = latents + (following - sigma) * output
                if hole is not None:
                    latents = mx.where(hole, latents, following * noise + (1 - following) * clean)
                mx.eval(latents, believed)
                yield Step(done=index - first + 1, total=job.steps - first, latents=latents, clean=believed)

    def decode(self, latents: mx.array, job: Job) -> Generator[None, None, Pixels]:
        return (yield from self._pixels(self._grid(latents, job), job))

    def preview(self, clean: mx.array, job: Job) -> Generator[None, None, Pixels]:
        return (yield from self._pixels(self._grid(clean, job)[:, ::2, ::2], job))

    def _grid(self, latents: mx.array, job: Job) -> mx.array:
        return latents.reshape(1, job.height // 16, job.width // 16, -1)


def spread(grid: mx.array) -> mx.array:
    """Latents of places (1, h, w, 4 c), each of two by two, as (1, 2 h, 2 w, c)."""
    _, height, width, channels = grid.shape
    apart = grid.reshape(1, height, width, channels // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return apart.reshape(1, 2 * height, 2 * width, channels // 4)


def gathered(latents: mx.array) -> mx.array:
    """Latents (1, 2 h, 2 w, c) as places of two by two, (1, h, w, 4 c): `spread` the other way."""
    _, height, width, channels = latents.shape
    apart = latents.reshape(1, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    return apart.reshape(1, height // 2, width // 2, 4 * channels)


def built(
    card: ModelCard, context: LoadContext, builders: Mapping[str, Callable[[dict[str, Any], list[Path]], Any]]
) -> Parts:
    """The networks of a repository, made by configuration and weight files; quantized as the flag says."""
    from functools import partial

    from mlxengine.readonly import thaw

    from ..sd.parts import Parts
    from ._networks import quantized

    bits = context.features.get(QUANTIZE)

    def make(part: str, build: Callable[[dict[str, Any], list[Path]], Any]) -> Any:
        files = sorted((context.path / part).glob("*.safetensors"))
        network = build(thaw(document(card, f"{part}/config.json")), files)
        return quantized(network, bits) if bits and part == "transformer" else network

    made = {part: partial(make, part, build) for part, build in builders.items()}
    parts = Parts(made, keep=context.features.get(KEEP_LOADED))
    parts.build()
    return parts


__all__ = ["ABILITIES", "Flow", "Levels", "as_pixels", "built", "gathered", "spread"]
