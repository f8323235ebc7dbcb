"""Planted faults: what goes wrong in one request is nobody else's concern."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import Plugin, raw, text_of, tokens_of
from mlxengine import Finished
from mlxengine.errors import GenerationError
from mlxengine.toolkit import rows
from mlxengine.toolkit.sampling import guarded

PROMPTS = ["row zero", "the row in the middle", "row number two"]


def requests(count: int = 32) -> list[Any]:
    return [raw(prompt, max_tokens=count, ignore_eos=True) for prompt in PROMPTS]


@pytest.fixture
def solo(plugin: Plugin, tiny: Path) -> list[list[int]]:
    """What each prompt gives when it is served alone."""
    model = plugin.load(tiny)
    return [tokens_of(plugin.run([plugin.start(model, request)])[0]) for request in requests()]


class Bomb:
    """A logits processor or network that fails at its n-th call."""

    def __init__(self, at: int, inner: Any = None, *, forever: bool = False) -> None:
        self.calls, self.at, self.inner, self.forever = 0, at, inner, forever

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.calls += 1
        if self.calls == self.at or (self.forever and self.calls > self.at):
            raise RuntimeError("planted")
        return args[-1] if self.inner is None else self.inner(*args, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_processor_that_raises_ends_its_own_row_only(plugin: Plugin, tiny: Path, solo: Any) -> None:
    model = plugin.load(tiny)
    streams = [plugin.start(model, request) for request in requests()]
    row = streams[1]._answer
    row.processors = [guarded(Bomb(9), row.fail)]
    found = plugin.run(streams)
    assert [tokens_of(found[0]), tokens_of(found[2])] == [solo[0], solo[2]]
    error = found[1][-1]
    assert isinstance(error, GenerationError)
    assert str(error.__cause__) == "planted"
    assert 0 < len(tokens_of(found[1])) < 10
    assert len(model.batch) == 0


def test_a_processor_that_changes_the_shape_ends_its_own_row_only(
    plugin: Plugin, tiny: Path, solo: Any
) -> None:
    model = plugin.load(tiny)
    streams = [plugin.start(model, request) for request in requests()]
    row = streams[1]._answer
    row.processors = [guarded(lambda _tokens, logits: logits[:, :5], row.fail)]
    found = plugin.run(streams)
    assert isinstance(found[1][-1], GenerationError)
    assert [tokens_of(found[0]), tokens_of(found[2])] == [solo[0], solo[2]]


def test_a_step_that_raises_is_done_again_for_every_row(plugin: Plugin, tiny: Path, solo: Any) -> None:
    model = plugin.load(tiny)
    whole = model.network
    for at in (1, 2, 7, 20):
        model.network = Bomb(at, whole)
        found = plugin.run([plugin.start(model, request) for request in requests()])
        assert [tokens_of(events) for events in found] == solo, f"failure at call {at}"
        with plugin.backend.stream():
            model.batch._discard()


def test_a_seeded_row_goes_on_the_same_after_a_step_that_raised(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    request = raw("x", max_tokens=24, temperature=1.0, seed=4, ignore_eos=True)
    wanted = plugin.text(model, "x", max_tokens=24, temperature=1.0, seed=4, ignore_eos=True)
    with plugin.backend.stream():
        model.batch._discard()
    model.network = Bomb(12, model.network)
    (events,) = plugin.run([plugin.start(model, request)])
    assert text_of(events) == wanted


def test_a_row_that_breaks_every_step_is_found_and_ended(plugin: Plugin, tiny: Path, solo: Any) -> None:
    model = plugin.load(tiny)
    poison, whole = 77, model.network

    def picky(tokens: mx.array, cache: Any) -> mx.array:
        if poison in tokens.flatten().tolist():
            raise RuntimeError("planted")
        return whole(tokens, cache=cache)

    class Picky:
        layers = whole.layers
        __call__ = staticmethod(picky)

    def clean(tokens: list[int]) -> bool:
        return poison not in tokens

    assert all(clean(tokens) for tokens in solo)
    model.network = Picky()
    streams = [plugin.start(model, request) for request in requests()]
    bad = plugin.start(model, _tokens_request([5, 6, poison, 7]))
    found = plugin.run([*streams, bad])
    assert [tokens_of(events) for events in found[:3]] == solo
    assert isinstance(found[3][-1], GenerationError)
    assert str(found[3][-1].__cause__) == "planted"


def test_a_batch_that_cannot_be_opened_ends_who_waits_for_it_and_no_one_after(
    plugin: Plugin, tiny: Path, solo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plugin.load(tiny)

    def broken(_rows: int) -> Any:
        raise RuntimeError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(model.batch, "_open", broken)
        found = plugin.run([plugin.start(model, request) for request in requests()])
    assert [type(events[-1]) for events in found] == [GenerationError] * len(found)
    assert {str(events[-1].__cause__) for events in found} == {"planted"}
    again = plugin.run([plugin.start(model, request) for request in requests()])
    assert [tokens_of(events) for events in again] == solo


def _tokens_request(tokens: list[int]) -> Any:
    from mlxengine import GenerateParams, TextRequest

    return TextRequest(prompt_tokens=tokens, params=GenerateParams(max_tokens=8))


def test_a_request_that_cannot_be_given_a_place_ends_with_its_error_and_the_next_is_answered(
    plugin: Plugin, tiny: Path, solo: Any
) -> None:
    model = plugin.load(tiny)
    wrong = plugin.start(model, requests()[1])
    wrong._answer.priority = "high"  # cannot be compared with another one's
    assert isinstance(plugin.run([wrong])[0][-1], GenerationError)
    assert tokens_of(plugin.run([plugin.start(model, requests()[2])])[0]) == solo[2]


def test_a_model_that_always_fails_ends_every_request_with_its_error(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    model.network = Bomb(1, model.network, forever=True)
    found = plugin.run([plugin.start(model, request) for request in requests()])
    assert all(isinstance(events[-1], GenerationError) for events in found)
    assert len(model.batch) == 0


READABLE = dict.fromkeys(range(36, 97), 9.0)


def test_a_reader_that_never_reads_is_set_aside_and_goes_on_later(
    plugin: Plugin, tiny: Path, solo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "STALL", 6)
    model = plugin.load(tiny)
    slow = raw("row one", max_tokens=32, ignore_eos=True, logit_bias=READABLE)
    (wanted,) = plugin.run([plugin.start(model, slow)])
    first, last = requests()[0], requests()[2]
    streams = [plugin.start(model, request) for request in (first, slow, last)]
    found = plugin.run([streams[0], streams[2]])
    assert [tokens_of(events) for events in found] == [solo[0], solo[2]]
    stalled = streams[1]._answer
    assert len(stalled.events) <= 9
    assert stalled.kept is not None
    assert len(model.batch) == 0
    (rest,) = plugin.run([streams[1]])
    assert tokens_of(rest) == tokens_of(wanted)


def test_a_stalled_seeded_row_draws_the_same_when_it_comes_back(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "STALL", 4)
    model = plugin.load(tiny)
    request = raw("x", max_tokens=40, temperature=1.0, seed=11, ignore_eos=True, logit_bias=READABLE)
    (wanted,) = plugin.run([plugin.start(model, request)])
    stalled, other = plugin.start(model, request), plugin.start(model, requests()[0])
    plugin.run([other])
    assert stalled._answer.kept is not None
    (found,) = plugin.run([stalled])
    assert tokens_of(found) == tokens_of(wanted)


@pytest.mark.parametrize(("steps", "piece"), [(0, 64), (1, 64), (3, 64), (20, 4096)])
def test_closing_a_stream_removes_its_row_at_once(
    plugin: Plugin, tiny: Path, solo: Any, steps: int, piece: int
) -> None:
    """In prefill (the long prompt is read in pieces) and in decode."""
    model = plugin.load(tiny)
    model.batch.pace.tokens = lambda budget_ms, *, running=False: piece
    long = plugin.start(model, raw("cancel me " * 60, max_tokens=200, ignore_eos=True))
    streams = [plugin.start(model, request) for request in requests()]
    with plugin.backend.stream():
        for _ in range(steps):
            next(long)
        assert len(model.batch) == 4
        assert bool(long._answer.tokens) == (steps == 20)
        long.close()
        assert len(model.batch) == 3
        assert list(long) == []
    found = plugin.run(streams)
    assert [tokens_of(events) for events in found] == solo


def test_a_stream_that_is_dropped_before_its_first_step_leaves_nothing(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    stream = plugin.start(model, requests()[0])
    stream.close()
    stream.close()
    assert len(model.batch) == 0


def test_an_error_while_text_is_made_ends_that_request_only(
    plugin: Plugin, tiny: Path, solo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plugin.load(tiny)
    streams = [plugin.start(model, request) for request in requests()]
    monkeypatch.setattr(streams[1]._answer, "_detokenizer", None)
    found = plugin.run(streams)
    assert isinstance(found[1][-1], GenerationError)
    assert [tokens_of(found[0]), tokens_of(found[2])] == [solo[0], solo[2]]


@pytest.mark.feature("llm.max_batch")
def test_more_requests_than_the_batch_holds_wait_their_turn(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, flags={"max_batch": 2})
    found = plugin.run([plugin.start(model, raw(f"{i}", max_tokens=5, ignore_eos=True)) for i in range(7)])
    assert all(isinstance(events[-1], Finished) for events in found)
    assert [len(tokens_of(events)) for events in found] == [5] * 7


def test_a_higher_priority_is_admitted_first(plugin: Plugin, tiny: Path) -> None:
    import attrs

    model = plugin.load(tiny, flags={"max_batch": 1})
    ends: list[int] = []
    streams = [
        plugin.start(model, attrs.evolve(raw(f"{i}", max_tokens=4, ignore_eos=True), priority=priority))
        for i, priority in enumerate([0, 0, 5])
    ]
    with plugin.backend.stream():
        live = dict(enumerate(streams))
        while live:
            for i, stream in list(live.items()):
                if isinstance(next(stream), Finished):
                    ends.append(i)
                    del live[i]
    assert ends.index(2) < ends.index(1)


def test_the_fault_tests_would_notice_a_processor_outside_its_guard(
    plugin: Plugin, tiny: Path, solo: Any
) -> None:
    """Without the guard the step raises; rows survive by being rebuilt, and the blamed row still ends."""
    model = plugin.load(tiny)
    streams = [plugin.start(model, request) for request in requests()]
    streams[1]._answer.processors = [Bomb(3, forever=True)]
    found = plugin.run(streams)
    assert isinstance(found[1][-1], GenerationError)
    assert [tokens_of(found[0]), tokens_of(found[2])] == [solo[0], solo[2]]
