"""Memory is charged as caches grow, pictures included, and where they cannot all grow, fewer rows go on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import mlx.core as mx
import pytest
from families import FAMILIES, build
from mlxengine import Finished, TextDelta
from mlxengine.errors import InsufficientMemoryError
from mlxengine.toolkit import decoding
from mlxengine_vlm._language import KV, Language
from mlxengine_vlm._load import _cache_size
from mlxengine_vlm._sight import Prompt, Sight
from sameness import check_same, on_gpu
from vlm_harness import TINY, Plugin, asking, text_of
from vlm_pictures import Thing, draw

STEP = 16  # tokens that caches are charged by here, as if they grew by these
COLOURS = ("red", "green", "blue", "white")


def asked(number: int, **more: Any) -> Any:
    """A picture, or two, or none, and a long answer; greedy, or sampled with a seed."""
    pictures = [draw([Thing("circle", COLOURS[(number + at) % 4], number % 9)]) for at in range(number % 3)]
    sampling = {"temperature": 3.0, "seed": number} if number % 2 else {}
    request = asking("What is this?", *pictures, max_tokens=60, ignore_eos=True, top_logprobs=2, **sampling)
    return attrs.evolve(request, **more)


def bounded(model: Any, steps: int) -> None:
    """Give a model's requests memory for caches of so many steps of growth in all, half of them set aside."""
    account = model.batch.account
    account.step = STEP
    account._known.clear()
    whole = steps * account.cost_of(STEP)
    account.reserved = whole // 2
    account.room = lambda: whole - account.reserved - model.state().requests - model.state().caches
    for kept in (model.prefixes, model.features):
        kept.room = account.room


@pytest.fixture
def shed(model: Any) -> list[Any]:
    """The rows that make way, in order; no step exceeds the account."""
    found: list[Any] = []
    batch, account = model.batch, model.batch.account
    advance, take_out = batch.advance, batch._take_out

    def step(budget_ms: float) -> None:
        advance(budget_ms)
        assert all(row.size <= row.charged for row in batch._rows)
        state = model.state()
        assert state.kv_used <= batch.cost <= account.reserved + state.requests
        assert (account.room() or 0) >= 0

    def leave(rows: list[Any]) -> None:
        found.extend(row for row in rows if not (row.done or row.failure))
        take_out(rows)

    batch.advance, batch._take_out = step, leave
    return found


@pytest.fixture
def model(plugin: Plugin) -> Any:
    return plugin.load(TINY)


@pytest.fixture(scope="module")
def alone(plugin: Plugin, tiny: Any) -> list[list[Any]]:
    """What each request gives when it is served alone."""
    return [plugin.run([plugin.start(tiny, asked(number), prompt_cache=False)])[0] for number in range(8)]


def check_all(found: list[list[Any]], alone: list[list[Any]], numbers: Iterable[int]) -> None:
    """Assert that answers are those of requests that were served alone: the same texts on a CPU."""
    for number, events in zip(numbers, found, strict=True):
        check_same(events, alone[number], sampled=number % 2 == 1)
        assert on_gpu() or text_of(events) == text_of(alone[number])


@pytest.mark.parametrize(("cached", "places"), [(True, False), (False, False), (True, True)])
def test_8_rows_that_cannot_all_grow_end_each_as_alone_and_the_newest_make_way(
    plugin: Plugin,
    model: Any,
    alone: list[list[Any]],
    shed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    cached: bool,
    places: bool,
) -> None:
    monkeypatch.setattr(decoding, "keeps_places", lambda: places)
    bounded(model, 40)
    streams = [plugin.start(model, asked(number), prompt_cache=cached) for number in range(8)]
    found = plugin.run(streams)
    check_all(found, alone, range(8))
    newest = sorted(shed, key=lambda row: -row.since)
    assert len(shed) >= 2
    assert shed[: len(set(shed))] == list(dict.fromkeys(newest))
    state = model.state()
    assert (len(model.batch), model.batch.cost, state.kv_used, state.requests) == (0, 0, 0, 0)


def test_a_row_that_cannot_grow_alone_fails_with_what_is_missing_and_the_others_go_on(
    plugin: Plugin, model: Any, alone: list[list[Any]], shed: list[Any]
) -> None:
    small = asking("What is 1 plus 1?", max_tokens=4)
    wanted = plugin.answer(model, small)
    bounded(model, 3)
    model.trim(0)
    found = plugin.run([plugin.start(model, request) for request in (asked(0), small)])
    assert isinstance(found[0][-1], InsufficientMemoryError)
    said = "".join(event.text for event in found[0] if isinstance(event, TextDelta))
    assert said
    assert on_gpu() or text_of(alone[0]).startswith(said)
    assert text_of(found[1]) == wanted
    assert (len(model.batch), model.batch.cost) == (0, 0)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_rows_caches_fill_is_told_as_it_is(plugin: Plugin, tiny: Any, number: int) -> None:
    request = attrs.evolve(asked(number), params=attrs.evolve(asked(number).params, max_tokens=600))
    streams = [plugin.start(tiny, request, prompt_cache=False) for _ in range(2)]
    with plugin.backend.stream():
        while not tiny.batch._rows or any(len(row.tokens) < 300 for row in tiny.batch._rows):
            for stream in streams:
                next(stream)
        held = sum(layer.nbytes for layer in tiny.batch._decoder._batch.layers)
        state = tiny.state()
        assert state.kv_used == pytest.approx(held, rel=0.15)
        assert state.kv_used <= state.kv_total
        assert state.rows == 2
        for stream in streams:
            stream.close()
    assert (tiny.state().kv_used, tiny.state().rows) == (0, 0)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_5", "gemma3", "kimi_vl", "llama4", "mllama"])
def test_the_bytes_of_a_cache_are_measured_for_every_way_of_keeping_one(name: str) -> None:
    network, media = build(name), frozenset({FAMILIES[name].placeholder})
    size = _cache_size(network, name, media, KV())
    assert size is not None
    language = Language(network)
    layers = language.caches()
    plan = Sight(network=network, kind=name, prompt=Prompt(ids=[20] * 500), media_tokens=media)()
    language.read([plan.take(500)], 500, layers)
    for _ in range(12):  # a window lets go of a long pass when the next tokens come
        language.follow(mx.array([[20]]), layers, plan.rope_deltas, plan.crossed)
    mx.eval([layer.state for layer in layers])
    assert size(512) == pytest.approx(sum(layer.nbytes for layer in layers), rel=0.15)


@pytest.mark.parametrize("turns", range(12))
def test_a_cancel_in_any_phase_leaves_nothing_charged(plugin: Plugin, tiny: Any, turns: int) -> None:
    streams = [plugin.start(tiny, asked(number), prompt_cache=False) for number in range(3)]
    with plugin.backend.stream():
        for _ in range(turns * turns // 2):
            for stream in streams:
                next(stream, None)
        for stream in streams:
            stream.close()
    assert (len(tiny.batch), tiny.batch.cost, tiny.state().kv_used) == (0, 0, 0)


@pytest.mark.feature("vlm.preemption")
def test_an_answer_about_a_picture_is_parked_for_one_of_a_higher_priority_and_goes_on_as_alone(
    plugin: Plugin, alone: list[list[Any]]
) -> None:
    model = plugin.load(TINY, flags={"max_batch": 2, "preemption": True})
    parked: list[Any] = []
    park = model.batch._park
    model.batch._park = lambda decoder, row: (parked.append(row), park(decoder, row))
    ends: list[int] = []

    def ask(number: int, priority: int) -> Any:
        return Noted(plugin.start(model, asked(number, priority=priority)), number, ends)

    later = {30: [lambda: ask(1, 1)], 34: [lambda: ask(2, 2)]}
    found = plugin.run([ask(5, 0), ask(4, 0)], later=later)
    check_all(found, alone, (5, 4, 1, 2))
    assert len(parked) == 2
    assert set(ends[:2]) == {1, 2}
    assert model.batch.cost == 0


class Noted:
    """A stream that notes when it is at its end."""

    def __init__(self, stream: Any, number: int, ends: list[int]) -> None:
        self.stream, self.number, self.ends = stream, number, ends

    def __next__(self) -> Any:
        event = next(self.stream)
        if isinstance(event, Finished):
            self.ends.append(self.number)
        return event
