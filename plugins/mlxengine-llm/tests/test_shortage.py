"""Memory that runs out in a shared step: fewer requests together, nothing said twice, and who is told."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, raw, text_of, tokens_of
from mlxengine.errors import InsufficientMemoryError
from mlxengine.toolkit import room, rows

PROMPTS = [f"row number {index} of them" for index in range(6)]
ALLOCATION = "[malloc] Unable to allocate 17179869184 bytes."


def requests(count: int = 40, **more: Any) -> list[Any]:
    return [raw(prompt, max_tokens=count, ignore_eos=True, **more) for prompt in PROMPTS]


class Narrow:
    """A network for which memory suffices for so many rows; a shortage of Python's or of mlx's."""

    def __init__(self, inner: Any, rows: int, error: Exception) -> None:
        self.inner, self.rows, self.error = inner, rows, error
        self.widest = 0

    def __call__(self, tokens: Any, *args: Any, **more: Any) -> Any:
        if tokens.shape[0] > self.rows:
            raise self.error
        self.widest = max(self.widest, tokens.shape[0])
        return self.inner(tokens, *args, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
def alone(plugin: Plugin, tiny: Path) -> list[list[int]]:
    """What each prompt gives when it is served alone."""
    model = plugin.load(tiny)
    return [tokens_of(plugin.run([plugin.start(model, request)])[0]) for request in requests()]


@pytest.mark.parametrize("error", [RuntimeError(ALLOCATION), MemoryError()])
def test_when_memory_runs_out_fewer_rows_go_on_together_and_no_token_is_lost_or_said_twice(
    plugin: Plugin, tiny: Path, alone: Any, error: Exception
) -> None:
    model = plugin.load(tiny)
    network = model.network = Narrow(model.network, 2, error)
    found = plugin.run([plugin.start(model, request) for request in requests()])
    assert [tokens_of(events) for events in found] == alone
    assert network.widest == 2
    state = model.state()
    assert state.shortages >= 1
    assert "memory ran out with 3 requests at once" in str(state.degraded)
    assert len(model.batch) == 0


def test_the_newest_rows_wait_and_the_oldest_end_first(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    streams = [plugin.start(model, request) for request in requests(60)]
    ends: list[int] = []
    with plugin.backend.stream():
        while any(len(stream._answer.tokens) < 5 for stream in streams):
            for stream in streams:
                next(stream)
        model.batch._discard()
        model.network = Narrow(model.network, 2, MemoryError())
        for row in model.batch._rows:
            row.inside = False
        model.batch._waiting, model.batch._rows = model.batch._rows, []
        live = dict(enumerate(streams))
        while live:
            for index, stream in list(live.items()):
                event = next(stream, None)
                if type(event).__name__ == "Finished":
                    ends.append(index)
                    del live[index]
    assert set(ends[:2]) == {0, 1}
    assert set(ends[4:]) == {4, 5}


def test_a_seeded_row_draws_the_same_after_it_had_to_wait(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    wanted = [
        text_of(plugin.run([plugin.start(model, request)])[0])
        for request in requests(temperature=1.0, seed=7)
    ]
    with plugin.backend.stream():
        model.batch._discard()
    model.network = Narrow(model.network, 3, MemoryError())
    found = plugin.run([plugin.start(model, request) for request in requests(temperature=1.0, seed=7)])
    assert [text_of(events) for events in found] == wanted


def test_a_request_for_which_memory_does_not_suffice_alone_ends_and_the_others_go_on(
    plugin: Plugin, tiny: Path, alone: Any
) -> None:
    model = plugin.load(tiny)
    whole = model.network

    class Heavy:
        layers = whole.layers

        def __call__(self, tokens: Any, *args: Any, **more: Any) -> Any:
            if 77 in tokens.flatten().tolist():
                raise RuntimeError(ALLOCATION)
            return whole(tokens, *args, **more)

    assert all(77 not in tokens for tokens in alone)
    model.network = Heavy()
    streams = [plugin.start(model, request) for request in requests()]
    heavy = raw("x")
    heavy = plugin.start(model, type(heavy)(prompt_tokens=[5, 6, 77, 7], params=heavy.params))
    found = plugin.run([*streams[:3], heavy, *streams[3:]])
    assert isinstance(found[3][-1], InsufficientMemoryError)
    assert "Unable to allocate" in str(found[3][-1].__cause__)
    assert [tokens_of(events) for events in (*found[:3], *found[4:])] == alone


def test_prompt_caches_go_when_memory_runs_out(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    plugin.text(model, "a prompt that is long enough to be kept", max_tokens=4)
    assert model.state().caches > 0
    network = Narrow(model.network, 1, MemoryError())
    kept: list[int] = []

    def relieve(before: Any = model.batch._relieve) -> None:
        before()
        kept.append(model.state().caches)

    model.batch._relieve = relieve
    with plugin.backend.stream():
        model.batch._discard()
    model.network = network
    plugin.run([plugin.start(model, request) for request in requests(8)])
    assert kept
    assert set(kept) == {0}


def test_more_rows_come_back_one_by_one_when_nothing_fails_any_more(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "QUIET_STEPS", 8)
    model = plugin.load(tiny)
    model.batch.room = room.Room(4)
    network = model.network = Narrow(model.network, 1, MemoryError())
    plugin.run([plugin.start(model, request) for request in requests(3)[:2]])
    assert model.state().degraded
    network.rows = 99
    plugin.run([plugin.start(model, request) for request in requests(60)])
    assert model.state().degraded is None
    assert network.widest == 4


def quiet_steps(found: room.Room) -> int:
    """How many steps go by until one more row is let in."""
    before, steps = found.now, 0
    while found.now == before:
        found.calm()
        steps += 1
    return steps


def test_a_shortage_after_quiet_steps_doubles_the_patience_and_one_at_once_does_not() -> None:
    found = room.Room(8)
    found.shrink(8, 4)
    found.shrink(4, 2)
    assert (found.now, found.shortages) == (2, 2)
    assert quiet_steps(found) == room.QUIET_STEPS
    found.shrink(3, 2)
    assert quiet_steps(found) == 2 * room.QUIET_STEPS
    while found.now < 8:
        found.calm()
    found.shrink(8, 7)
    assert quiet_steps(found) == room.QUIET_STEPS


def test_rows_that_cannot_enter_for_want_of_memory_wait_for_those_that_are_in(
    plugin: Plugin, tiny: Path, alone: Any
) -> None:
    model = plugin.load(tiny)
    make, failures = model.batch._open, []

    def open_decoder(rows: int) -> Any:
        decoder = make(rows)
        insert = decoder.insert

        def short(row: Any) -> None:
            if len(model.batch._rows) >= 2:
                failures.append(row)
                raise MemoryError
            insert(row)

        decoder.insert = short
        return decoder

    model.batch._open = open_decoder
    found = plugin.run([plugin.start(model, request) for request in requests()])
    assert [tokens_of(events) for events in found] == alone
    assert failures


def test_the_wired_limit_of_a_mac_is_left_as_it_was(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    generate = importlib.import_module("mlx_lm.generate")  # the package has a function of that name
    limit = [7]  # what Metal would be told; a CPU has no such limit

    def set_limit(size: int) -> int:
        before, limit[0] = limit[0], size
        return before

    monkeypatch.setattr(mx, "set_wired_limit", set_limit)
    monkeypatch.setattr(generate, "maybe_set_recommended_wired_limit", lambda: mx.set_wired_limit(10**9))
    model = plugin.load(tiny)
    stream = plugin.start(model, requests()[0])
    with plugin.backend.stream():
        while not stream._answer.tokens:
            next(stream)
        assert limit == [7]
        stream.close()
        mx.set_wired_limit(9)  # what the user says meanwhile stays
        model.batch.close()
    assert limit == [9]


def cost_of_one(model: Any) -> int:
    """Bytes that each of `requests` is charged with."""
    cost: int = model.batch.account.cost_of(len(PROMPTS[0]) + 40)
    return cost


def test_requests_enter_only_as_far_as_there_is_memory_for_them_all(
    plugin: Plugin, tiny: Path, alone: Any
) -> None:
    model = plugin.load(tiny)
    one = cost_of_one(model)
    assert one > 0
    widest, reasons = [0], set()
    model.batch.account.reserved = 2 * one
    model.batch.account.room = lambda: one - model.state().requests - model.state().caches
    streams = [plugin.start(model, request) for request in requests()]
    advance = model.batch.advance

    def watched(budget_ms: float) -> None:
        advance(budget_ms)
        widest[0] = max(widest[0], len(model.batch._rows))
        assert model.batch.cost <= 3 * one
        reasons.add(model.state().degraded)

    model.batch.advance = watched
    found = plugin.run(streams)
    assert [tokens_of(events) for events in found] == alone
    assert widest == [3]
    assert "there is memory for 3 requests at once; 3 wait" in reasons
    assert model.state().degraded is None
    assert model.state().shortages == 0


def test_caches_of_prompts_make_room_for_requests(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    for letter in "abc":
        plugin.text(model, letter * 300, max_tokens=4)
    held = model.state().caches
    one = cost_of_one(model)
    assert held > one
    model.batch.account.reserved = one
    model.batch.account.room = lambda: (
        held - model.state().requests - model.state().caches
    )  # all of it is theirs
    streams = [plugin.start(model, request) for request in requests()[:2]]
    with plugin.backend.stream():
        while any(not stream._answer.tokens for stream in streams):
            for stream in streams:
                next(stream)
        assert len(model.batch._rows) == 2
        assert model.state().caches <= held - one
        for stream in streams:
            stream.close()


def test_a_row_that_was_parked_with_its_cache_still_counts(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "STALL", 4)
    model = plugin.load(tiny)
    readable = dict.fromkeys(range(36, 97), 9.0)
    request = raw("x", max_tokens=40, ignore_eos=True, logit_bias=readable)
    stalled, other = plugin.start(model, request), plugin.start(model, requests()[0])
    plugin.run([other])
    assert stalled._answer.kept is not None
    assert (len(model.batch), model.batch.cost) == (0, stalled._answer.cost)
    found = plugin.run([stalled])
    assert len(tokens_of(found[0])) == 40
    assert model.batch.cost == 0
