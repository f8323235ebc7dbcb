"""Sound as the caller has it, made into what a processor takes, or refused; and the limits of all media.

Pictures are `mlxengine.toolkit.pictures`'.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from attrs import field, frozen
from mlxengine.errors import UnsupportedInputError
from mlxengine.toolkit.pictures import WEB, Picture, PictureLimits, encoded, picture, refuse

_SLOWEST, _FASTEST = 1_000, 768_000  # samples a second
_PIECE = 1 << 16  # samples


@frozen(kw_only=True)
class MediaLimits(PictureLimits):
    """What is accepted: what `PictureLimits` has, for sound too, and more.

    Args:
        count: most pictures and frames in one request.
        samples: most samples of one sound, decoded.
        seconds: longest sound.
    """

    count: int = 256
    samples: int = 100_000_000
    seconds: float = 7200.0
    larger: str = field(default="Scale it down, or raise vlm.max_pixels.", repr=False)
    fetching: str = field(
        default="Turn on the feature vlm.urls, or fetch it yourself and pass the bytes.", repr=False
    )


@frozen(kw_only=True)
class Sound:
    """Mono samples, float32 in [-1, 1], at ``rate`` Hz, and the hash of their content."""

    samples: Any = field(repr=False)
    rate: int
    digest: str


def sound(source: Any, rate: int | None, limits: MediaLimits = MediaLimits()) -> Sound:
    """Decode sound: a path, encoded bytes (wav, flac, mp3, ogg) or a float array at ``rate`` Hz.

    Raises:
        UnsupportedInputError: it cannot be decoded, or an array comes without its rate.
    """
    if isinstance(source, np.ndarray):
        if rate is None:
            refuse(
                "An array of samples needs its sampling rate.",
                "Give AudioPart(samples, sampling_rate=…).",
            )
        samples = np.asarray(source, dtype=np.float32)
        samples = samples.mean(axis=tuple(range(1, samples.ndim))) if samples.ndim > 1 else samples
    else:
        samples, rate = _decode_sound(encoded(source, limits, "sound"), limits)
    if not isinstance(rate, int) or not _SLOWEST <= rate <= _FASTEST:
        refuse(f"A sampling rate of {rate!r} Hz is no sound's.", f"Give {_SLOWEST} to {_FASTEST} Hz.")
    if samples.size > limits.samples or samples.size > limits.seconds * rate:
        raise _too_long(limits)
    if samples.size == 0 or not np.isfinite(samples).all():
        refuse("The sound is empty or holds values that are not finite.", "Give at least one sample.")
    digest = hashlib.sha256(repr(rate).encode() + np.ascontiguousarray(samples).tobytes()).hexdigest()
    return Sound(samples=samples, rate=int(rate or 0), digest=digest)


def _too_long(limits: MediaLimits) -> UnsupportedInputError:
    return UnsupportedInputError(
        f"The sound has more than {limits.samples} samples or {limits.seconds:g} s.", hint="Cut it first."
    )


def _decode_sound(data: bytes, limits: MediaLimits) -> tuple[np.ndarray[Any, Any], int]:
    try:
        import miniaudio  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:  # mlx-vlm brings it
        raise UnsupportedInputError(
            f"Encoded sound cannot be decoded here: miniaudio cannot be imported: {error}.",
            hint="pip install miniaudio, or pass an array of samples.",
        ) from error
    pieces, count = [], 0
    try:
        rate = _sound_rate(miniaudio, data)
        # In pieces: a few bytes of silence can stand for hours of it.
        for piece in miniaudio.stream_memory(
            data,
            output_format=miniaudio.SampleFormat.FLOAT32,
            nchannels=1,
            sample_rate=rate,
            frames_to_read=_PIECE,
        ):
            pieces.append(np.asarray(piece, dtype=np.float32))
            count += len(piece)
            if count > min(limits.samples, limits.seconds * rate):
                raise _too_long(limits)
    except UnsupportedInputError:
        raise
    except Exception as error:  # a decoder raises whatever it likes on damaged data
        raise UnsupportedInputError(
            f"The sound cannot be decoded: {error}.", hint="Give wav, flac, mp3 or ogg."
        ) from error
    return np.concatenate([np.zeros(0, np.float32), *pieces]), rate


def _sound_rate(miniaudio: Any, data: bytes) -> int:
    """The rate that the sound was recorded at; decoding would change it otherwise."""
    for name in ("wav", "flac", "mp3", "vorbis"):
        try:
            found = int(getattr(miniaudio, f"{name}_get_info")(data).sample_rate)
        except miniaudio.MiniaudioError:
            continue
        if _SLOWEST <= found <= _FASTEST:
            return found
    raise miniaudio.DecodeError("the format is not known")


__all__ = ["WEB", "MediaLimits", "Picture", "Sound", "picture", "sound"]
