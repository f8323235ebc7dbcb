"""Wan from a prompt or a first picture to frames, on the networks of mlx-video-with-audio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlxengine.errors import InvalidParameterError
from mlxengine.toolkit.loading import building, warm

from . import loading
from .autoencoder import Autoencoder
from .shape import Documents, WanShape, read_documents
from .text import Reader, Told

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

DTYPES = ("float32", "bfloat16", "float16")


class Wan:
    """A loaded Wan. It is made by `load`; every method runs on the thread that owns the device.

    Args:
        documents: its configurations.
        transformers: one, or the one for noisy latents and the one for the others.
    """

    def __init__(
        self, documents: Documents, reader: Reader, transformers: list[Any], autoencoder: Autoencoder
    ) -> None:
        self.shape: WanShape = documents.shape
        self._documents = documents
        self._reader = reader
        self._transformers = transformers
        self._autoencoder = autoencoder

    @classmethod
    def load(cls, folder: Path, *, dtype: str | None = None) -> Wan:
        """Build a model from a folder in diffusers' layout. Weights are not read before they are evaluated.

        Args:
            dtype: of the transformers and the text encoder, one of `DTYPES`; ``None`` is ``"float32"`` on a CPU,
                where half precision is slow, else ``"bfloat16"``. The autoencoder is float32.

        Raises:
            UnsupportedArchitectureError, RemoteCodeRefusedError: as `shape.read_shape`.
            IncompatibleWeightsError, CorruptFileError: tensors are missing, left over, misshapen or damaged.
            BackendUnavailableError: the library is not installed.
            InvalidParameterError: there is no such ``dtype``.
        """
        if dtype not in (None, *DTYPES):
            raise InvalidParameterError(f"dtype={dtype!r} is not known.", hint=f"Use one of {', '.join(DTYPES)}.")
        if dtype is None:
            dtype = "float32" if mx.default_device().type == mx.DeviceType.cpu else "bfloat16"
        number: mx.Dtype = getattr(mx, dtype)
        documents = read_documents(folder)
        with building(folder.name):
            configs = {"transformer": documents.transformer, "transformer_2": documents.transformer_2}
            return cls(
                documents,
                Reader(folder / "tokenizer", loading.text_encoder(folder, documents.text_encoder, number)),
                [
                    loading.transformer(folder, part, config, number)
                    for part, config in configs.items()
                    if config is not None
                ],
                Autoencoder(loading.vae_networks(folder, documents), documents.vae),
            )

    def warm(self) -> Iterator[None]:
        """Read the weights, some at a time."""
        for network in (self._reader.encoder, *self._transformers, self._autoencoder.networks):
            yield from warm(network)

    def prompts(self, prompt: str, negative: str | None) -> Told:
        """Encode a prompt and what to keep away from (``None``: nothing); evaluated."""
        return self._reader.read(prompt, negative)

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
            InvalidParameterError: there is no such video, or the picture is missing, not taken or of another size.
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
        # In float32: the library's own would have the weights' precision, and far positions lose theirs.
        turns = rope_precompute_cos_sin([grid], self._transformers[0].freqs, mx.float32)
        prompts = [told.prompt, told.negative][: 2 if guidance > 1 else 1]
        texts: tuple[Any, list[mx.array]] | None = None
        for time_told in solver.told:
            network = self._network(time_told)
            if texts is None or texts[0] is not network:
                texts = (network, [network.embed_text([states]) for states in prompts])
            seen, times = latents, mx.array([time_told], dtype=mx.float32)
            if first is not None:
                # The first frame is there already, and so without noise; each place is told how noisy it is.
                seen = mx.concatenate([first, latents[:, 1:]], axis=1)
                noisy = mx.arange(places) >= grid[1] * grid[2]
                times = (noisy * times)[None]
            found = []
            for text in texts[1]:  # one after the other: in one graph the features of both would live at once
                output = network([seen], times, text, places, y=beside, rope_cos_sin=turns)[0]
                mx.eval(output)
                found.append(output)
            velocity = found[0] if len(found) == 1 else found[1] + guidance * (found[0] - found[1])
            latents = solver.next(velocity, latents)
            yield latents if first is None else mx.concatenate([first, latents[:, 1:]], axis=1)

    def _network(self, time: int) -> Any:
        boundary = self.shape.boundary
        noisy = boundary is None or time >= boundary * self._documents.scheduler["num_train_timesteps"]
        return self._transformers[0 if noisy else 1]

    def _shown(
        self, picture: np.ndarray[Any, Any] | None, frames: int
    ) -> tuple[mx.array | None, list[mx.array] | None]:
        """A picture as the latents of the first frame, or as channels beside all of them."""
        if picture is None:
            return None, None
        pixels = mx.array(picture).astype(mx.float32)[None] / 127.5 - 1
        if self._documents.expands:
            first = self._autoencoder.encode(pixels)
            mx.eval(first)
            return first, None
        # A video of the picture and grey frames, and before it which of its frames are known: four channels.
        grey = mx.zeros((frames - 1, *pixels.shape[1:]))
        video = self._autoencoder.encode(mx.concatenate([pixels, grey]))
        known = mx.zeros((4, *video.shape[1:]))
        known[:, 0] = 1
        beside = mx.concatenate([known, video])
        mx.eval(beside)
        return None, [beside]

    def decode(self, latents: mx.array) -> Iterator[Pixels]:
        """The frames of latents (channels, time, height, width), each (height, width, 3) uint8, in order.

        A place in time is decoded at once, so that memory does not grow with the length of the video.
        """
        for frames in self._autoencoder.decode(latents):
            levels = mx.round(mx.clip(frames / 2 + 0.5, 0, 1) * 255).astype(mx.uint8)
            yield from np.array(levels)


__all__ = ["DTYPES", "Pixels", "Told", "Wan"]
