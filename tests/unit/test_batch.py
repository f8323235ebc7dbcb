"""Rows that decode together keep their own tokens, however they came and whoever leaves."""

from __future__ import annotations

import mlxengine._machine.backend  # noqa: F401  isort: skip
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest
from mlxengine.toolkit.batch import Batch
from mlxengine.toolkit.row import Row

SIZE = 64


class Plain:
    """A row's cache that holds its tokens."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows


class Several(Plain):
    """A batch's."""

    def extend(self, other: Plain) -> None:
        self.rows = self.rows + other.rows

    def filter(self, keep: Sequence[int]) -> None:
        self.rows = [self.rows[at] for at in keep]

    def extract(self, at: int) -> Plain:
        return Plain([list(self.rows[at])])


class Counting:
    """A network that says the sum of all that a row holds."""

    def merge(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        return [Several([list(part.rows[0]) for part in parts]) for parts in zip(*rows, strict=True)]

    def decode(self, rows: Sequence[Row], tokens: mx.array, layers: list[Any]) -> mx.array:
        assert len(layers[0].rows) == len(rows)
        values: Any = tokens.tolist()
        for held, (token,) in zip(layers[0].rows, values, strict=True):
            held.append(token)
        return logits(layers[0].rows)


def logits(rows: Sequence[Sequence[int]]) -> mx.array:
    return mx.array([[float(token == sum(held) % SIZE) for token in range(SIZE)] for held in rows])


def wanted(prompt: Sequence[int], count: int) -> list[int]:
    held = list(prompt)
    for _ in range(count):
        held.append(sum(held) % SIZE)
    return held[len(prompt) :]


@pytest.mark.parametrize("plain", [True, False])
def test_rows_that_bring_a_token_and_rows_that_bring_a_drawn_one_are_not_mixed_up(plain: bool) -> None:
    network = Counting()
    batch = Batch(network, None, plain=plain)
    said: dict[int, list[int]] = {}
    prompts = {number: [number, 2 * number + 1, 5] for number in range(9)}
    rows = {number: Row(prompts[number]) for number in prompts}

    def join(numbers: Sequence[int], *, drawn: bool) -> None:
        held = [prompts[number] if drawn else prompts[number][:-1] for number in numbers]
        lone = batch.takes_plain and len(numbers) == 1
        made = [[Plain([list(part)])] for part in held]
        batch.join(
            [rows[number] for number in numbers],
            [list(part) for part in held],
            [prompts[number][-1] for number in numbers],
            made[0] if lone else network.merge(made),
            plain=lone,
            logits=logits([prompts[number] for number in numbers]) if drawn else None,
        )

    def step() -> None:
        for item in batch.step():
            said.setdefault(next(n for n, row in rows.items() if row is item.row), []).append(item.token)

    join([0], drawn=True)
    step()
    assert said == {0: wanted(prompts[0], 1)}, "a token that was drawn before is given at once"
    join([1, 2], drawn=False)
    join([3, 4], drawn=True)
    join([5], drawn=False)
    join([6], drawn=True)
    step()
    step()
    batch.remove([rows[0], rows[3], rows[5]])
    join([7], drawn=False)
    join([8], drawn=True)
    step()
    parked, cache = batch.drawn(batch.index(rows[4]) or 0), batch.cache(batch.index(rows[4]) or 0)
    batch.remove([rows[number] for number in (1, 2, 4, 6, 7)])
    assert type(batch.layers[0]) is (Plain if plain else Several), "the row that is left is alone"
    step()
    for number, tokens in said.items():
        assert tokens == wanted(prompts[number], len(tokens)), number
    assert {number: len(tokens) for number, tokens in said.items()} == {
        0: 3,
        1: 2,
        2: 2,
        3: 2,
        4: 3,
        5: 1,
        6: 3,
        8: 2,
    }
    assert parked is not None
    assert [*said[4], parked.token] == wanted(prompts[4], 4)
    assert cache[1] == [*prompts[4], *said[4]] == cache[0][0].rows[0]
