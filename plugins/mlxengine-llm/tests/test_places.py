"""Where a change of the batch is dear, a row that leaves makes its place for the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, raw, tokens_of
from mlxengine.toolkit import batch as shared
from mlxengine.toolkit import decoding, joining

LENGTHS = (40, 90, 25, 60)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Which places were given to others, each time."""
    found: list[list[int]] = []

    def write_rows(layers: Any, at: list[int], others: Any) -> None:
        found.append(at)
        joining.write_rows(layers, at, others)

    monkeypatch.setattr(shared, "write_rows", write_rows)
    monkeypatch.setattr(decoding, "keeps_places", lambda: True)
    return found


def steps(plugin: Plugin, streams: dict[str, Any], said: dict[str, list[Any]], count: int) -> None:
    with plugin.backend.stream():
        for _ in range(count):
            for name in list(streams):
                try:
                    event = next(streams[name])
                except StopIteration:
                    del streams[name]
                    continue
                if event is not None:
                    said.setdefault(name, []).append(event)


def test_who_comes_takes_the_place_of_who_left_and_says_what_he_says_alone(
    plugin: Plugin, tiny: Path, written: list[list[int]]
) -> None:
    model = plugin.load(tiny, flags={"prompt_cache": False})
    asked = {f"{length}": raw("word " * length, max_tokens=60, ignore_eos=True) for length in LENGTHS}
    late = raw("another " * 20, max_tokens=30, ignore_eos=True)
    alone = {name: tokens_of(plugin.run([plugin.start(model, one)])[0]) for name, one in asked.items()}
    alone["late"] = tokens_of(plugin.run([plugin.start(model, late)])[0])

    streams = {name: plugin.start(model, one) for name, one in asked.items()}
    said: dict[str, list[Any]] = {}
    steps(plugin, streams, said, 12)
    streams.pop("90").close()
    assert model.batch._decoder.spare == 1
    assert model.batch.cost == 4 * max(row.cost for row in model.batch._rows), "its cache is still there"
    streams["late"] = plugin.start(model, late)
    steps(plugin, streams, said, 400)
    assert len(written) == 1
    for name in (*(name for name in asked if name != "90"), "late"):
        assert tokens_of(said[name]) == alone[name], name
    assert said["90"], "he left in the middle"


def test_places_are_given_up_where_memory_is_short(
    plugin: Plugin, tiny: Path, written: list[list[int]]
) -> None:
    model = plugin.load(tiny, flags={"prompt_cache": False})
    asked = [raw("word " * length, max_tokens=80, ignore_eos=True) for length in LENGTHS]
    alone = [tokens_of(plugin.run([plugin.start(model, one)])[0]) for one in asked]
    streams = {str(number): plugin.start(model, one) for number, one in enumerate(asked)}
    said: dict[str, list[Any]] = {}
    steps(plugin, streams, said, 12)
    streams.pop("0").close()
    decoder, batch = model.batch._decoder, model.batch
    assert decoder.spare == 1
    batch.account.reserved, batch.account.room = 0, lambda: -decoder.spare
    batch._rows[0].charged = 0
    steps(plugin, streams, said, 1)
    assert decoder.spare == 0, "rather than that a row has to wait"
    assert batch.inside == 3
    batch.account.room = lambda: None
    streams.pop("2").close()
    assert len(decoder._batch.rows) == 2, "of so few places none is kept"
    steps(plugin, streams, said, 200)
    assert [tokens_of(said[number]) for number in ("1", "3")] == [alone[1], alone[3]]
    assert written == []


def test_a_place_that_nobody_takes_is_given_up(
    plugin: Plugin, tiny: Path, written: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "LINGER", 6)
    model = plugin.load(tiny, flags={"prompt_cache": False})
    asked = [raw("word " * length, max_tokens=60, ignore_eos=True) for length in LENGTHS]
    streams = {str(number): plugin.start(model, one) for number, one in enumerate(asked)}
    said: dict[str, list[Any]] = {}
    steps(plugin, streams, said, 12)
    streams.pop("0").close()
    seen = []
    for _ in range(16):
        steps(plugin, streams, said, 1)
        seen.append(len(model.batch._decoder._batch.rows))
    assert seen[0] == 4
    assert seen[-1] == 3
