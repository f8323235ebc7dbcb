"""Repositories with sound files and random content, for tests that count bytes."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

MIB = 1 << 20


def safetensors(payload: bytes, name: str = "blob") -> bytes:
    """A sound safetensors file that holds the payload as one tensor of bytes."""
    entry = {name: {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}
    header = json.dumps(entry).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + payload


def random_model(seed: int, *sizes: int) -> dict[str, bytes]:
    """Files of a repository: a configuration, a text, and a shard of each size (bytes of payload)."""
    source = random.Random(seed)
    files = {
        "config.json": json.dumps({"model_type": "llama", "seed": seed}).encode(),
        "tokenizer/merges.txt": source.randbytes(3000).hex().encode(),
    }
    for number, size in enumerate(sizes, 1):
        name = f"model-{number:05}-of-{len(sizes):05}.safetensors" if len(sizes) > 1 else "model.safetensors"
        files[name] = safetensors(source.randbytes(size), f"blob.{number}")
    return files


def total(files: dict[str, bytes]) -> int:
    return sum(map(len, files.values()))


def same(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether the folder holds exactly these files with exactly this content."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return found == set(files) and all((folder / name).read_bytes() == files[name] for name in files)


def leftovers(cache: Path) -> list[str]:
    """Partial and temporary files that a finished download must not leave."""
    return [
        path.name for path in cache.rglob("*") if ".incomplete" in path.name or path.name.startswith(".ml")
    ]
