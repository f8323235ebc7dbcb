"""What the engine asks of mlx itself."""

from collections.abc import Iterator

import pytest
from mlxengine._machine.backend import limit_cache

import mlx.core as mx  # isort: skip


@pytest.fixture
def unlimited() -> Iterator[None]:
    before = mx.set_cache_limit(1 << 50)
    yield
    mx.set_cache_limit(before)


@pytest.mark.usefixtures("unlimited")
def test_mlx_keeps_an_eighth_of_a_gpus_memory_at_most() -> None:
    assert limit_cache(64 << 30) == 8 << 30
    assert mx.set_cache_limit(1 << 50) == 8 << 30


@pytest.mark.usefixtures("unlimited")
def test_a_smaller_limit_that_was_set_before_stays() -> None:
    mx.set_cache_limit(1 << 20)
    assert limit_cache(64 << 30) == 1 << 20
    assert mx.set_cache_limit(1 << 50) == 1 << 20


@pytest.mark.usefixtures("unlimited")
def test_where_the_memory_is_unknown_nothing_is_set() -> None:
    assert limit_cache(None) is None
    assert mx.set_cache_limit(1 << 50) == 1 << 50
