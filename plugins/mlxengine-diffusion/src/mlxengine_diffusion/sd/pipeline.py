"""Text (and a picture) to latents to pixels, for Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from attrs import evolve, frozen

from ..backends._slices import as_pixels, steps_for
from ..backends._work import Abilities, Guide, Job, Pixels, PromptReport, Step
from . import ops
from .adapter_files import DENOISER, AdapterFile, read_all
from .autoencoder import decoded, encoded
from .control import ControlNet, load_control
from .ip_adapter import ImagePrompter, Shown, load_ip_adapter, looking
from .lora import adapted
from .parts import Parts, compiled
from .prompts import Piece, parse
from .refiner import SCORES, load_refiner
from .scheduler_config import NoiseSettings
from .schedulers import scheduler
from .text import Chunk, Conditioning, Tokenizer, encode
from .textual_inversion import Lexicon, read_taught
from .unet import Encoder, UNet
from .walk import Noise, Walk

_Net = TypeVar("_Net", ControlNet, ImagePrompter, UNet)
_REMEMBERED_PROMPTS = 8
_PREVIEW_LATENTS = 32
_KEPT_NETS = 2
_REFINED = "text_encoder_2"


@frozen(kw_only=True, eq=False)
class Traits:
    """What a model's configurations say about how it is run.

    Args:
        xl: two text encoders, pooled prompt and size conditioning.
        zero_negative: an absent negative prompt is all zeros instead of the empty prompt's states.
        settings: the noise it was trained with.
        latent_channels, latent_scale: channels of the latents; pixels per latent along a side.
        text_widths: of the text encoders' embeddings, by part.
        dtype: number format of the UNet and the text encoders.
        fills: whether the UNet is shown a mask and the rest of a picture beside the latents.
        taesd: whether there is a small decoder for previews.
        compiled: whether the UNet runs as `mlx.core.compile` makes it.
    """

    xl: bool
    zero_negative: bool
    settings: NoiseSettings
    latent_channels: int
    latent_scale: int
    text_widths: Mapping[str, int]
    dtype: mx.Dtype
    fills: bool = False
    taesd: bool = False
    compiled: bool = False


class StableDiffusion:
    """A loaded Stable Diffusion model: see `backends.Pipeline` for what each method does."""

    def __init__(
        self,
        parts: Parts,
        tokenizers: Mapping[str, Tokenizer],
        traits: Traits,
        abilities: Abilities,
        info: dict[str, Any],
        room: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.abilities = abilities
        self.info = info
        self.parts = parts
        self.traits = traits
        self._tokenizers = dict(tokenizers)
        self._remembered: OrderedDict[object, Conditioning] = OrderedDict()
        self._nets: OrderedDict[Path, ControlNet | ImagePrompter | UNet] = OrderedDict()
        self._room = room
        self._kept = 0

    def warm(self) -> Iterator[None]:
        yield from self.parts.warm()
        for dtype in {self.traits.dtype, mx.float32}:  # the autoencoder's
            yield from ops.warm(dtype)

    def close(self) -> None:
        self._remembered.clear()
        self.trim(0)
        self.parts.drop_idle()

    @property
    def kept(self) -> int:
        return self._kept

    def trim(self, most: int) -> None:
        """Let the networks go that requests brought along, those used the longest ago first."""
        while self._nets and self._kept > most:
            self._kept -= self._nets.popitem(last=False)[1].nbytes

    def read_prompt(self, job: Job) -> PromptReport:
        lexicon = self._lexicon(job)
        lexicon.check([job.prompt, job.negative or ""])
        return self._tokenizers["text_encoder"].report(_parts(job, job.prompt), lexicon)

    def denoise(self, job: Job, noise: Noise | None = None) -> Generator[Step | None, None, None]:
        ahead = _ahead()
        waiting: Step | None = None
        done = 0

        def finished(step: Step) -> Step | None:
            nonlocal done
            mx.eval(step.latents, step.clean)
            before, done = done, step.done
            return step if done > before or not step.total else None

        for step in self._evaluations(job, noise):
            if waiting is not None:
                yield finished(waiting)
                waiting = None
            if step is None:
                yield None
            elif ahead:
                mx.async_eval(step.latents, step.clean)  # type: ignore[no-untyped-call]
                waiting = step
            else:
                yield finished(step)
        if waiting is not None:
            yield finished(waiting)

    def _evaluations(self, job: Job, noise: Noise | None) -> Generator[Step | None, None, None]:
        """A step for each evaluation of the model, to be computed, with the steps that are done then."""
        noise = noise or Noise(job.seed, job.n)
        if job.low_memory:
            self.trim(0)
            self.parts.drop_idle()
        sampler = scheduler(job.scheduler, self.traits.settings, job.steps, job.sigmas)
        adapters = read_all(job.lora, (*self._tokenizers, DENOISER))
        guided = job.guidance > 1
        chunks = self._chunks(job, guided=guided)
        positive = yield from self._condition(job, job.prompt, adapters, chunks)
        told = positive
        if guided:
            zero = self.traits.zero_negative
            told = yield from self._contrast(job, positive, adapters, chunks, zero=zero)
        told = told.repeated(job.n)
        scale = self.traits.latent_scale
        shape = (job.n, job.height // scale, job.width // scale, self.traits.latent_channels)
        start = 0
        if job.init is None:
            latents = noise.initial(shape) * sampler.initial_scale
        else:
            clean = mx.repeat((yield from self._encoded(job.init, job)), job.n, axis=0)
            start = job.steps - steps_for(job.steps, job.strength)
            if start == job.steps:
                yield Step(done=0, total=0, latents=clean, clean=clean)
                return
            latents = sampler.add_noise(clean, noise.initial(shape), start * sampler.evaluations)
            if job.mask is not None and not start:
                latents = noise.initial(shape) * sampler.initial_scale
        added = self._added(told, job)
        looked_at = yield from self._shown(job, guided=guided)
        beside = (yield from self._beside(job, guided=guided)) if self.traits.fills else None
        refined = (yield from self._refined(job, positive, adapters, chunks)) if job.refiner else None
        kept = None
        if job.mask is not None and not self.traits.fills:
            kept = self._hole(job.mask), clean
        walk = Walk(job=job, noise=noise, sampler=sampler, start=start, kept=kept, dtype=self.traits.dtype)
        first, last = start * sampler.evaluations, len(sampler.timesteps)
        cut = max(first, self._cut(sampler, job))
        # Built now: what is wrong with it is said before the first step. It is read when it is its turn.
        refiner = self._refiner(job) if cut < last else None
        with self.parts.use("unet", drop=job.low_memory) as base:
            unet = adapted(base, DENOISER, adapters, self.traits.dtype)
            if looked_at:
                unet = looking(unet, looked_at)
            rows = _Rows(mx.array(sampler.timesteps, mx.float32), told.context, added, self.traits.dtype)
            guides = [(*item, rows.given(item[1])) for item in self._guides(base, job)]
            timed, prompts = rows.given(unet)
            network = unet.predicted
            if self.traits.compiled:
                # An adapter's view belongs to the request: what is compiled of it goes with the request.
                own = unet is not base
                network = (
                    compiled(unet)
                    if own
                    else self.parts.compiled("unet", (guided, *shape[:3], told.context.shape[1]))
                )

            def predicted(shown: mx.array, index: int) -> mx.array:
                more = self._controlled(guides, shown, index, first, last)
                whole = shown if beside is None else mx.concatenate([shown, beside], axis=-1)
                found: mx.array = network(whole, timed[index], prompts, more)
                return found

            latents = yield from walk.steps(predicted, latents, range(first, cut))
        if refiner is None or refined is None:
            return
        context, looks = refined
        late, read = evolve(rows, context=context, added=looks).given(refiner)
        refine = compiled(refiner) if self.traits.compiled else refiner.predicted
        # A sampler that remembers what the other network said would mix the two.
        walk = evolve(walk, sampler=scheduler(job.scheduler, self.traits.settings, job.steps, job.sigmas))
        yield from walk.steps(
            lambda shown, index: refine(shown, late[index], read), latents, range(cut, last)
        )

    def _refiner(self, job: Job) -> Any:
        assert job.refiner is not None
        width, channels = self.traits.text_widths[_REFINED], self.traits.latent_channels
        bits = self.info.get("unet_bits") or 0
        load = partial(load_refiner, job.refiner, width, channels, self.traits.dtype, bits)
        return self._net(job.refiner, load, keep=not job.low_memory)

    def _cut(self, sampler: Any, job: Job) -> int:
        """How many evaluations are this model's, before the refiner's: whole steps."""
        if job.refiner is None:
            return len(sampler.timesteps)
        level = round(self.traits.settings.train_steps * (1 - job.refiner_at))
        count = len([time for time in sampler.timesteps if time >= level])
        rest: int = count % sampler.evaluations
        return count if count == len(sampler.timesteps) else count - rest

    def _refined(
        self, job: Job, positive: Conditioning, adapters: list[tuple[AdapterFile, float]], chunks: int
    ) -> Generator[None, None, tuple[mx.array, tuple[mx.array, mx.array]]]:
        """What a refiner is told: the states of the larger text encoder, and the looks that are wanted."""
        told, scores = positive, list(SCORES[1:])
        if job.guidance > 1:
            told = yield from self._contrast(job, positive, adapters, chunks, zero=False)
            scores = list(SCORES)
        told = told.repeated(job.n)
        assert told.pooled is not None
        numbers = [[job.height, job.width, 0, 0, score] for score in scores for _ in range(job.n)]
        width = self.traits.text_widths[_REFINED]
        return told.context[..., -width:], (told.pooled, mx.array(numbers, dtype=mx.float32))

    def decode(self, latents: mx.array, job: Job) -> Generator[None, None, Pixels]:
        with self.parts.use("vae", drop=job.low_memory) as vae:
            return as_pixels((yield from decoded(vae, latents, tiled=job.vae_tiling)))

    def preview(self, clean: mx.array, job: Job) -> Generator[None, None, Pixels]:
        if self.traits.taesd:
            with self.parts.use("taesd", drop=job.low_memory) as decoder:
                picture = decoder(clean)
                mx.eval(picture)
            yield None
            return as_pixels(picture[0])
        factor = math.ceil(max(clean.shape[1:3]) / _PREVIEW_LATENTS)
        height, width = (size // factor * factor for size in clean.shape[1:3])
        small = clean[:, :height, :width].reshape(1, height // factor, factor, width // factor, factor, -1)
        return (yield from self.decode(small.mean(axis=(2, 4)), job))

    def _lexicon(self, job: Job) -> Lexicon:
        """The words that the job's textual inversions taught."""
        return Lexicon([read_taught(path, self.traits.text_widths) for path in job.textual_inversions])

    def _chunks(self, job: Job, *, guided: bool) -> int:
        """How many chunks the longer of both prompts takes: the UNet attends to both at once."""
        lexicon = self._lexicon(job)
        texts = (job.prompt, job.negative or "") if guided else (job.prompt,)
        return max(
            len(tokenizer.chunks(_parts(job, text), lexicon))
            for text in texts
            for tokenizer in self._tokenizers.values()
        )

    def _condition(
        self, job: Job, text: str, adapters: list[tuple[AdapterFile, float]], chunks: int
    ) -> Generator[None, None, Conditioning]:
        """The states of one prompt, with empty chunks behind it up to so many; one encoder a turn."""
        key = (text, job.lora, job.clip_skip, job.prompt_weights, job.textual_inversions, chunks)
        if key in self._remembered:
            self._remembered.move_to_end(key)
            return self._remembered[key]
        states = []
        pooled = None
        lexicon = self._lexicon(job)
        for part, tokenizer in self._tokenizers.items():
            with self.parts.use(part, drop=job.low_memory) as base:
                encoder = adapted(base, part, adapters, self.traits.dtype)
                own = tokenizer.chunks(_parts(job, text), lexicon)
                rows = tokenizer.rows([*own, *[Chunk()] * (chunks - len(own))])
                layer = job.clip_skip or (2 if self.traits.xl else 1)
                context, pooled = encode(
                    encoder, *rows, layer, normed=not self.traits.xl, vectors=lexicon.vectors(part)
                )
                mx.eval(context, pooled)
            states.append(context)
            yield None
        made = Conditioning(mx.concatenate(states, axis=-1), pooled if self.traits.xl else None)
        mx.eval(made.arrays())
        self._remembered[key] = made
        if len(self._remembered) > _REMEMBERED_PROMPTS:
            self._remembered.popitem(last=False)
        return made

    def _contrast(
        self,
        job: Job,
        positive: Conditioning,
        adapters: list[tuple[AdapterFile, float]],
        chunks: int,
        *,
        zero: bool,
    ) -> Generator[None, None, Conditioning]:
        """The negative prompt's states before the prompt's: a batch of two.

        With ``zero`` an absent one is all zeros instead of the empty prompt.
        """
        if job.negative is None and zero:
            negative = Conditioning(
                mx.zeros_like(positive.context),
                None if positive.pooled is None else mx.zeros_like(positive.pooled),
            )
        else:
            negative = yield from self._condition(job, job.negative or "", adapters, chunks)
        pooled = None
        if positive.pooled is not None and negative.pooled is not None:
            pooled = mx.concatenate([negative.pooled, positive.pooled])
        return Conditioning(mx.concatenate([negative.context, positive.context]), pooled)

    def _added(self, told: Conditioning, job: Job) -> tuple[mx.array, mx.array] | None:
        """SDXL's conditioning on sizes: of the original, of what was cut off, of the result."""
        if told.pooled is None:
            return None
        sizes = [job.height, job.width, 0, 0, job.height, job.width]
        return told.pooled, mx.array([sizes] * len(told.pooled), dtype=mx.float32)

    def _encoded(self, pixels: Pixels | mx.array, job: Job) -> Generator[None, None, mx.array]:
        """A picture's latents (the mean of the autoencoder's distribution)."""
        with self.parts.use("vae", drop=job.low_memory) as vae:
            given = mx.array(pixels)[None].astype(mx.float32) / 127.5 - 1
            return (yield from encoded(vae, given, tiled=job.vae_tiling))

    def _guides(self, unet: Any, job: Job) -> list[tuple[Guide, ControlNet, mx.array]]:
        """The job's ControlNets, each with its picture."""
        found = []
        for guide in job.controls:
            load = partial(load_control, guide.path, unet, self.traits.latent_scale, self.traits.dtype)
            network = self._net(guide.path, load, keep=not job.low_memory)
            found.append((guide, network, mx.array(guide.pixels)[None].astype(mx.float32) / 255))
        return found

    def _shown(
        self, job: Job, *, guided: bool
    ) -> Generator[None, None, list[tuple[ImagePrompter, float, Shown]]]:
        """What the UNet attends to of the pictures of the job's IP-Adapters."""
        found = []
        context = sum(self.traits.text_widths.values())
        for seen in job.ip_adapters:
            load = partial(load_ip_adapter, seen.path, self.abilities.ip_adapter, context, self.traits.dtype)
            adapter = self._net(seen.path, load, keep=not job.low_memory)
            shown = yield from adapter.shown(seen.pixels, job.n, guided=guided)
            found.append((adapter, seen.strength, shown))
        return found

    def _net(self, path: Path, load: Callable[[], _Net], *, keep: bool) -> _Net:
        """A network that a request brings along: one that stayed, or a new one."""
        network: Any = self._nets.get(path)
        if network is not None:
            self._nets.move_to_end(path)
            found: _Net = network
            return found
        found = load()
        if keep:
            self._keep(path, found)
        return found

    def _keep(self, path: Path, network: ControlNet | ImagePrompter | UNet) -> None:
        """Keep a network for pictures to come, where there is memory for it."""
        while len(self._nets) >= _KEPT_NETS:
            self._kept -= self._nets.popitem(last=False)[1].nbytes
        room = self._room()
        if room is None or network.nbytes <= room:
            self._nets[path] = network
            self._kept += network.nbytes

    def _controlled(
        self,
        guides: list[tuple[Guide, ControlNet, mx.array, _Given]],
        shown: mx.array,
        index: int,
        first: int,
        end: int,
    ) -> list[mx.array] | None:
        """What ControlNets add to the UNet's features in one of the evaluations ``first`` to ``end``."""
        made = [
            [guide.strength * features for features in network(shown, timed[index], prompts, picture)]
            for guide, network, picture, (timed, prompts) in guides
            if guide.speaks(index - first, end - first)
        ]
        return [sum(features[1:], features[0]) for features in zip(*made, strict=True)] if made else None

    def _hole(self, mask: Pixels) -> mx.array:
        """Which latents are made anew, (1, height, width, 1): those whose first pixel is."""
        scale = self.traits.latent_scale
        return mx.array(mask[::scale, ::scale] > 0)[None, ..., None]

    def _beside(self, job: Job, *, guided: bool) -> Generator[None, None, mx.array]:
        """What an inpainting UNet is shown besides: the hole, and latents of the picture with grey in it."""
        assert job.init is not None
        assert job.mask is not None
        around = mx.where(mx.array(job.mask)[..., None] > 0, 127.5, mx.array(job.init).astype(mx.float32))
        hole = self._hole(job.mask).astype(self.traits.dtype)
        latents = yield from self._encoded(around, job)
        seen = mx.concatenate([hole, latents.astype(self.traits.dtype)], axis=-1)
        return mx.repeat(seen, 2 * job.n if guided else job.n, axis=0)


_Given = tuple[mx.array, list[tuple[mx.array, mx.array]]]


@frozen(eq=False)
class _Rows:
    """What all evaluations have in common.

    Args:
        times: of the evaluations, (evaluations,).
        context: the prompts' states, (rows, tokens, width).
        added: SDXL's conditioning, (rows, …) each.
    """

    times: mx.array
    context: mx.array
    added: tuple[mx.array, mx.array] | None
    dtype: mx.Dtype

    def given(self, network: Encoder) -> _Given:
        """What a network makes of the times, (evaluations, rows or 1, width), and of the prompts: once."""
        count, rows = len(self.times), 1 if self.added is None else len(self.context)
        added = None
        if self.added is not None:
            pooled, sizes = (mx.tile(item, (count, 1)) for item in self.added)
            added = pooled, sizes
        timed = network.timed(mx.repeat(self.times, rows), added, self.dtype)
        found = timed.reshape(count, rows, -1), network.told(self.context)
        mx.eval(found)
        return found


def _ahead() -> bool:
    """Whether the next evaluation is put together while one is computed.

    Putting it together takes as long as a GPU takes for a small picture. On a CPU one thread does both.
    """
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def _parts(job: Job, text: str) -> list[list[Piece]]:
    return parse(text) if job.prompt_weights else [[Piece(text)]]


__all__ = ["StableDiffusion", "Traits"]
