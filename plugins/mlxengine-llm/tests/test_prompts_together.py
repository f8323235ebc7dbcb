"""Prompts that wait are read together: on a simulated device, no dearer than in mlx-lm's own batch."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from attrs import frozen
from llm_harness import Plugin, tokens_of, write_tiny
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load_model
from mlxengine import GenerateParams, TextRequest
from mlxengine.toolkit.pace import Pace
from mlxengine.toolkit.shapes import Shapes
from simulated_device import SimulatedDevice

PROMPTS, LENGTH, NEW = 16, 512, 64
RUNNING, QUIET, AFTER = 4, 40, 200
LONG, LONG_LENGTH, LONG_NEW = 8, 4096, 32
A_TOKEN = 10e-6  # where prompts are long; a 1B model's on a large GPU


@frozen
class Wave:
    """Requests that come at once: their prompts' tokens, and the tokens that each answer has."""

    prompts: tuple[tuple[int, ...], ...]
    new: int


@frozen
class Served:
    """What became of a piece of work.

    Args:
        seconds: in all, on the device's clock.
        passes: in all.
        at: when each token of each request came, wave after wave, from the start of the work on.
        began: when each wave came.
    """

    seconds: float
    passes: int
    at: list[list[float]]
    began: list[float]

    def first(self, wave: Wave) -> float:
        """Median time to the first token of the requests of the last wave."""
        return statistics.median(row[0] - self.began[-1] for row in self.at[-len(wave.prompts) :])


def wave(count: int, length: int, new: int, *, seed: int = 0) -> Wave:
    return Wave(
        tuple(tuple(3 + (seed * 131 + 17 * i + 7 * j) % 200 for j in range(length)) for i in range(count)),
        new,
    )


def by_mlx_lm(network: Any, device: SimulatedDevice, waves: Sequence[Wave], after: int = 0) -> Served:
    """Serve on a ``BatchGenerator`` as it comes; each later wave after so many tokens of the first answer."""
    device.forget()
    generator = BatchGenerator(network, max_tokens=1)
    start, at, began, coming = device.now(), {}, [], list(waves)
    live = 0
    with device.clock():
        while live or coming:
            if coming and (not began or len(at[0]) >= after):
                began.append(device.now() - start)
                new = coming.pop(0)
                live += len(new.prompts)
                uids = generator.insert([list(one) for one in new.prompts], [new.new] * len(new.prompts))
                at.update({uid: [] for uid in uids})
            _, answers = generator.next()
            for answer in answers:
                at[answer.uid].append(device.now() - start)
                live -= answer.finish_reason is not None
    generator.close()
    return Served(device.now() - start, len(device.passes), list(at.values()), began)


def by_us(
    plugin: Plugin, model: Any, device: SimulatedDevice, waves: Sequence[Wave], after: int = 0
) -> Served:
    """The same work on the plugin, whose iterators take turns as under the engine's scheduler."""
    device.forget()
    start, coming = device.now(), list(waves)
    streams: list[Any] = []
    at: list[list[float]] = []
    began: list[float] = []
    live: set[int] = set()

    def note(answer: Any, times: list[float]) -> None:
        """When tokens come, not when their events are read: bytes that are no text yet give none."""
        take = answer.take

        def noted(token: int, logprobs: Any) -> None:
            times.append(device.now() - start)
            take(token, logprobs)

        answer.take = noted

    with device.clock():
        while live or coming:
            if coming and (not began or len(at[0]) >= after):
                began.append(device.now() - start)
                new = coming.pop(0)
                params = GenerateParams(max_tokens=new.new, temperature=0, ignore_eos=True)
                for one in new.prompts:
                    live.add(len(streams))
                    streams.append(plugin.start(model, TextRequest(prompt_tokens=list(one), params=params)))
                    at.append([])
                    note(streams[-1]._answer, at[-1])
            with plugin.backend.stream():
                for i in sorted(live):
                    if next(streams[i], self := object()) is self:
                        live.remove(i)
    return Served(device.now() - start, len(device.passes), at, began)


def both(
    plugin: Plugin, folder: Path, *rounds: Sequence[Wave], after: int = 0, **device: Any
) -> list[tuple[Served, Served]]:
    """Rounds of work, ours and mlx-lm's, each on a device of its own that knows no shape at first."""
    mine, theirs = SimulatedDevice(**device), SimulatedDevice(**device)
    model = plugin.load(folder, flags={"prompt_cache": False})
    with plugin.backend.stream():
        model.trial.hold()  # when a model is loaded, where shapes are dear
    mine.put(model.network)
    model.shapes = Shapes(mine.a_shape)  # what is measured of a device when a model is loaded
    network = theirs.put(load_model(folder)[0])
    return [
        (by_us(plugin, model, mine, waves, after), by_mlx_lm(network, theirs, waves, after))
        for waves in rounds
    ]


@pytest.fixture(scope="session")
def tiniest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that a CPU reads long prompts with in no time."""
    return write_tiny(
        tmp_path_factory.mktemp("tiniest") / "llama",
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8192,
    )


def burst(round_: int) -> list[Wave]:
    return [wave(PROMPTS, LENGTH, NEW, seed=round_)]


def check_burst(found: Sequence[tuple[Served, Served]]) -> None:
    (cold, cold_theirs), *warm = found
    for ours, theirs in warm:
        assert ours.seconds <= 1.05 * theirs.seconds
        assert ours.first(burst(0)[0]) <= 1.1 * theirs.first(burst(0)[0])
    assert cold.seconds <= 1.2 * cold_theirs.seconds, "shapes that are new may cost, but few are"


def test_the_simulated_device_charges_a_pass_its_tokens_and_each_new_shape_once(tiny: Path) -> None:
    device = SimulatedDevice(a_pass=1.0, a_token=0.5, a_shape=100.0)
    network = device.put(load_model(tiny)[0])
    with device.clock() as now:
        began = now()
        for shape in ((2, 3), (2, 3), (3, 2)):
            network(mx.ones(shape, mx.int32))
        assert now() - began == time.monotonic() - began == 3 * (1.0 + 6 * 0.5) + 2 * 100.0
    assert (len(device.passes), len(device.shapes), device.tokens) == (3, 2, 18)


@pytest.mark.parametrize(("worth", "sizes"), [(100, [8]), (50, [4, 2, 1])])
def test_blank_rows_make_up_the_size_of_a_pass_where_another_costs_more(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch, worth: int, sizes: list[int]
) -> None:
    """``worth``: tokens that are read in the time that a pass takes for itself."""
    monkeypatch.setattr(Pace, "worth", worth)
    params = GenerateParams(max_tokens=8, temperature=0, ignore_eos=True)
    asked = [TextRequest(prompt_tokens=list(one), params=params) for one in wave(7, 100, 8).prompts]
    device = SimulatedDevice()
    model = plugin.load(tiny, flags={"prompt_cache": False})
    alone = [tokens_of(plugin.run([plugin.start(model, one)])[0]) for one in asked]
    device.put(model.network)
    model.trial.done = True
    model.shapes = Shapes(device.a_shape)
    model.batch.close()
    with device.clock():
        together = plugin.run([plugin.start(model, one, budget_ms=1000.0) for one in asked])
    assert [rows for rows, positions in device.passes if positions > 1] == sizes
    assert [tokens_of(events) for events in together] == alone


@pytest.mark.parametrize("cache_step", [None, 256])
def test_many_prompts_at_once_take_no_more_passes_than_in_mlx_lms_batch(
    plugin: Plugin, tiny: Path, cache_step: int | None
) -> None:
    found = both(plugin, tiny, burst(0), burst(1), burst(2), cache_step=cache_step)
    check_burst(found)
    for ours, theirs in found[1:]:
        assert ours.passes <= 1.05 * theirs.passes


def test_many_prompts_at_once_take_no_longer_by_the_clock_than_in_mlx_lms_batch(
    plugin: Plugin, tiniest: Path
) -> None:
    check_burst(both(plugin, tiniest, burst(0), burst(1), sleeps=True))


@pytest.mark.feature("llm.stall_factor")
def test_long_prompts_into_running_answers_stall_nobody_and_cost_what_they_cost_mlx_lm(
    plugin: Plugin, tiniest: Path
) -> None:
    def work(seed: int) -> list[Wave]:
        return [wave(RUNNING, 16, QUIET + AFTER, seed=seed), wave(LONG, LONG_LENGTH, LONG_NEW, seed=seed + 7)]

    rounds = [work(seed) for seed in range(4)]  # the first ones meet new shapes, which take 18 passes each
    ours, theirs = both(plugin, tiniest, *rounds, after=QUIET, a_token=A_TOKEN)[-1]
    arrived, running, joined = ours.began[1], ours.at[:RUNNING], ours.at[RUNNING:]
    gaps = [(b, b - a) for row in running for a, b in itertools.pairwise(row)]
    quiet = statistics.median(gap for at, gap in gaps if at < arrived)
    last = max(row[0] for row in joined)
    busy = sorted(gap for at, gap in gaps if arrived <= at <= last)
    assert min(row[-1] for row in running) > last, "they run as long as there is something to wait for"
    assert busy[int(0.99 * len(busy))] <= 10 * quiet
    assert ours.seconds <= 1.03 * theirs.seconds, "five passes more of 230: what the bound costs"


def test_pieces_of_prompts_have_few_sizes_whatever_a_step_may_read() -> None:
    rng, shapes, met = random.Random(3), Shapes(1.0), set()
    for _ in range(200):
        length, start = rng.randrange(1, 4096), 0
        while start < length:
            may = rng.choice([64, 96, 128, 192, 256, 768, 1024, 1536, 3072, 4096])
            count = shapes.piece(start, length - start, may)
            assert 0 < count <= may
            if start + count < length:
                met.add((count, start + count))
            elif start:
                assert count <= start & -start, "the last one is as those before it, or shorter"
            start += count
    ends = {count: {end for size, end in met if size == count} for count, _ in met}
    assert set(ends) == {64, 128, 256, 512, 1024, 2048}
    assert all(end % count == 0 for count, found in ends.items() for end in found)


def test_a_piece_behind_a_kept_beginning_comes_to_the_next_border() -> None:
    shapes = Shapes(1.0)
    assert [shapes.piece(777, 5000, may) for may in (64, 256, 4096)] == [64, 247, 247]
    assert shapes.piece(777, 100, 4096) == 100
    assert [shapes.piece(1024, left, 4096) for left in (9000, 3071, 1000)] == [1024, 1024, 1000]
    assert shapes.piece(777, 5000, 50) == 50
    assert Shapes(0.0).piece(777, 5000, 3000) == 3000, "where new sizes are cheap"


def test_after_warming_up_a_burst_meets_no_new_size(plugin: Plugin, tiniest: Path) -> None:
    device = SimulatedDevice(a_token=A_TOKEN)
    model = plugin.load(tiniest, flags={"prompt_cache": False})
    device.put(model.network)
    model.shapes = Shapes(device.a_shape)
    with device.clock(), plugin.backend.stream():
        warming = model.warm_up()
        next(warming)
        warming.close()
        assert sum(1 for _ in model.warm_up()) > 10, "a step at a time"
    assert len(model.batch) == 0
    met = set(device.shapes)
    (found,) = [by_us(plugin, model, device, burst(0))]
    assert set(device.shapes) == met
    assert found.first(burst(0)[0]) < device.a_shape, "nobody has waited for a size"
    assert max(rows for rows, _ in met) == model.max_rows
    by_us(plugin, model, device, [wave(11, LENGTH, NEW, seed=1)])
    read = {(rows, length) for rows, length in set(device.shapes) - met if length > 1}
    assert read == set(), "however many come"


def test_after_warming_up_long_prompts_into_running_answers_meet_no_new_size(
    plugin: Plugin, tiniest: Path
) -> None:
    device = SimulatedDevice(a_token=A_TOKEN)
    model = plugin.load(tiniest, flags={"prompt_cache": False})
    device.put(model.network)
    model.shapes = Shapes(device.a_shape)
    with device.clock(), plugin.backend.stream():
        list(model.warm_up())
    met = set(model.shapes._met)
    running, joining = wave(RUNNING, 16, QUIET + AFTER), wave(LONG, LONG_LENGTH, LONG_NEW, seed=7)
    by_us(plugin, model, device, [running, joining])
    assert set(model.shapes._met) == met


def test_where_new_sizes_are_cheap_warming_up_is_one_prompt(plugin: Plugin, tiniest: Path) -> None:
    device = SimulatedDevice()
    model = plugin.load(tiniest, flags={"prompt_cache": False})
    device.put(model.network)
    with device.clock(), plugin.backend.stream():
        list(model.warm_up())
    assert len(device.passes) <= 3
