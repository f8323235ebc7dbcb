"""Memory is charged as caches grow, and where they cannot all grow, fewer rows go on: in order, none lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import attrs
import pytest
from llm_harness import Plugin, raw, text_of, tokens_of, write_tiny
from mlxengine import Grammar, InferenceEngine
from mlxengine.errors import InsufficientMemoryError

STEP = 16  # tokens that caches are charged by here, as if they grew by these
STEPS = 4  # of growth, that each of the rows below takes at its end
TOKENS = (STEPS - 1) * STEP + 10


def asked(number: int, **more: Any) -> Any:
    sampling = {"temperature": 1.0, "seed": number} if number % 2 else {"temperature": 0}
    request = raw(f"row {number:02}", max_tokens=TOKENS, ignore_eos=True, **sampling)
    return attrs.evolve(request, **more)


def bounded(model: Any, steps: int, step: int = STEP) -> None:
    """Give a model's requests memory for caches of so many steps of growth in all, half of them set aside."""
    account = model.batch.account
    account.step = step
    account._known.clear()
    whole = steps * account.cost_of(step)
    account.reserved = whole // 2
    account.room = lambda: whole - account.reserved - model.state().requests - model.state().caches
    model.prefixes.room = account.room


class Watched:
    """A batch's rows after each of its steps, in none of which the account is exceeded.

    ``shed`` are the rows that made way, in order, each with those that went on.
    """

    def __init__(self, model: Any, steps: int) -> None:
        self.inside: list[list[Any]] = []
        self.shed: list[tuple[Any, list[Any]]] = []
        self._model = model
        self._whole = steps * model.batch.account.cost_of(STEP)
        advance, take_out = model.batch.advance, model.batch._take_out

        def step(budget_ms: float) -> None:
            advance(budget_ms)
            self._look()

        def leave(rows: list[Any]) -> None:
            take_out(rows)
            self.shed += [(row, list(model.batch._rows)) for row in rows if not (row.done or row.failure)]

        model.batch.advance, model.batch._take_out = step, leave

    def _look(self) -> None:
        batch, account = self._model.batch, self._model.batch.account
        assert all(row.size <= row.charged for row in batch._rows)
        assert sum(account.cost_of(row.size) for row in batch.caching) <= batch.cost <= self._whole
        state = self._model.state()
        assert state.requests + state.caches <= self._whole - account.reserved
        self.inside.append(list(batch._rows))


@pytest.fixture(scope="module")
def alone(tiny: Path) -> list[list[int]]:
    """What each request gives when it is served alone."""
    plugin = Plugin()
    model = plugin.load(tiny)
    try:
        return [tokens_of(plugin.run([plugin.start(model, asked(number))])[0]) for number in range(16)]
    finally:
        plugin.close()


def test_16_rows_that_cannot_all_grow_end_each_as_alone_and_the_newest_make_way(
    plugin: Plugin, tiny: Path, alone: list[list[int]]
) -> None:
    model = plugin.load(tiny)
    bounded(model, 2 * 16)
    seen = Watched(model, 2 * 16)
    streams = [plugin.start(model, asked(number), prompt_cache=False) for number in range(16)]
    found = plugin.run(streams)
    assert [tokens_of(events) for events in found] == alone
    assert seen.inside[8] == [stream._answer for stream in streams], "at first there is room for them all"
    assert len(seen.shed) >= 16 - 32 // STEPS
    for gone, others in seen.shed:
        assert all(gone.since > other.since for other in others), "the newest make way"
    assert model.state().shortages == 0
    assert (len(model.batch), model.batch.cost, model.state().kv_used) == (0, 0, 0)


def test_of_rows_of_two_priorities_those_of_the_lower_make_way(
    plugin: Plugin, tiny: Path, alone: list[list[int]]
) -> None:
    model = plugin.load(tiny)
    bounded(model, 8)
    seen = Watched(model, 8)
    streams = [plugin.start(model, asked(number, priority=number % 2)) for number in range(4)]
    found = plugin.run(streams)
    assert [tokens_of(events) for events in found] == alone[:4]
    rows = [stream._answer for stream in streams]
    assert [rows.index(row) for row, _ in seen.shed][:2] == [2, 0]


def test_what_a_row_had_read_is_found_again_and_not_told_as_found(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    requests = [raw(f"{number}" * 100, max_tokens=500, ignore_eos=True) for number in range(2)]
    alone = [tokens_of(plugin.run([plugin.start(model, item, prompt_cache=False)])[0]) for item in requests]
    bounded(model, 5, step=256)
    model.trim(0)
    streams = [plugin.start(model, item, prompt_cache=item is requests[1]) for item in requests]
    finds: list[int] = []
    find = model.prefixes.find

    def noted(tokens: Any) -> Any:
        found = find(tokens)
        finds.append(len(found[1]) if found else 0)
        return found

    model.prefixes.find = noted
    found = plugin.run(streams)
    assert [tokens_of(events) for events in found] == alone
    assert {events[-1].usage.cached_tokens for events in found} == {0}
    assert finds == [0, 355], "it made way when 356 tokens were there"


def test_a_row_that_cannot_grow_alone_fails_with_what_is_missing_and_the_others_go_on(
    plugin: Plugin, tiny: Path, alone: list[list[int]]
) -> None:
    model = plugin.load(tiny)
    bounded(model, 3)
    short = attrs.evolve(asked(5), params=attrs.evolve(asked(5).params, max_tokens=50))
    wanted = tokens_of(plugin.run([plugin.start(model, short)])[0])
    found = plugin.run([plugin.start(model, request) for request in (asked(0), short)])
    error = found[0][-1]
    assert isinstance(error, InsufficientMemoryError)
    assert f"{3 * STEP} tokens so far" in error.message
    assert "memory_budget" in str(error.hint)
    assert tokens_of(found[0][:-1]) == alone[0][: 3 * STEP - len("row 00")]
    assert tokens_of(found[1]) == wanted
    assert (len(model.batch), model.batch.cost) == (0, 0)


def test_a_prompt_for_which_there_is_no_room_alone_fails_before_it_is_read(
    plugin: Plugin, tiny: Path
) -> None:
    model = plugin.load(tiny)
    bounded(model, 3)
    found = plugin.run([plugin.start(model, raw("x" * size, max_tokens=2)) for size in (3 * STEP, 3)])
    assert isinstance(found[0][-1], InsufficientMemoryError)
    assert len(tokens_of(found[1])) == 2


def test_a_row_is_charged_for_a_step_ahead_and_for_no_more_than_its_longest_answer(
    plugin: Plugin, tiny: Path
) -> None:
    model = plugin.load(tiny)
    cost = model.batch.account.cost_of
    for most, charged in ((10, 16), (None, 6 + 256), (2000, 6 + 256)):
        stream = plugin.start(model, raw("row 00", max_tokens=most, ignore_eos=True))
        with plugin.backend.stream():
            while not stream._answer.tokens:
                next(stream)
            assert (stream._answer.charged, model.batch.cost) == (charged, cost(charged))
            assert model.state().kv_used == cost(stream._answer.size) <= model.state().kv_total
            stream.close()
        assert model.batch.cost == 0


def test_a_batchs_caches_are_as_long_as_its_longest_row_and_are_charged_so(
    plugin: Plugin, tiny: Path
) -> None:
    model = plugin.load(tiny)
    long, *short = (raw("x" * size, max_tokens=90, ignore_eos=True) for size in (1500, 3, 4, 5))
    streams = [plugin.start(model, request, prompt_cache=False) for request in (long, *short)]
    with plugin.backend.stream():
        while len(model.batch._rows) < 4 or any(not row.tokens for row in model.batch._rows):
            for stream in streams:
                next(stream)
        held = sum(layer.nbytes for layer in model.batch._decoder._batch.layers)
        assert model.state().kv_used == pytest.approx(held, rel=0.15)
        assert model.state().kv_used <= model.batch.cost
        streams[0].close()
        places = 3 + model.batch._decoder.spare
        assert model.state().kv_used == places * model.batch.account.cost_of(256)
        for stream in streams:
            stream.close()
    assert (model.batch.cost, model.state().kv_used) == (0, 0)


def test_a_stalled_readers_cache_goes_before_those_of_rows_that_run(
    plugin: Plugin, tiny: Path, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxengine.toolkit import rows

    monkeypatch.setattr(rows, "STALL", 4)
    model = plugin.load(tiny)
    readable = dict.fromkeys(range(36, 97), 9.0)
    slow = raw("x", max_tokens=40, ignore_eos=True, logit_bias=readable)
    wanted = tokens_of(plugin.run([plugin.start(model, slow)])[0])
    bounded(model, STEPS)
    stalled, other = plugin.start(model, slow, prompt_cache=False), plugin.start(model, asked(0))
    assert tokens_of(plugin.run([other])[0]) == alone[0]
    assert stalled._answer.aside
    assert stalled._answer.kept is None
    assert model.batch.cost == 0
    assert tokens_of(plugin.run([stalled])[0]) == wanted


def test_an_answer_with_a_grammar_goes_on_where_it_was(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    request = raw("row 99", grammar=Grammar.regex(r"[a-z]{70}"), max_tokens=90)
    wanted = text_of(plugin.run([plugin.start(model, request, prompt_cache=False)])[0])
    bounded(model, 5)
    seen = Watched(model, 5)
    other = plugin.start(model, asked(0), prompt_cache=False)
    found = plugin.run([other, plugin.start(model, request, prompt_cache=False)])
    assert text_of(found[1]) == wanted
    assert [gone.grammar is None for gone, _ in seen.shed] == [False]


@pytest.mark.parametrize("seed", range(4))
def test_in_a_random_room_every_row_ends_as_alone_or_is_told_that_it_does_not_fit(
    plugin: Plugin, tiny: Path, seed: int
) -> None:
    chance = random.Random(seed)
    steps = chance.randrange(1, 9)
    model = plugin.load(tiny, flags={"max_batch": chance.choice((2, 4, 8)), "preemption": bool(seed % 2)})

    def start(number: int, length: int, most: int, priority: int) -> Any:
        request = raw("q" * length, max_tokens=most, ignore_eos=True, temperature=1.0, seed=number)
        cached = bool(number % 3)
        return plugin.start(model, attrs.evolve(request, priority=priority), prompt_cache=cached)

    plan = [
        (number, chance.randrange(1, 40), chance.randrange(1, 70), chance.randrange(3))
        for number in range(20)
    ]
    alone = [tokens_of(plugin.run([start(*item)])[0]) for item in plan]
    bounded(model, steps)
    model.trim(0)
    Watched(model, steps)
    turns = {number: chance.randrange(60) for number in chance.sample(range(20), 5)}
    later: dict[int, list[Any]] = {}
    order: list[int] = []
    for turn, item in sorted((chance.randrange(60), item) for item in plan):
        order.append(item[0])
        later.setdefault(turn, []).append(lambda item=item: Cancelled(start(*item), turns.get(item[0])))
    for number, events in zip(order, plugin.run([], later=later), strict=True):
        said, size = tokens_of(events), plan[number][1] + plan[number][2]
        assert said == alone[number][: len(said)]
        if number in turns:
            continue
        if size <= steps * STEP:
            assert said == alone[number]
        else:
            assert isinstance(events[-1], InsufficientMemoryError)
    assert (len(model.batch), model.batch.cost, model.state().kv_used) == (0, 0, 0)
    assert model.state().requests == 0


class Cancelled:
    """A stream that is closed at one of its turns."""

    def __init__(self, stream: Any, turn: int | None) -> None:
        self.stream, self.turn = stream, turn

    def __next__(self) -> Any:
        if self.turn is not None:
            self.turn -= 1
            if self.turn < 0:
                self.stream.close()
                raise StopIteration
        return next(self.stream)


def test_a_request_that_does_not_fit_alone_is_served_when_an_idle_model_has_left(
    tiny: Path, tmp_path: Path
) -> None:
    large = write_tiny(tmp_path / "large", max_position_embeddings=8192)
    long = raw("x" * 4500, max_tokens=2, ignore_eos=True)
    with InferenceEngine() as engine:
        for folder in (tiny, large):
            engine.load_text(str(folder))
        budget = engine.memory().reserved + 2**16
    with InferenceEngine(memory_budget=budget) as engine:
        idle, model = (engine.load_text(str(folder)) for folder in (tiny, large))
        assert len(tokens_of(list(model.stream(long)))) == 2
        assert [gone.id for gone in engine.memory().evictions] == [idle.configuration.id]
    with InferenceEngine(memory_budget=budget, features={"core.degrade": False}) as engine:
        _idle, model = (engine.load_text(str(folder)) for folder in (tiny, large))
        with pytest.raises(InsufficientMemoryError, match="4500 tokens so far"):
            list(model.stream(long))
