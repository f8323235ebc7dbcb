"""Blocks of flow transformers as a GPU runs them, tried where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "extras"))

import tiny_adapters as a
import tiny_flux2 as f
import tiny_kit as k
import tiny_z_image as z


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxengine.toolkit import launching

    monkeypatch.setattr(launching, "on_gpu", lambda: True)


class Block:
    """Launches are noted, and what it answers knows its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, fails: int | None = None) -> int:
        if self.number == fails:
            raise ValueError
        return self.number


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_a_block_waits_until_no_more_than_so_many_before_it_are_not_done(
    monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    import mlx.core as mx
    from mlxengine.toolkit.launching import waiting

    said: list[tuple[str, int]] = []
    monkeypatch.setattr(mx, "async_eval", lambda made: said.append(("launch", made)))
    monkeypatch.setattr(mx, "eval", lambda made: said.append(("wait", made)))
    blocks = [Block(number) for number in range(5)]
    waiting(blocks, ahead)
    wanted = []
    for number in range(5):
        wanted.append(("launch", number))
        if number >= ahead:
            wanted.append(("wait", number - ahead))
    with pytest.raises(ValueError):
        for block in blocks:
            block(3)
    said.clear()
    for _ in range(2):  # nothing of the pass that failed is waited for, nor of the one before
        assert [block() for block in blocks] == [0, 1, 2, 3, 4]
        assert said == wanted
        said.clear()


@pytest.mark.parametrize(("module", "name", "guidance"), [(f, "flux2", 1.0), (z, "z_image", 0.0)])
def test_blocks_that_wait_make_the_same_picture_of_every_model(
    tmp_path: Path,
    load_pipeline: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    guidance: float,
) -> None:
    import mlx.core as mx
    from mlxengine.toolkit import launching

    folder = module.write(tmp_path / "x")
    job, noise = a.job(module, guidance), mx.array(a.noise(name))
    usual = k.pixels(load_pipeline(folder), job, noise)
    with monkeypatch.context() as patch:
        patch.setattr(launching, "on_gpu", lambda: True)
        waits = load_pipeline(folder)
    launched: list[Any] = []
    launch = mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda made: launched.append(1) or launch(made))
    assert np.array_equal(k.pixels(waits, job, noise), usual)
    with waits.parts.use("transformer") as network:
        kinds = (
            "transformer_blocks",
            "single_transformer_blocks",
            "noise_refiner",
            "context_refiner",
            "layers",
        )
        blocks = sum(len(network[kind]) for kind in kinds if kind in network)
    with waits.parts.use("text_encoder") as network:
        read = len(network.layers)
    assert len(launched) >= job.steps * blocks + read


@pytest.mark.usefixtures("as_on_gpu")
def test_functions_that_are_one_kernel_compute_what_their_operations_do() -> None:
    import mlx.core as mx
    from mlxengine_diffusion.backends import _gpu

    numbers = np.random.RandomState(0)

    def random(*shape: int) -> mx.array:
        return mx.array(numbers.standard_normal(shape).astype(np.float32))

    for places in (3, 7):  # compiled once, for every shape
        x, gate, y = random(1, places, 8), random(1, 1, 8), random(1, places, 8)
        pairs, by = random(1, places, 2, 1, 4), random(places, 1, 2, 4)
        for function, values in (
            (_gpu._modulated, (x, gate, gate)),
            (_gpu.scaled, (x, gate)),
            (_gpu.added, (x, gate, y)),
            (_gpu.gated, (x, y)),
            (_gpu._turned, (pairs, pairs + 1, by, by - 1)),
        ):
            difference = mx.abs(function(*values) - function.__wrapped__(*values)).max()  # type: ignore[attr-defined]
            assert difference.item() <= 1e-5


def test_attention_of_turned_heads_is_that_of_pairs_turned_where_they_stand() -> None:
    import mlx.core as mx
    from mlxengine_diffusion.backends._gpu import attended, turns

    numbers = np.random.RandomState(0)
    q, k_, v = (numbers.standard_normal((1, 5, 2, 8)) for _ in range(3))
    angles = numbers.standard_normal((5, 4))

    def turned(x: Any) -> Any:
        both = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
        return np.stack([both.real, both.imag], axis=-1).reshape(x.shape)

    scores = np.exp(np.einsum("bqhd,bkhd->bhqk", turned(q), turned(k_)) / np.sqrt(8))
    wanted = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), v).reshape(1, 5, 16)
    rows = [mx.array(x.astype(np.float32)) for x in (q, k_, v)]
    by = turns(mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32)))
    words, picture = tuple(x[:, :2] for x in rows), tuple(x[:, 2:] for x in rows)
    for parts in ((tuple(rows),), (words, picture)):
        assert np.abs(np.array(attended(by, *parts)) - wanted).max() <= 1e-5  # type: ignore[arg-type]
