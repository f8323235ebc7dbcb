"""Ranks do the same in the same order, whatever comes and leaves; where one does not, all are ended."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from mlxengine.errors import RankLostError
from mlxengine.toolkit.rows import Plan, SharedBatch
from mlxengine_shard import _ranks
from mlxengine_shard._line import packed
from mlxengine_shard._mirror import Mirror
from mlxengine_shard._ranks import Ranks
from shard_harness import Told, alone, opened, running, settings

SHARED = list(range(3, 43))


@pytest.fixture(scope="module")
def ranks(tiny: Path) -> Iterator[Ranks]:
    found = Ranks(settings(tiny))
    yield found
    found.end("the test is over")


def play(ranks: Ranks, whole: Mirror, seed: int) -> None:
    """Random requests that come, leave and are parked; those that end say what they say alone."""
    chance = random.Random(seed)
    batch = SharedBatch(lambda _: opened(ranks), max_rows=4, first_piece=16)
    live: list[Told] = []
    for _ in range(chance.randint(6, 14)):
        act = chance.random()
        if act < 0.45:
            prompt = SHARED[: chance.randint(1, 40)] + [chance.randrange(3, 200)] * chance.randint(1, 30)
            live.append(Told(prompt, chance.randint(1, 8), scored=chance.random() < 0.3))
            batch.admit(live[-1])
        elif act < 0.6 and live:
            batch.remove(live.pop(chance.randrange(len(live))))
        elif act < 0.75 and live and batch._decoder is not None:
            row = chance.choice(live)
            if row.inside and not row.done:
                batch._park(batch._decoder, row)
                if chance.random() < 0.3:
                    batch._forget(row)
        else:
            batch.advance(100.0)
    for row in live:
        while not row.done:
            assert row.failure is None
            if not row.inside:
                batch.admit(row)
            batch.advance(100.0)
        assert row.tokens == alone(whole._network, whole._caches(), row)
    batch.close()


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Mirror:
    return Mirror(attrs.asdict(settings(tiny, 1)), mx.distributed.init(), lambda _rows, _logits: [])


@pytest.mark.parametrize(
    "seeds", [range(10), pytest.param(range(10, 510), marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_random_sequences(ranks: Ranks, whole: Mirror, seeds: range) -> None:
    generation = max(1, ranks.generation)
    for seed in seeds:
        play(ranks, whole, seed)
    assert ranks.generation == generation  # no digest differed


def test_a_rank_that_was_told_something_else_says_so(tiny: Path) -> None:
    def digests(second: dict[str, Any]) -> list[str]:
        mirror = Mirror(attrs.asdict(settings(tiny, 1)), mx.distributed.init(), lambda _rows, _logits: [])
        insert = {"call": "insert", "number": 1, "prompt": SHARED, "tokens": [], "priority": 0, "since": 0.0}
        insert |= {"reuse": True, "plain": True, "after": None, "kept": None}
        said = [mirror.answer({"room": None, "gone": [], **call}, b"same") for call in (insert, second)]
        return [str(answer["digest"]) for answer in said]

    step = {"call": "step", "plan": {"tokens": 16}}
    same = digests(step)
    assert digests(step) == same
    longer = digests({"call": "step", "plan": {"tokens": 24}})  # other lengths of caches, the same words
    assert longer[0] == same[0]
    assert longer[1] != same[1]


def test_digests_that_differ_end_all_ranks(ranks: Ranks) -> None:
    ranks.start()
    while not ranks.poll(0.1):
        pass
    before = set(ranks.pids)
    assert before <= set(running())
    ranks._lines[1].send(packed({"call": "trim", "most": 0, "room": None, "gone": []}))
    while not ranks._lines[1].read().message:
        pass
    with pytest.raises(RankLostError, match="rank 1 did something else"):
        ranks.call("tidy", 30.0)
    assert not before & set(running())


def test_of_ranks_that_wait_for_another_the_one_that_is_stopped_is_named(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ranks, "SILENCE", 1.5)
    decoder = opened(ranks)
    while not ranks.poll(0.1):
        pass
    decoder.insert(Told([3, 4], 4, scored=False))
    decoder.step(Plan(tokens=16))
    os.kill(ranks.pids[1], signal.SIGSTOP)  # rank 0 waits for its part of a sum, and beats
    with pytest.raises(RankLostError, match="rank 1 is stopped or hangs"):
        decoder.step(Plan(tokens=16))
    assert ranks.pids == []


@pytest.mark.slow
def test_a_row_whose_ranks_are_lost_again_and_again_fails_with_a_typed_error(tmp_path: Path) -> None:
    ranks = Ranks(settings(tmp_path / "nothing"))
    batch = SharedBatch(lambda _: opened(ranks))
    row = Told([3, 4], 2, scored=False)
    batch.admit(row)
    while row.failure is None:
        batch.advance(100.0)
    assert isinstance(row.failure, RankLostError)
    assert "rank" in str(row.failure)
    assert ranks.generation == 2
    assert ranks.pids == []


def test_what_is_not_mirrored_has_no_name(tiny: Path) -> None:
    assert sorted(Mirror.CALLS) == [
        "close", "insert", "open", "park", "remove", "step", "tidy", "trim",
    ]  # fmt: skip
