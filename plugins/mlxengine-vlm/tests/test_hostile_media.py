"""Damaged, odd and swollen pictures and sounds: decoded or refused, whatever their bytes say."""

from __future__ import annotations

import io
import random
import struct
import time
import wave
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from mlxengine.errors import UnsupportedInputError
from mlxengine_vlm._media import MediaLimits, picture, sound
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO")


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (32, 24), **options: Any) -> bytes:
    rows = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    kept = io.BytesIO()
    Image.fromarray(rows).convert(mode).save(kept, form, **options)
    return kept.getvalue()


def damaged(data: bytes, seed: int) -> bytes:
    """Some bytes changed, in the header as often as elsewhere, or the end cut off."""
    chance = random.Random(seed)
    made = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 64))):
        made[chance.randrange(min(len(made), chance.choice((64, len(made)))))] = chance.choice(
            (0, 255, chance.randrange(256))
        )
    return bytes(made[: chance.choice((len(made), len(made), chance.randrange(len(made))))])


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_picture_is_decoded_or_refused(form: str, record_property: Any) -> None:
    sound_one = encoded(form)
    found: Counter[str] = Counter()
    for seed in range(150):
        try:
            picture(damaged(sound_one, seed))
            found["decoded"] += 1
        except UnsupportedInputError:
            found["refused"] += 1
    record_property(form, dict(found))
    assert found.total() == 150


def test_unusual_pictures_become_rgb() -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    kept = io.BytesIO()
    frames[0].save(kept, "GIF", save_all=True, append_images=frames[1:] * 300)
    made = [
        encoded("JPEG", "CMYK"),
        encoded("JPEG", "L"),
        encoded("PNG", "RGBA"),
        encoded("PNG", "P"),
        encoded("PNG", "1"),
        encoded("TIFF", "CMYK"),
        encoded("WEBP", "RGBA"),
        kept.getvalue(),
    ]
    for data in made:
        assert picture(data).image.mode == "RGB"


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _icon(png: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png


def test_a_picture_that_swells_is_refused_by_its_pixels() -> None:
    limits = MediaLimits(pixels=1_000_000)
    black = zlib.compress(b"\0" * (3 * 4000 + 1) * 4000, 9)
    for data in (_png(4000, 4000, black), _icon(_png(4000, 4000, black)), _png(2**31 - 1, 2**31 - 1, b"")):
        began = time.perf_counter()
        with pytest.raises(UnsupportedInputError, match=r"pixels|damaged"):
            picture(data, limits)
        assert time.perf_counter() - began < 5
    for size in ((1, 100_000), (100_000, 1)):
        with pytest.raises(UnsupportedInputError, match="too narrow"):
            picture(_png(*size, b""))


def _wave(rate: int = 16_000, samples: int = 4000, channels: int = 1) -> bytes:
    kept = io.BytesIO()
    with wave.open(kept, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        noise = np.random.default_rng(0).integers(-3000, 3000, samples * channels, dtype=np.int16)
        file.writeframes(noise.tobytes())
    return kept.getvalue()


def test_a_damaged_sound_is_decoded_or_refused(record_property: Any) -> None:
    whole = _wave()
    found: Counter[str] = Counter()
    for seed in range(300):
        try:
            sound(damaged(whole, seed), None)
            found["decoded"] += 1
        except UnsupportedInputError:
            found["refused"] += 1
    record_property("wav", dict(found))
    assert found.total() == 300


def test_a_sound_without_measure_is_refused() -> None:
    with pytest.raises(UnsupportedInputError, match="samples or"):
        sound(_wave(samples=50_000), None, MediaLimits(samples=20_000))
    with pytest.raises(UnsupportedInputError, match="samples or"):
        sound(_wave(samples=50_000), None, MediaLimits(seconds=1))
    with pytest.raises(UnsupportedInputError, match="samples or"):
        sound(np.zeros(50_000, np.float32), 16_000, MediaLimits(samples=20_000))
    # A rate of one sample a second would be made 16,000 times as long.
    for rate in (1, 0, -5, 10**9, True, 16_000.5):
        with pytest.raises(UnsupportedInputError, match=r"no sound's|decoded"):
            sound(np.zeros(100, np.float32), rate)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedInputError, match=r"no sound's|decoded"):
        sound(_wave(rate=1), None)


def test_two_channels_become_one() -> None:
    assert sound(_wave(channels=2), None).samples.shape == (4000,)
