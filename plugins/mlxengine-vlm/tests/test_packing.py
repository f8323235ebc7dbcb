"""Packed key-value caches under pictures: answers as right as before, and a word where there can be none."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import FeatureUnavailableError
from vlm_checkpoints import lay_out
from vlm_harness import TINY, Plugin, asking, text_of
from vlm_pictures import Thing, draw

pytestmark = pytest.mark.feature("vlm.kv_bits")
SHAPES = ("circle", "square", "triangle")


def test_pictures_are_seen_through_packed_caches_alone_and_together(plugin: Plugin) -> None:
    requests = [
        asking("Describe the picture as JSON.", draw([Thing(shape, colour, cell)]))
        for shape in SHAPES
        for cell, colour in enumerate(("red", "green", "blue"))
    ]
    wanted = [
        f'{{"colour": "{colour}", "shape": "{shape}"}}'
        for shape in SHAPES
        for colour in ("red", "green", "blue")
    ]
    for bits in (8, 4):
        model = plugin.load(TINY, flags={"kv_bits": bits})
        alone = [plugin.answer(model, request, prompt_cache=False) for request in requests]
        again = [plugin.answer(model, request) for request in (*requests, *requests)]
        together = plugin.run([plugin.start(model, request, prompt_cache=False) for request in requests])
        assert [text.strip() for text in alone] == wanted
        assert again == [*alone, *alone]
        assert [text_of(events) for events in together] == alone


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_cache_takes_the_fewer_bytes_that_are_said_of_it(plugin: Plugin, bits: int) -> None:
    found = {}
    for asked in (None, bits):
        model = plugin.load(TINY, flags={"kv_bits": asked})
        plugin.answer(model, asking("What shape is this? " * 12, draw([Thing("circle", "red")])))
        found[asked] = (model.cache_size(512), model.prefixes.nbytes)
    share = (bits + 2 * 32 / 64) / 32  # a scale and a bias of 32 bits for 64 numbers
    for packed, plain in zip(found[bits], found[None], strict=True):
        assert packed == pytest.approx(share * plain, rel=0.01)


def test_a_model_whose_heads_cannot_be_packed_says_so(tmp_path: Path) -> None:
    folder = lay_out("qwen2_vl", tmp_path / "qwen2_vl")
    with InferenceEngine() as engine:
        with engine.load_text(folder) as chat:
            explained = chat.explain("vlm.kv_bits")
            assert not explained.available
            assert "Heads of 16 numbers" in explained.reason
        with pytest.raises(FeatureUnavailableError, match="Heads of 16 numbers"):
            engine.load_text(folder, features={"vlm.kv_bits": 8})
