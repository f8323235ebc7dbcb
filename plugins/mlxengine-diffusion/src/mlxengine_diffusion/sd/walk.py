"""From noise to latents: a sampler's steps, whichever network says where they lead."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import mlx.core as mx
from attrs import frozen

from ..backends._work import Job, Step


class Noise:
    """The random numbers of pictures: the same for a seed, whatever else runs or is made with it."""

    def __init__(self, seed: int, n: int = 1) -> None:
        self._keys = [mx.random.split(mx.random.key(seed + place)) for place in range(n)]

    def initial(self, shape: tuple[int, ...]) -> mx.array:
        """What the pictures start from: standard normal, float32."""
        return mx.concatenate([mx.random.normal((1, *shape[1:]), key=first) for first, _ in self._keys])

    def fresh(self, index: int, shape: tuple[int, ...]) -> mx.array:
        """What a stochastic sampler adds after an evaluation of the model."""
        keys = [mx.random.split(rest, index + 1)[index] for _, rest in self._keys]
        return mx.concatenate([mx.random.normal((1, *shape[1:]), key=key) for key in keys])


@frozen(kw_only=True, eq=False)
class Walk:
    """The steps of a job.

    Args:
        start: how many of the steps are left out.
        kept: the hole in a picture, (1, height, width, 1), and the latents that stand around it.
        dtype: of what the network is shown.
    """

    job: Job
    noise: Any
    sampler: Any
    start: int
    kept: tuple[mx.array, mx.array] | None
    dtype: mx.Dtype

    def steps(
        self,
        predicted: Callable[[mx.array, int], mx.array],
        latents: mx.array,
        evaluations: range,
    ) -> Generator[Step, None, mx.array]:
        """The latents after these evaluations of the sampler's; a turn for each, to be computed.

        Args:
            predicted: the network's output for latents and the number of the evaluation; with guidance the
                latents come twice, first for what it says without the prompt.
        """
        job, sampler, shape = self.job, self.sampler, latents.shape
        last = len(sampler.timesteps)
        done = max(0, sampler.finished(evaluations.start - 1) - self.start) if evaluations.start else 0
        for index in evaluations:
            shown = sampler.scale_input(latents, index).astype(self.dtype)
            guided = job.guidance > 1
            if guided:
                shown = mx.concatenate([shown, shown])
            output = predicted(shown, index).astype(mx.float32)
            if guided:
                without, with_prompt = mx.split(output, 2)
                output = without + job.guidance * (with_prompt - without)
                output = _rescaled(output, with_prompt, job.guidance_rescale)
            extra = self.noise.fresh(index, shape) if sampler.stochastic else None
            latents, believed = sampler.step(output, latents, index, extra)
            if self.kept is not None:
                hole, around = self.kept
                if index + 1 < last:
                    around = sampler.add_noise(around, self.noise.initial(shape), index + 1)
                latents = mx.where(hole, latents, around)
            done = max(done, sampler.finished(index) - self.start)
            yield Step(done=done, total=job.steps - self.start, latents=latents, clean=believed)
        return latents


def _rescaled(guided: mx.array, with_prompt: mx.array, share: float) -> mx.array:
    """Guidance at the contrast of the prediction without it, as far as ``share`` says.

    Source: Lin et al. 2023 (arXiv:2305.08891), section 3.4.
    """
    if not share:
        return guided
    axes = tuple(range(1, guided.ndim))
    contrast = with_prompt.std(axis=axes, keepdims=True) / guided.std(axis=axes, keepdims=True)
    return guided * (share * contrast + (1 - share))


__all__ = ["Noise", "Walk"]
