"""Repositories that mean harm, or are badly broken."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping

from .content import safetensors

WEIGHTS = safetensors(b"\x01" * 4096)
CONFIG = b'{"model_type": "llama"}'


def _header(length: int, entries: object, payload: bytes = b"\0" * 64) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length < 0 else length) + text + payload


def _tensor(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


class _Bomb:
    """Unpickling it would write a file; it stands for any code."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return exec, ("open('pickle-was-loaded', 'w').close()",)


NAMES: Mapping[str, str] = {
    "a parent folder": "../../../../escaped.json",
    "a parent folder inside": "weights/../../../escaped.json",
    "an absolute path": "/tmp/escaped.json",
    "a backslash": "..\\..\\escaped.json",
    "a Windows drive": "C:\\escaped.json",
    "a Windows drive with a slash": "C:/escaped.json",
    "a device": "NUL",
    "a device with a suffix": "con.json",
    "a device in a folder": "folder/COM1.safetensors",
    "300 bytes": f"{'n' * 300}.json",
    "300 bytes in 100 letters": f"{'試' * 100}.json",
    "5000 bytes in folders": "/".join(["folder"] * 700) + ".json",
    "an empty part": "folder//file.json",
    "a dot": "./file.json",
    "a null byte": "file\0.json",
    "a line break": "file\nname.json",
    "a right-to-left override": "weights.\u202enosj.bin",
    "a right-to-left isolate": "a\u2067b.json",
    "a zero-width space": "config\u200b.json",
    "a zero-width joiner": "config\u200d.json",
    "a byte order mark": "\ufeffconfig.json",
    "a soft hyphen": "con\xadfig.json",
    "a sequence for the terminal": "a\x9b2Jb.json",
    "a sequence for the terminal with ESC": "a\x1b[2Jb.json",
    "a next line": "a\x85b.json",
    "a line separator": "a\u2028b.json",
    "a filler that cannot be seen": "config\u3164.json",
    "a tag that cannot be seen": "config\U000e0041.json",
    "a trailing dot": "file.json.",
    "a trailing space": "file.json ",
}

CONTENT: Mapping[str, dict[str, bytes]] = {
    "a configuration of 10 MB": {"config.json": b'{"a": "' + b"x" * 10_000_000 + b'"}'},
    "JSON nested 100,000 deep": {"config.json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000},
    "arrays nested 100,000 deep": {"config.json": b"[" * 100_000 + b"]" * 100_000},
    "JSON that is none": {"config.json": b"<!doctype html><title>Sign in</title>"},
    "JSON in no encoding": {"config.json": b"\xff\xfe\x00\x01"},
    "a Git LFS pointer for a configuration": {"config.json": b"version https://git-lfs.github.com/spec/v1\n"},
    "a header longer than the file": {"model.safetensors": _header(1 << 40, {})},
    "a header of 2^63 bytes": {"model.safetensors": _header(1 << 63, {})},
    "a header that is cut": {"model.safetensors": struct.pack("<Q", 5000) + b'{"a": '},
    "a file of three bytes": {"model.safetensors": b"abc"},
    "an empty file": {"model.safetensors": b""},
    "tensors that overlap": {
        "model.safetensors": _header(-1, {"a": _tensor(0, 40), "b": _tensor(20, 64)}),
    },
    "tensors with a hole between": {
        "model.safetensors": _header(-1, {"a": _tensor(0, 20), "b": _tensor(40, 64)}),
    },
    "a tensor beyond the end": {"model.safetensors": _header(-1, {"a": _tensor(0, 6400)})},
    "a tensor that ends before it begins": {"model.safetensors": _header(-1, {"a": _tensor(64, 0, [0])})},
    "a tensor with a negative range": {"model.safetensors": _header(-1, {"a": _tensor(-64, 0, [64])})},
    "a shape that does not fit": {"model.safetensors": _header(-1, {"a": _tensor(0, 64, [65])})},
    "a shape of 2^62": {"model.safetensors": _header(-1, {"a": _tensor(0, 64, [1 << 62, 4])})},
    "a header that is a list": {"model.safetensors": _header(-1, [1, 2])},
    "a header nested deep": {
        "model.safetensors": struct.pack("<Q", 120_000) + b"[" * 60_000 + b"]" * 60_000,
    },
    "a GGUF file with 2^60 tensors": {"model.gguf": b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0)},
    "a GGUF file with a text of 2^60 bytes": {
        "model.gguf": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60),
    },
    "a GGUF file that is none": {"model.gguf": b"PK\x03\x04" + b"\0" * 100},
}


def named(name: str) -> dict[str, bytes]:
    """A repository with a sound model and one file of this name."""
    return {"config.json": CONFIG, "model.safetensors": WEIGHTS, name: b"{}"}


def broken(files: dict[str, bytes]) -> dict[str, bytes]:
    """A repository with these files and, beside them, whatever a model needs."""
    weights = {} if any(name.startswith("model.") for name in files) else {"model.safetensors": WEIGHTS}
    return {"config.json": CONFIG, **weights, **files}


def bomb() -> bytes:
    """A pickle that runs code when it is read."""
    return pickle.dumps(_Bomb(), protocol=2)
