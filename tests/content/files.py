"""Files that lie, made from sound ones by fixed seeds."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

from tests.hub.tiny import gguf, safetensors

_NUMBERS = (0, 1, 7, 2**16, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
_JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63,
    10**400,
    0.5,
    "x",
    "\ud800",
    [],
    {},
    [[]],
    [0, 1, 2],
    ["0", "4"],
)


def safetensors_case(seed: int) -> bytes:
    """A safetensors file with a header that was changed in one way."""
    chance = random.Random(seed)
    sizes = {name: chance.randrange(0, 40) for name in "abcd"}
    data = safetensors(sizes, seed)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    how = chance.randrange(8)
    if how == 0:
        entry = header[chance.choice("abcd")]
        entry[chance.choice(sorted(entry))] = chance.choice(_JUNK)
    elif how == 1:
        entry = header[chance.choice("abcd")]
        entry["data_offsets"][chance.randrange(2)] += chance.choice((-5, -1, 1, 5, 2**40))
    elif how == 2:
        entry = header[chance.choice("abcd")]
        entry["dtype"] = chance.choice(("F32", "BF16", "F64", "F4", "Q8", "", "I8"))
    elif how == 3:
        header[chance.choice("abcd")] = chance.choice(_JUNK)
    elif how == 4:
        header["__metadata__"] = chance.choice(_JUNK)
    encoded = json.dumps(header).encode()
    if how == 5:
        encoded = encoded[:-1] + b", " + json.dumps({"a": header["b"]}).encode()[1:]
    claimed = len(encoded)
    if how == 6:
        claimed = chance.choice(_NUMBERS)
    made = struct.pack("<Q", claimed) + encoded + body
    if how == 7:
        made = bytearray(made)
        for _ in range(chance.randrange(1, 6)):
            made[chance.randrange(len(made))] = chance.randrange(256)
        made = bytes(made)[: chance.choice((len(made), chance.randrange(len(made))))]
    return made


def gguf_case(seed: int) -> bytes:
    """A GGUF file with numbers of its directory overwritten, or cut short."""
    chance = random.Random(seed)
    data = bytearray(gguf(second=256, room=512))
    for _ in range(chance.choice((1, 1, 2, 4))):
        # mostly in the small entries, not in the long vocabulary
        at = chance.choice((chance.randrange(4, 240), len(data) - chance.randrange(520, 700)))
        number = chance.choice(_NUMBERS)
        data[at : at + 8] = (
            struct.pack("<Q", number) if chance.random() < 0.5 else struct.pack("<I", number % 2**32)
        )
    return bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])


def nested_array() -> bytes:
    """A GGUF file whose metadata hold arrays of arrays of arrays."""
    depth = 100_000
    pair = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair + b"\0" * 64


def tokenizer_case(text: str, seed: int) -> str:
    """A ``tokenizer.json`` with one to three values replaced or removed."""
    chance = random.Random(seed)
    document = json.loads(text)
    for _ in range(chance.choice((1, 1, 2, 3))):
        holder = document
        while True:
            keys = sorted(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = chance.choice(keys)
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and chance.random() < 0.7:
                holder = inner
                continue
            if chance.random() < 0.2:
                del holder[key]
            else:
                holder[key] = chance.choice((*_JUNK[:3], *_NUMBERS, "x", [], {}, [0]))
            break
    return json.dumps(document)
