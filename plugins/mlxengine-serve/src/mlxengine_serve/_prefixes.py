"""Which of several servers a request goes to: the one that has its prefix, unless that is the busier for it.

The prefix caches of the servers compare token ids. Here stand no tokenizers, so what is compared is what the
tokens are made of, in the order in which they are: model, adapter, tools, instructions and messages, pictures
and sound by their content, in blocks of characters. Where two requests agree in a block and in all before it,
so do their tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field
from mlxengine import AudioPart, ImagePart, TextRequest

BLOCK = 256
"""Characters of a block: about the 64 tokens that a prefix has to save to be worth something."""
MOST_BLOCKS = 1 << 17
CROWD = 1.25
"""How many times the mean of all requests one server may have (consistent hashing with bounded loads,
Mirrokni, Thorup and Zadimoghaddam 2016)."""


def keys_of(model: str | None, request: TextRequest) -> tuple[bytes, ...]:
    """A key for each whole block of a prompt; it stands for all blocks before it too."""
    said = "\0".join(_said(model, request)).encode("utf-8", "surrogatepass")
    running, keys = hashlib.blake2b(digest_size=8), []
    for start in range(0, len(said) - BLOCK + 1, BLOCK):
        running.update(said[start : start + BLOCK])
        keys.append(running.digest())
    return tuple(keys)


def _said(model: str | None, request: TextRequest) -> Iterator[str]:
    yield f"{model}\0{request.params.adapter}"
    yield from map(repr, request.tools)
    yield f"{request.instructions}\0{request.prompt}\0{request.prompt_tokens}"
    for message in request.messages:
        yield message.role
        yield from map(_part, message.parts)


def _part(part: Any) -> str:
    source = part.source if isinstance(part, ImagePart | AudioPart) else None
    return hashlib.blake2b(source).hexdigest() if isinstance(source, bytes) else repr(part)


@define(eq=False)
class Prefixes:
    """Who was given which blocks last."""

    _holders: OrderedDict[bytes, set[int]] = field(factory=OrderedDict, init=False)
    _turns: dict[int, int] = field(factory=dict, init=False)
    _turn: int = field(default=0, init=False)

    def choose(self, keys: Sequence[bytes], loads: Mapping[int, int]) -> int:
        """The server for a request, which has its blocks from now on.

        That is the one with the longest prefix of it; of equals the one with the fewest requests, of these
        the one whose last turn is longest ago. One that would have more than `CROWD` times the mean is left
        out, whatever it has.

        Args:
            keys: the request's, of `keys_of`; none where it has no prefix.
            loads: the requests that each server has now; at least one server.
        """
        most = math.ceil(CROWD * (sum(loads.values()) + 1) / len(loads))
        held, here = dict.fromkeys(loads, 0), set(loads)
        for number, key in enumerate(keys, 1):
            here &= self._holders.get(key, set())
            if not here:
                break
            held |= dict.fromkeys(here, number)
        chosen = max(
            (server for server, load in loads.items() if load < most),
            key=lambda server: (held[server], -loads[server], -self._turns.get(server, 0)),
        )
        self._turn += 1
        self._turns[chosen] = self._turn
        for key in reversed(keys):  # the first of them goes last
            self._holders.setdefault(key, set()).add(chosen)
            self._holders.move_to_end(key)
        while len(self._holders) > MOST_BLOCKS:
            self._holders.popitem(last=False)
        return chosen

    def forget(self, server: int) -> None:
        """A server has lost what it had."""
        for holders in self._holders.values():
            holders.discard(server)


__all__ = ["BLOCK", "CROWD", "MOST_BLOCKS", "Prefixes", "keys_of"]
