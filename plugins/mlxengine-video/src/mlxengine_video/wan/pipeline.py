"""Wan from a prompt or a first picture to frames, on the networks of mlx-video-with-audio."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlxengine.errors import InvalidParameterError
from mlxengine.toolkit.launching import on_gpu
from mlxengine.toolkit.loading import building

from . import loading
from .autoencoder import Autoencoder
from .parts import Parts
from .shape import Documents, WanShape, read_documents
from .text import Reader, Told

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

DTYPES = ("float32", "bfloat16", "float16")


class Wan:
    """A loaded Wan. It is made by `load`; every method runs on the thread that owns the device.

    Args:
        documents: its configurations.
        reader: its tokenizer.
        parts: its networks, by their folders.
    """

    def __init__(self, documents: Documents, reader: Reader, parts: Parts) -> None:
        self.shape: WanShape = documents.shape
        self._documents = documents
        self._reader = reader
        self._parts = parts

    @classmethod
    def load(cls, folder: Path, *, dtype: str | None = None, keep: bool = True) -> Wan:
        """Build a model from a folder in diffusers' layout. Weights are not read before they are evaluated.

        Args:
            dtype: of the transformers and the text encoder, one of `DTYPES`; ``None`` is ``"float32"`` on a
                CPU, where half precision is slow, else ``"bfloat16"``. The autoencoder is float32.
            keep: whether all networks stay in memory. Without, each is read when it is needed and freed
                afterwards: one is in memory at a time.

        Raises:
            UnsupportedArchitectureError, RemoteCodeRefusedError: as `shape.read_shape`.
            IncompatibleWeightsError, CorruptFileError: tensors are missing, left over, misshapen or damaged.
            BackendUnavailableError: the library is not installed.
            InvalidParameterError: there is no such ``dtype``.
        """
        if dtype not in (None, *DTYPES):
            raise InvalidParameterError(
                f"dtype={dtype!r} is not known.", hint=f"Use one of {', '.join(DTYPES)}."
            )
        if dtype is None:
            dtype = "bfloat16" if on_gpu() else "float32"
        number: mx.Dtype = getattr(mx, dtype)
        documents = read_documents(folder)
        with building(folder.name):
            builders = {"text_encoder": partial(loading.text_encoder, folder, documents.text_encoder, number)}
            for part in ("transformer", "transformer_2"):
                if part in documents.shape.parts:
                    config = getattr(documents, part)
                    builders[part] = partial(loading.transformer, folder, part, config, number)
            builders["vae"] = partial(loading.vae_networks, folder, documents)
            return cls(documents, Reader(folder / "tokenizer"), Parts(builders, keep=keep))

    def warm(self) -> Iterator[None]:
        """Read the weights of networks that stay in memory, some at a time."""
        yield from self._parts.warm()

    def prompts(self, prompt: str, negative: str | None) -> Told:
        """Encode a prompt and what to keep away from (``None``: nothing); evaluated."""
        with self._parts.use("text_encoder") as encoder:
            return self._reader.read(encoder, prompt, negative)

    def denoise(
        self,
        told: Told,
        *,
        size: tuple[int, int],
        frames: int,
        steps: int,
        guidance: float,
        seed: int,
        picture: np.ndarray[Any, Any] | None = None,
        noise: mx.array | None = None,
    ) -> Iterator[mx.array]:
        """Make latents (channels, time, height, width), float32: those after each step, evaluated.

        Arguments are looked at before the first step is asked for.

        Args:
            size: (width, height) in pixels.
            frames: of the video, 1 + 4 n.
            guidance: how far to go from the negative prompt; up to 1 it is not looked at.
            seed: of the noise, which is ``mx.random.normal(shape, key=mx.random.key(seed))``.
            picture: the first frame, (height, width, 3) uint8, of the video's size.
            noise: what to start from instead.

        Raises:
            InvalidParameterError: there is no such video, or the picture is missing, not taken or of another
                size.
        """
        shape = self.shape.latents(size, frames)
        if steps < 1:
            raise InvalidParameterError(f"steps={steps} is no number of steps.", hint="Use 1 or more.")
        self._check_picture(picture, size)
        if noise is None:
            noise = mx.random.normal(shape, key=mx.random.key(seed))
        return self._denoised(told, noise, frames, steps, guidance, picture)

    def _check_picture(self, picture: np.ndarray[Any, Any] | None, size: tuple[int, int]) -> None:
        if picture is None:
            if self.shape.needs_picture:
                raise InvalidParameterError("This model makes videos of a picture.", hint="Give it one.")
            return
        if not self.shape.takes_picture:
            raise InvalidParameterError("This model takes no picture.", hint="Leave it out.")
        width, height = size
        if picture.shape != (height, width, 3) or picture.dtype != np.uint8:
            raise InvalidParameterError(
                f"The picture is {picture.shape} of {picture.dtype}, not {(height, width, 3)} of uint8.",
                hint="Scale and cut it to the size of the video.",
            )

    def _denoised(
        self,
        told: Told,
        latents: mx.array,
        frames: int,
        steps: int,
        guidance: float,
        picture: np.ndarray[Any, Any] | None,
    ) -> Iterator[mx.array]:
        from mlx_video.models.wan.rope import rope_precompute_cos_sin

        from .sampler import Solver

        solver = Solver(self._documents.scheduler, steps)
        first, beside = self._shown(picture, frames)
        _, time, height, width = latents.shape
        grid = (time, height // self.shape.patch[1], width // self.shape.patch[2])
        places = grid[0] * grid[1] * grid[2]
        prompts = [told.prompt, told.negative][: 2 if guidance > 1 else 1]
        for part, times in groupby(solver.told, self._transformer):
            with self._parts.use(part) as network:
                texts = [network.embed_text([states]) for states in prompts]
                # In float32, as in diffusers; the library's own way rounds them to the weights' precision.
                turns = rope_precompute_cos_sin([grid], network.freqs, mx.float32)
                for level in times:
                    seen, noisy = latents, mx.array([level], dtype=mx.float32)
                    if first is not None:
                        # The first frame is there already, without noise; each place is told how noisy it is.
                        seen = mx.concatenate([first, latents[:, 1:]], axis=1)
                        noisy = (mx.arange(places) >= grid[1] * grid[2])[None] * noisy
                    found = []
                    # One after the other: in one graph the features of both would live at once.
                    for text in texts:
                        output = network([seen], noisy, text, places, y=beside, rope_cos_sin=turns)[0]
                        mx.eval(output)
                        found.append(output)
                    velocity = found[0] if len(found) == 1 else found[1] + guidance * (found[0] - found[1])
                    latents = solver.next(velocity, latents)
                    yield latents if first is None else mx.concatenate([first, latents[:, 1:]], axis=1)

    def _transformer(self, time: int) -> str:
        boundary = self.shape.boundary
        noisy = boundary is None or time >= boundary * self._documents.scheduler["num_train_timesteps"]
        return "transformer" if noisy else "transformer_2"

    def _shown(
        self, picture: np.ndarray[Any, Any] | None, frames: int
    ) -> tuple[mx.array | None, list[mx.array] | None]:
        """A picture as the latents of the first frame, or as channels beside all of them."""
        if picture is None:
            return None, None
        pixels = mx.array(picture).astype(mx.float32)[None] / 127.5 - 1
        with self._parts.use("vae") as networks:
            encode = Autoencoder(networks, self._documents.vae).encode
            if self._documents.expands:
                first = encode(pixels)
                mx.eval(first)
                return first, None
            # A video of the picture and grey frames, and before it which frames are known: four channels.
            grey = mx.zeros((frames - 1, *pixels.shape[1:]))
            video = encode(mx.concatenate([pixels, grey]))
            known = mx.zeros((4, *video.shape[1:]))
            known[:, 0] = 1
            beside = mx.concatenate([known, video])
            mx.eval(beside)
            return None, [beside]

    def decode(self, latents: mx.array) -> Iterator[Pixels]:
        """The frames of latents (channels, time, height, width), each (height, width, 3) uint8, in order.

        A place in time is decoded at once, so that memory does not grow with the length of the video.
        """
        with self._parts.use("vae") as networks:
            for frames in Autoencoder(networks, self._documents.vae).decode(latents):
                levels = mx.round(mx.clip(frames / 2 + 0.5, 0, 1) * 255).astype(mx.uint8)
                yield from np.array(levels)


__all__ = ["DTYPES", "Pixels", "Told", "Wan"]
