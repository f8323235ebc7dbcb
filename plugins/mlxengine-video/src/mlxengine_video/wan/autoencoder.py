"""Wan's causal autoencoder, a place in time at once: the first stands for one frame, the others for four.

The library decodes a whole video in one go. That takes memory for all frames, and gives other ones: for 2.1
it doubles the first frame as well and lets the others see it, for 2.2 it cannot make a single one. Here its
layers are walked place by place, as the original does, and what each convolution in time saw last is handed
to the next place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_KEPT = 2  # frames that a convolution over three sees beside its own
_PATCH = 2
_CHUNK = 4  # frames of a place in time


class _Past(dict[int, Any]):
    """What the convolutions saw last, by their order; ``None`` before the first time."""

    def __missing__(self, key: int) -> None:
        return None


class Autoencoder:
    """Decodes latents to frames, and encodes frames to latents where the encoder was loaded.

    Args:
        networks: as `loading.vae_networks` makes them.
        config: ``vae/config.json``.
    """

    def __init__(self, networks: Any, config: Mapping[str, Any]) -> None:
        self.networks = networks
        self._nested = bool(config["is_residual"])
        # The axis of time: 2.1's layers have channels first, 2.2's last.
        self._axis = 1 if self._nested else 2
        self._mean = mx.array(config["latents_mean"], dtype=mx.float32)
        self._std = mx.array(config["latents_std"], dtype=mx.float32)
        for _, layer in networks.named_modules():
            if getattr(layer, "mode", None) == "upsample3d":
                # Its own doubling of time knows no pieces: `_doubled` does it, the rest stays.
                layer.mode = "upsample2d"

    def decode(self, latents: mx.array) -> Iterator[mx.array]:
        """Frames of latents (channels, time, height, width): 1, then 4 at a time, (…, height, width, 3).

        They are about -1 to 1, cut there, and evaluated.
        """
        past = _Past()
        for index in range(latents.shape[1]):
            place = latents[:, index : index + 1].transpose(1, 2, 3, 0) * self._std + self._mean
            frames = self._place(self._in(place), past, first=index == 0)
            frames = self._out(frames)
            if self._nested:
                frames = _spread(frames)
            frames = mx.clip(frames, -1, 1)
            mx.eval(frames, *past.values())
            yield frames

    def encode(self, frames: mx.array) -> mx.array:
        """Mean latents (channels, time, height, width) of 1 + 4 n frames (…, height, width, 3), -1 to 1."""
        past, found = _Past(), []
        if self._nested:
            frames = _gathered(frames)
        starts = [0, *range(1, frames.shape[0], _CHUNK)]
        for start in starts:
            piece = self._in(frames[start : start + _CHUNK] if start else frames[:1])
            found.append(self.networks.encoder(piece, feat_cache=past, feat_idx=[0]))
            mx.eval(found[-1], *past.values())
        moments = self._out(self.networks.conv1(mx.concatenate(found, axis=self._axis)))
        mean = (moments[..., : moments.shape[-1] // 2] - self._mean) / self._std
        return mean.transpose(3, 0, 1, 2)

    def _in(self, frames: mx.array) -> mx.array:
        """(time, height, width, channels) as the layers have it."""
        return frames[None] if self._nested else frames.transpose(3, 0, 1, 2)[None]

    def _out(self, found: mx.array) -> mx.array:
        return found[0] if self._nested else found[0].transpose(1, 2, 3, 0)

    def _place(self, x: mx.array, past: _Past, *, first: bool) -> mx.array:
        decoder, at = self.networks.decoder, [0]
        x = self._seen(decoder.conv1, self.networks.conv2(x), past, at)
        for layer in (*decoder.middle, *decoder.upsamples):
            x = self._walked(layer, x, past, at, first=first)
        if self._nested:
            found: mx.array = decoder.head(x, past, at)
            return found
        return self._seen(decoder.head[2], nn.silu(decoder.head[0](x)), past, at)

    def _walked(self, layer: Any, x: mx.array, past: _Past, at: list[int], *, first: bool) -> mx.array:
        found: mx.array
        if "residual" in layer:
            found = layer(x, past, at)
        elif "upsamples" in layer:
            found = x
            for inner in layer.upsamples:
                found = self._walked(inner, found, past, at, first=first)
            if layer.avg_shortcut is not None:
                found = found + layer.avg_shortcut(x, first)
        elif "time_conv" in layer:
            found = layer(self._doubled(layer.time_conv, x, past, at, first=first))
        else:
            found = layer(x)
        return found

    def _doubled(self, conv: Any, x: mx.array, past: _Past, at: list[int], *, first: bool) -> mx.array:
        """Two frames for each, but one for the first of all, which the convolution never sees."""
        if first:
            at[0] += 1
            return x
        y = self._seen(conv, x, past, at)
        if self._nested:
            batch, time, height, width, double = y.shape
            y = y.reshape(batch, time, height, width, 2, double // 2).transpose(0, 1, 4, 2, 3, 5)
            return y.reshape(batch, 2 * time, height, width, double // 2)
        batch, double, time, height, width = y.shape
        y = y.reshape(batch, 2, double // 2, time, height, width).transpose(0, 2, 3, 1, 4, 5)
        return y.reshape(batch, double // 2, 2 * time, height, width)

    def _seen(self, conv: Any, x: mx.array, past: _Past, at: list[int]) -> mx.array:
        """A convolution in time, as the library's blocks call theirs."""
        number, axis = at[0], self._axis
        before = past[number]
        joined = x if before is None else mx.concatenate([before, x], axis=axis)
        kept = joined[:, -_KEPT:] if self._nested else joined[:, :, -_KEPT:]
        found: mx.array = conv(x, cache_x=before)
        past[number] = kept
        at[0] += 1
        return found


def _spread(x: mx.array) -> mx.array:
    """(time, h, w, 4 c), each place of two by two pixels, as (time, 2 h, 2 w, c)."""
    time, height, width, channels = x.shape
    apart = x.reshape(time, height, width, channels // _PATCH**2, _PATCH, _PATCH).transpose(0, 1, 5, 2, 4, 3)
    return apart.reshape(time, height * _PATCH, width * _PATCH, channels // _PATCH**2)


def _gathered(x: mx.array) -> mx.array:
    """Frames as places of two by two pixels: `_spread` the other way."""
    time, height, width, channels = x.shape
    apart = x.reshape(time, height // _PATCH, _PATCH, width // _PATCH, _PATCH, channels)
    return apart.transpose(0, 1, 3, 5, 4, 2).reshape(time, height // _PATCH, width // _PATCH, -1)


__all__ = ["Autoencoder"]
