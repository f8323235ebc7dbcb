"""What the tests of ranks share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from mlxengine import GenerateParams, TextDelta
from mlxengine.toolkit.rows import Row
from mlxengine_shard._decoder import LeadingDecoder
from mlxengine_shard._ranks import Ranks, Settings

GREEDY = GenerateParams(max_tokens=24, temperature=0, ignore_eos=True)


def running() -> list[int]:
    """The processes of ranks on this machine whose leader is this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = folder.joinpath("cmdline").read_bytes()
            state, parent = folder.joinpath("stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if b"mlxengine_shard._rank" in words and state != "Z" and int(parent) == os.getpid():
            found.append(int(folder.name))
    return found


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes to hold within so long."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


class Told(Row):
    """A row that ends after so many tokens."""

    def __init__(self, prompt: list[int], count: int, *, scored: bool) -> None:
        super().__init__(prompt)
        self.reuse, self.scored, self._count = True, scored, count
        self.scores: list[mx.array] = []

    def take(self, token: int, logprobs: mx.array | None) -> None:
        assert (logprobs is not None) == self.scored
        if logprobs is not None:
            assert token == mx.argmax(logprobs).item()
        self.done = len(self.tokens) >= self._count


def settings(tiny: Path, ranks: int = 2, **more: Any) -> Settings:
    found = Settings(
        path=str(tiny),
        ranks=ranks,
        split="tensor",
        transport="ring",
        context=4096,
        prefix_bytes=60_000,  # about two of the prompts: entries come and go
        token_bytes=256,
        shape_seconds=0.0,
    )
    return attrs.evolve(found, **more)


def opened(ranks: Ranks) -> LeadingDecoder:
    return LeadingDecoder(ranks, None, 60.0, True, lambda why: pytest.fail(why))


def alone(network: Any, layers: list[Any], row: Told) -> list[int]:
    """What a network that is whole says to a prompt, read from the start into empty caches."""
    inputs, found = mx.array([row.prompt]), []
    for _ in row.tokens:
        logits = network(inputs, cache=layers)[:, -1]
        inputs = mx.argmax(logits, axis=-1)[:, None]
        found.append(int(inputs.item()))
    return found
