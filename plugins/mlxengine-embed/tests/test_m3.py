"""BGE-M3's three outputs, and what of them a repository may lack."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import embed_checkpoints
import numpy as np
import pytest
from mlxengine import EmbeddingHandle, InferenceEngine
from mlxengine.errors import IncompatibleWeightsError, UnsupportedInputError
from safetensors.numpy import load_file, save_file

Load = Callable[[str], EmbeddingHandle]
WORDS = embed_checkpoints.word_texts()


@pytest.mark.feature("embed.embeddings")
def test_its_three_outputs_are_the_references(random_model: Load, references: Mapping[str, Any]) -> None:
    model = random_model("bge-m3")
    assert (model.info["output"], model.info["further_outputs"]) == ("pooled", ("sparse", "tokens"))
    found = model.embed(WORDS, output="sparse", batch_tokens=100)
    expected = references["bge-m3/sparse"]
    assert 0.05 < (expected > 0).mean() < 0.9
    for row, whole in zip(found, expected, strict=True):
        assert row.terms.numpy().tolist() == np.flatnonzero(whole).tolist()
        assert np.abs(row.weights.numpy() - whole[row.terms.numpy()]).max(initial=0) < 1e-4
        assert row.words == tuple(embed_checkpoints.VOCABULARY[term] for term in row.terms.numpy())
        assert row.size == len(embed_checkpoints.VOCABULARY)
    few = model.embed(WORDS, output="sparse", truncate_dim=3)
    assert [len(row) for row in few] == [min(3, len(row)) for row in found]
    dots = expected @ expected.T
    assert np.abs(model.similarity(found).numpy() - dots).max() < 1e-3
    tokens = model.embed(WORDS, output="tokens", batch_tokens=100)
    joined = np.concatenate([item.numpy() for item in tokens])
    assert np.abs(joined - references["bge-m3/tokens"]).max() < 1e-4
    assert model.similarity(tokens, tokens).shape == (len(WORDS), len(WORDS))
    raw = np.concatenate([item.numpy() for item in model.embed(WORDS, output="tokens", normalize=False)])
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.1


def test_one_that_lacks_a_layer_lacks_its_output(
    engine: InferenceEngine, random_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bge-m3-tiny"
    shutil.copytree(embed_checkpoints.write("bge-m3", random_root), folder)
    (folder / "sparse_linear.safetensors").unlink()
    with engine.load_embeddings(folder) as model:
        assert model.info["further_outputs"] == ("tokens",)
        with pytest.raises(UnsupportedInputError, match="dense vectors"):
            model.embed(WORDS, output="sparse")
    save_file({"weight": np.zeros((8, 5), np.float32)}, folder / "colbert_linear.safetensors")
    with pytest.raises(IncompatibleWeightsError, match="colbert_linear"):
        engine.load_embeddings(folder)


def test_gte_weighs_tokens_by_a_classifier_among_the_encoders_weights(
    engine: InferenceEngine, references: Mapping[str, Any], tmp_path: Path
) -> None:
    embed_checkpoints.gte_sparse(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    with engine.load_embeddings(tmp_path) as model:
        assert model.info["further_outputs"] == ("sparse",)
        assert np.abs(model.embed(WORDS).numpy() - references["gte"]).max() < 1e-4
        hidden = model.embed(WORDS, output="tokens")
        found = model.embed(WORDS, output="sparse")
    weights = [item.numpy() @ stored["classifier.weight"][0] + stored["classifier.bias"] for item in hidden]
    compared = 0
    for text, row, each in zip(WORDS, found, weights, strict=True):
        words = text.split()
        if len(each) != len(words) + 2:
            continue  # cut
        expected: dict[str, float] = {}
        for word, weight in zip(words, each[1:-1], strict=True):
            if weight > 0:
                expected[word] = max(expected.get(word, 0), float(weight))
        given = zip(row.words, row.weights.numpy().tolist(), strict=True)
        assert {word: weight for word, weight in given if word in words} == pytest.approx(expected, abs=1e-4)
        compared += len(expected)
    assert compared > 20
