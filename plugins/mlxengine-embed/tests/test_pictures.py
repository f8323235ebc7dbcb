"""Models that see: the same numbers as transformers and sentence-transformers on torch, and bad pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import picture_checkpoints
import pytest
from mlxengine import EmbeddingHandle, ImagePart, InferenceEngine
from safetensors.numpy import load_file

Load = Callable[[str], EmbeddingHandle]
References = Mapping[str, Any]
PICTURES = [ImagePart(item) for item in picture_checkpoints.pictures()]


@pytest.fixture(scope="module")
def seen() -> References:
    """What the reference gave; ``make_picture_references.py`` computes it."""
    return load_file(Path(__file__).with_name("pictures.safetensors"))


@pytest.fixture
def seeing(engine: InferenceEngine, random_root: Path) -> Iterator[Load]:
    """A loaded model that sees by its name in ``picture_checkpoints``."""
    handles: list[EmbeddingHandle] = []

    def load(name: str) -> EmbeddingHandle:
        handles.append(engine.load_embeddings(picture_checkpoints.write(name, random_root)))
        return handles[-1]

    yield load
    for handle in handles:
        handle.close()


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.feature("embed.pictures")
@pytest.mark.parametrize("name", sorted(picture_checkpoints.SEEING))
def test_texts_and_pictures_are_the_references(seeing: Load, seen: References, name: str) -> None:
    model, texts = seeing(name), picture_checkpoints.texts_of(name)
    plain = name == "clip-modules"  # its repository has no Normalize; the others' own comparison scales
    mixed = [texts[0], PICTURES[0], PICTURES[1], *texts[1:], *PICTURES[2:]]
    found = model.embed(mixed).numpy()
    expected = np.concatenate([seen[f"{name}/texts"], seen[f"{name}/pictures"]])
    order = [0, 5, 6, 1, 2, 3, 4, 7, 8, 9]
    assert np.abs(found - (expected if plain else unit(expected))[order]).max() < 1e-4
    raw = model.embed(mixed, normalize=False).numpy()
    assert np.abs(raw - expected[order]).max() < 1e-4 * max(1, np.abs(expected).max())
    assert model.info["normalize"] is not plain
    assert len({tuple(row.round(3)) for row in found}) == len(mixed)
