"""Long prompts come in a piece at a time, so that running answers keep their pace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, raw, tokens_of
from mlxengine.toolkit.rows import Pace, SharedBatch


def pieces(model: Any, plugin: Plugin) -> list[int]:
    """The number of prompt tokens in each forward pass, noted as the passes happen."""
    read: list[int] = []
    whole = model.network

    class Counting:
        layers = whole.layers

        def __call__(self, tokens: Any, **more: Any) -> Any:
            if tokens.shape[1] > 1:
                read.append(tokens.size)
            return whole(tokens, **more)

    with plugin.backend.stream():
        model.batch._discard()
    model.network = Counting()
    return read


def test_time_for_prompts_follows_the_pace_of_running_answers() -> None:
    batch = SharedBatch(lambda rows: None, stall_factor=3.0)  # type: ignore[arg-type, return-value]
    assert batch._reading_ms(100.0) == 100.0
    batch._decode_seconds = 0.010
    assert batch._reading_ms(100.0) == 100.0, "nobody waits"
    from mlxengine.toolkit.rows import Row

    row = Row([1])
    row.reading = False
    batch._rows.append(row)
    assert batch._reading_ms(100.0) == 30.0
    assert batch._reading_ms(20.0) == 20.0
    pace = Pace()
    pace.observe(1000, 1.0)
    assert [pace.chunk(ms) for ms in (1, 100, 300, 10_000)] == [64, 64, 256, 2048]


@pytest.mark.feature("llm.stall_factor")
def test_no_step_reads_more_of_the_prompts_than_its_share(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, flags={"prompt_cache": False, "stall_factor": 6.0})
    read = pieces(model, plugin)
    running = plugin.start(model, raw("run", max_tokens=60, ignore_eos=True))
    with plugin.backend.stream():
        for _ in range(8):
            next(running)
        model.batch._pace._rate = 1000.0
        model.batch._pace.observe = lambda tokens, seconds: None  # the machine's mood is not the question
        model.batch._reading_ms = lambda budget_ms: 100.0
        assert model.batch.stall_factor == 6.0
        read.clear()
    long = [plugin.start(model, raw(f"{i} " * 150, max_tokens=4, ignore_eos=True)) for i in range(3)]
    found = plugin.run([running, *long])
    assert all(len(tokens_of(events)) == 4 for events in found[1:])
    assert max(read) <= 64, "100 ms at 1,000 tokens a second, as a power of two"


def test_short_prompts_are_read_together(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, flags={"prompt_cache": False})
    read = pieces(model, plugin)
    plugin.run([plugin.start(model, raw("short one", max_tokens=2, ignore_eos=True)) for _ in range(8)])
    assert read == [8 * 8]
