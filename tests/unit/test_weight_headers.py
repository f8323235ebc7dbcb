"""Headers of weight files are read exactly, and what they cannot truly say is a typed error."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from mlxengine._hub.gguf import gguf_directory
from mlxengine._hub.headers import safetensors_tensors
from mlxengine.errors import CorruptFileError

from tests.hub.tiny import gguf, safetensors


def _reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda start, stop: data[start:stop]


def _tensors(data: bytes) -> list[tuple[str, int]]:
    return [(t.name, t.nbytes) for t in safetensors_tensors(_reader(data), len(data), "f")]


def test_a_safetensors_header_gives_names_shapes_and_bytes() -> None:
    data = safetensors({"a": 3, "b": 0, "c": 5}, __metadata__={"format": "mlx"})
    found = safetensors_tensors(_reader(data), len(data), "f")
    assert [(t.name, t.dtype, t.shape, t.nbytes, t.file) for t in found] == [
        ("a", "U8", (3,), 3, "f"),
        ("b", "U8", (0,), 0, "f"),
        ("c", "U8", (5,), 5, "f"),
    ]


def _entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "at least 8"),
        (b"\xff" * 8 + b"{}", "header says it is"),
        (struct.pack("<Q", 1 << 40) + b"{}", "header says it is"),
        (struct.pack("<Q", 2) + b"[]", "not an object"),
        (struct.pack("<Q", 3) + b"{,}", "Expecting"),
        (struct.pack("<Q", 3) + b"{}", "header says it is"),
        (safetensors({"a": 4}) + b"x", "take 4 bytes"),
        (safetensors({"a": 4})[:-1], "take 4 bytes"),
        (safetensors({"a": 4}, b=_entry()), "overlap"),
        (safetensors({"a": 4}, b=_entry(offsets=(6, 10))), "hole"),
        (safetensors({"a": 4}, a=_entry(shape=(5,))), "cannot take"),
        (safetensors({"a": 4}, a=_entry(dtype="F32")), "cannot take"),
        (safetensors({"a": 4}, a=_entry(offsets=(4, 0))), "cannot take"),
        (safetensors({"a": 4}, a=_entry(shape=(-4,))), "not valid"),
        (safetensors({"a": 4}, a=_entry(shape=(True,))), "not valid"),
        (safetensors({"a": 4}, a=_entry(shape=(1,) * 1000)), "not valid"),
        (safetensors({"a": 4}, a="nothing"), "not described"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(CorruptFileError, match="f is not a valid") as caught:
        _tensors(data)
    assert says in caught.value.message


def test_random_damage_to_headers_never_ends_in_a_foreign_error() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for original, read in ((safetensors({"a": 3, "b": 9}), safetensors_tensors), (gguf(), gguf_directory)):
        for _ in range(1500):
            data = bytearray(original)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(min(len(data), 300))] = chance.randrange(256)
            data = data[: chance.choice((len(data), chance.randrange(len(data))))]
            try:
                read(_reader(bytes(data)), len(data), "f")
            except CorruptFileError:
                continue


def test_a_gguf_directory_gives_scalars_short_arrays_and_tensors_with_numpy_shapes() -> None:
    data = gguf()
    metadata, (tensor,) = gguf_directory(_reader(data), len(data), "f.gguf")
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 3
    assert metadata["llama.sections"] == (1, 2, 3)
    assert "tokenizer.ggml.tokens" not in metadata
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) == ("w", "F32", (2, 32), 256)


def test_a_gguf_of_quantized_blocks_is_as_large_as_its_blocks() -> None:
    data = gguf(64, kind=2, room=36)
    _, (tensor,) = gguf_directory(_reader(data), len(data), "f")
    assert (tensor.dtype, tensor.nbytes) == ("Q4_0", 36)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GGML" + gguf()[4:], "begins with"),
        (gguf()[:4] + struct.pack("<I", 99) + gguf()[8:], "begins with"),
        (gguf()[:8] + struct.pack("<Q", 1 << 50) + gguf()[16:], "claims"),
        (gguf()[:200], "array of 1000"),
        (gguf()[:40], "does not end"),
        (gguf(offset=64), "after the file"),
        (gguf(room=100), "after the file"),
        (gguf(62, kind=2), "not made of"),
        (gguf(second=128, room=512), "overlap"),
    ],
)
def test_a_gguf_directory_that_lies_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(CorruptFileError, match="f is not a valid") as caught:
        gguf_directory(_reader(data), len(data), "f")
    assert says in caught.value.message
