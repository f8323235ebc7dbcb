"""Long prompts come in a piece at a time, so that running answers keep their pace."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, passes, raw, text_of, tokens_of
from mlxengine import TextRequest
from mlxengine.toolkit.pace import Pace
from mlxengine.toolkit.rows import Drawn, Row, Stepped


def pieces(seen: list[tuple[int, int]]) -> list[int]:
    """The number of prompt tokens in each pass that read some."""
    return [rows * positions for rows, positions in seen if positions > 1]


def read(tokens: int, *, drawn: int = 0, new_shape: bool = False) -> Stepped:
    """A step that waited for so many tokens of prompts."""
    return Stepped(drawn=[Drawn(Row([1]), 0, None)] * drawn, prompt_tokens=tokens, new_shape=new_shape)


def test_time_for_prompts_follows_the_pace_of_running_answers() -> None:
    pace = Pace(stall_factor=3.0)
    assert pace.tokens(100, running=True) == 128, "nothing is known yet"
    pace.observe(read(1000), 1.0)
    assert [pace.tokens(ms) for ms in (1, 100, 300, 10_000)] == [64, 96, 256, 4096]
    for seconds in (0.010, 0.010, 0.500):
        pace.observe(read(0, drawn=4), seconds)
    assert pace.decode_seconds == 0.010, "a row that joined is no measure"
    assert pace.worth == 10, "a pass takes as long for itself as for 10 tokens"
    assert pace.tokens(300) == 256, "nobody waits"
    assert pace.tokens(300, running=True) == 16, "20 ms at 1,000 tokens a second"
    pace.observe(Stepped(drawn=[Drawn(Row([1]), 0, None)], queued=16), 0.5)
    assert pace.decode_seconds == 0.010, "a step that starts to read is none that only decodes"


def test_one_slow_step_changes_nothing_two_do_and_a_fast_one_counts() -> None:
    pace = Pace(stall_factor=3.0)
    pace.observe(read(0, drawn=4), 0.010)
    for _ in range(3):
        pace.observe(read(1000), 1.0)
    asked = pace.tokens(300, running=True)
    pace.observe(read(asked), 1.0)
    assert pace.tokens(300, running=True) == asked == 16
    pace.observe(read(asked), 1.0)
    assert pace.tokens(300, running=True) == 8, "the device has become slow"
    for _ in range(2):
        pace.observe(read(8), 0.008)
    assert pace.tokens(300, running=True) == 16, "and fast again"
    for _ in range(3):
        pace.observe(read(1), 2.0)
    assert pace.tokens(300, running=True) == 16, "the last tokens of a prompt tell nothing"


def test_a_shape_that_the_device_meets_for_the_first_time_is_no_measure_of_slowness() -> None:
    pace = Pace(first=512)
    pace.observe(read(0, drawn=4), 0.010)
    pace.observe(read(512, new_shape=True), 4.0)
    assert pace.tokens(100) == pace.tokens(100, running=True) == 512, "as if nothing were known"
    pace.observe(read(512, new_shape=True), 0.050)
    assert pace.tokens(100) == 1024, "it is at least so fast"
    pace.observe(read(512), 0.032)
    assert pace.tokens(100) == 1536
    for _ in range(4):
        pace.observe(read(1536, new_shape=True), 11.0)
    assert pace.tokens(100) == 1536
    pace.observe(read(1536, new_shape=True), 0.010)
    pace.observe(read(1536, new_shape=True), 0.010)
    assert pace.tokens(100) == 4096, "but of speed it is"


def test_a_short_prompt_overtakes_a_long_one_that_has_not_waited_for_it_yet() -> None:
    long, short, low = Row([1]), Row([1]), Row([1], priority=-1)
    long.since, short.since, low.since = 100.0, 103.0, 60.0
    assert short.standing(104, seconds=0.5) < long.standing(104, seconds=5)
    assert short.standing(109, seconds=0.5) > long.standing(109, seconds=2), "that had its turn now"
    assert low.standing(104) < short.standing(104), "a low priority waits, but not for ever"


@pytest.mark.feature("llm.stall_factor")
def test_running_answers_keep_their_pace_while_long_prompts_are_read(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plugin.load(tiny, flags={"prompt_cache": False, "stall_factor": 3.0})
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # the machine's mood is not the question
    running = [plugin.start(model, raw(f"run {i}", max_tokens=2000, ignore_eos=True)) for i in range(4)]
    at: list[float] = []
    tokens = running[0]._answer.tokens  # not its events: bytes that are no text yet give none

    def turn(streams: list[Any]) -> None:
        with plugin.backend.stream():
            for stream in streams:
                known = len(tokens)
                next(stream)
                if len(tokens) > known:
                    at.append(time.process_time())

    while len(at) < 50:
        turn(running)
    quiet = statistics.median(b - a for a, b in itertools.pairwise(at[20:]))
    long = [plugin.start(model, raw(f"{i} " * 768, max_tokens=500, ignore_eos=True)) for i in range(2)]
    rows = [stream._answer for stream in long]
    at.clear()
    while any(row.reading for row in rows):
        turn(running + long)
    gaps = sorted(b - a for a, b in itertools.pairwise(at))
    for stream in running + long:
        with plugin.backend.stream():
            stream.close()
    assert len(gaps) > 12
    assert gaps[int(0.95 * len(gaps))] < 10 * quiet
    assert statistics.median(gaps) > 1.2 * quiet, "reading gets the time that it may have"


def test_a_prompt_read_in_pieces_is_answered_as_one_that_is_read_whole(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, flags={"prompt_cache": False})
    long = raw("some words " * 60, max_tokens=12, ignore_eos=True)
    (alone,) = plugin.run([plugin.start(model, long)])
    seen = passes(model, plugin)
    model.batch.pace.tokens = lambda budget_ms, *, running=False: 48
    running = plugin.start(model, raw("run", max_tokens=60, ignore_eos=True))
    again = plugin.run([running, plugin.start(model, long), plugin.start(model, raw("x", max_tokens=4))])[1]
    assert tokens_of(again) == tokens_of(alone)
    assert max(pieces(seen)) == 48
    assert len(pieces(seen)) > 12


def test_a_short_prompt_is_read_before_a_long_one_that_came_first(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, flags={"prompt_cache": False})
    model.batch.pace.tokens = lambda budget_ms, *, running=False: 16
    ends: list[str] = []

    def noted(name: str, request: TextRequest) -> Any:
        events = []
        for event in plugin.start(model, request):
            if event is not None:
                events.append(event)
            yield event
        ends.append(f"{name} {text_of(events) != ''}")

    long = noted("long", raw("l " * 300, max_tokens=2, ignore_eos=True))
    short = noted("short", raw("a few words of text", max_tokens=2, ignore_eos=True))
    plugin.run([long], later={4: [lambda: short]})
    assert ends == ["short True", "long True"]


def test_short_prompts_are_read_together(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, flags={"prompt_cache": False})
    seen = passes(model, plugin)
    plugin.run([plugin.start(model, raw("short one", max_tokens=2, ignore_eos=True)) for _ in range(8)])
    assert pieces(seen) == [8 * 8]
