"""The same numbers as sentence-transformers on torch, from references that were stored once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import embed_checkpoints
import numpy as np
import pytest
from embed_texts import mixed_texts
from mlxengine import EmbeddingHandle
from mlxengine.errors import InvalidParameterError, UnsupportedInputError

Load = Callable[[str], EmbeddingHandle]
References = Mapping[str, Any]
WORDS = embed_checkpoints.word_texts()


def cosines(left: Any, right: Any) -> Any:
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return (left * right).sum(axis=-1) / norms


@pytest.mark.feature("embed.embeddings")
@pytest.mark.feature("embed.batch")
@pytest.mark.parametrize("rows", [1, 32, 100])
def test_minilm_gives_the_reference_on_a_hundred_mixed_texts(
    minilm_model: EmbeddingHandle, references: References, rows: int
) -> None:
    texts = mixed_texts()
    if rows == 100:
        found = minilm_model.embed(texts).numpy()
    elif rows == 32:
        order = sorted(range(100), key=lambda index: len(texts[index]))
        found = np.zeros((100, 384), dtype=np.float32)
        for rows_of in (order[i : i + 32] for i in range(0, 100, 32)):
            found[rows_of] = minilm_model.embed([texts[i] for i in rows_of], batch_tokens=10**6).numpy()
    else:
        found = minilm_model.embed(texts, batch_tokens=1).numpy()
    assert found.shape == (100, 384)
    assert found.dtype == np.float32
    assert cosines(found, references["minilm"]).min() >= 0.99999
    assert np.abs(found - references["minilm"]).max() < 1e-4


@pytest.mark.parametrize("name", sorted(embed_checkpoints.EMBEDDERS))
def test_an_encoder_with_random_weights_gives_the_reference(
    random_model: Load, references: References, name: str
) -> None:
    model = random_model(name)
    found = model.embed(WORDS).numpy()
    assert model.info["library"] == (
        "mlx_embeddings" if name in ("modernbert", "gemma3") else "mlxengine_embed"
    )
    assert found.shape == references[name].shape
    assert cosines(found, references[name]).min() > 0.999999
    # The reference is not normalised again after the repository's own truncate_dim, as ours is.
    scale = np.linalg.norm(references[name], axis=1, keepdims=True) if name == "bert-dense" else 1.0
    assert np.abs(found - references[name] / scale).max() < 1e-4


def test_heads_that_are_no_power_of_two_take_the_slopes_that_the_paper_gives_them() -> None:
    from mlxengine_embed._bert import _slopes

    eight = [2.0**-n for n in range(1, 9)]
    assert _slopes(8).tolist() == eight
    assert np.allclose(_slopes(12), [*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


@pytest.mark.parametrize("task", ["retrieval.query", "text-matching"])
def test_a_task_has_its_own_weights_where_the_repository_has_some(
    random_model: Load, references: References, task: str
) -> None:
    model = random_model("jina-v3-published")
    found = model.embed(WORDS, prompt_name=task).numpy()
    assert np.abs(found - references[f"jina-v3-published/{task}"]).max() < 1e-4
    assert np.abs(found - references["jina-v3-published"]).max() > 1e-2
    if task == "retrieval.query":
        assert np.array_equal(model.embed_query(WORDS).numpy(), found)
    again = model.embed(WORDS).numpy()
    assert np.abs(again - references["jina-v3-published"]).max() < 1e-4


@pytest.mark.parametrize("name", ["bert-mean", "gemma3"])
def test_token_vectors_are_the_references(random_model: Load, references: References, name: str) -> None:
    found = random_model(name).embed(WORDS[:6], output="tokens")
    joined = np.concatenate([item.numpy() for item in found])
    assert np.abs(joined - references[f"{name}/tokens"]).max() < 1e-4


@pytest.mark.parametrize("name", ["bert-cls", "bert-without-prompt"])
def test_a_prompt_takes_part_in_pooling_or_not_as_the_repository_says(
    random_model: Load, references: References, name: str
) -> None:
    found = random_model(name).embed(WORDS, prompt="w1 w2 w3 ").numpy()
    assert np.abs(found - references[f"{name}/prompt"]).max() < 1e-4
    assert np.abs(found - references[name]).max() > 1e-2


def test_prompts_dimensions_and_similarity_are_the_repositorys(
    random_model: Load, references: References
) -> None:
    model = random_model("bert-dense")
    assert model.info["similarity"] == "dot"
    assert model.dimension == 16
    query = model.embed_query(WORDS).numpy()
    whole = model.embed(WORDS, prompt="", truncate_dim=24, normalize=False).numpy()
    # The repository normalises before it truncates; ours are normalised again.
    assert cosines(query, references["bert-dense/query"]).min() > 0.999999
    assert np.allclose(np.linalg.norm(query, axis=1), 1, atol=1e-5)
    assert cosines(whole, references["bert-dense/whole"]).min() > 0.999999
    assert np.array_equal(model.embed_document(WORDS).numpy(), model.embed(WORDS).numpy())
    table = model.similarity(references["bert-dense"], references["bert-dense"]).numpy()
    assert np.abs(table - references["bert-dense/similarity"]).max() < 1e-5


def test_fewer_dimensions_are_normalised_again(minilm_model: EmbeddingHandle, references: References) -> None:
    found = minilm_model.embed(mixed_texts()[:20], truncate_dim=128).numpy()
    assert found.shape == (20, 128)
    assert np.abs(found - references["minilm/truncated"]).max() < 1e-4


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary", "float16"])
def test_each_precision_is_the_references(
    minilm_model: EmbeddingHandle, references: References, precision: str
) -> None:
    texts = mixed_texts()[25:57]
    found = minilm_model.embed(texts, precision=precision).numpy()
    if precision == "float16":
        assert found.dtype == np.float16
        assert np.abs(found - references["minilm"][25:57]).max() < 1e-3
        return
    expected = references[f"minilm/{precision}"]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    # A value that lies on the border of a step may fall to either side.
    levels = np.abs(found.astype(int) - expected.astype(int))
    assert (levels != 0).mean() < 0.002
    assert precision.endswith("binary") or levels.max() <= 1


@pytest.mark.feature("embed.reranking")
@pytest.mark.parametrize("name", sorted(embed_checkpoints.RERANKERS | embed_checkpoints.UNREAD_RERANKERS))
def test_a_cross_encoder_gives_the_references_scores(
    random_model: Load, references: References, name: str
) -> None:
    ranked = random_model(name).rank(WORDS[4], WORDS)
    assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)
    found = np.zeros(len(WORDS), dtype=np.float32)
    for item in ranked:
        found[item.index] = item.score
        assert item.document == WORDS[item.index]
    same = "xlm-roberta-reranker" if name in embed_checkpoints.UNREAD_RERANKERS else name
    assert np.abs(found - references[same]).max() < 1e-4


@pytest.mark.parametrize("name", sorted(embed_checkpoints.CLASSIFIERS))
def test_a_classifier_of_several_labels_gives_the_references_scores(
    random_model: Load, references: References, name: str
) -> None:
    model, pairs = random_model(name), [(WORDS[4], text) for text in WORDS]
    found = model.predict(pairs)
    assert np.abs(np.asarray(found) - references[name]).max() < 1e-4
    shares = np.asarray(model.predict(pairs, activation="softmax"))
    assert np.abs(shares - references[f"{name}/softmax"]).max() < 1e-5
    three = ("contradiction", "entailment", "neutral")
    assert found.labels == (three if "three" in name else ("no", "yes"))
    assert found.usage.prompt_tokens > len(pairs)
    with pytest.raises(UnsupportedInputError, match="labels: its scores are no order"):
        model.rank(WORDS[4], WORDS)


def test_predict_gives_the_scores_in_the_order_of_the_pairs(
    random_model: Load, references: References
) -> None:
    model = random_model("bert-reranker")
    seen: list[tuple[int, int | None]] = []
    pairs = ((WORDS[4], text) for text in WORDS)
    found = model.predict(pairs, batch_tokens=60, progress=lambda *at: seen.append(at))
    assert found.shape == (len(WORDS),)
    assert np.abs(np.asarray(found) - references["bert-reranker"]).max() < 1e-4
    assert seen[-1] == (len(WORDS), len(WORDS))
    assert len(seen) > 3
    squeezed = np.asarray(model.predict([[WORDS[4], WORDS[0]]], activation="sigmoid"))
    assert squeezed[0] == pytest.approx(1 / (1 + np.exp(-references["bert-reranker"][0])), abs=1e-5)
    assert model.predict([]).shape == (0,)
    for wrong in ("a text", [("a", "b"), "ab"], [("a",)], [("a", 5)], {"a": "b"}, None):
        with pytest.raises(InvalidParameterError, match="pairs"):
            model.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="activation='relu'"):
        model.predict([("a", "b")], activation="relu")
    with pytest.raises(UnsupportedInputError, match="not a cross-encoder"):
        random_model("bert-cls").predict([("a", "b")])


def test_a_cross_encoders_prompts_stand_before_its_queries(
    random_model: Load, references: References
) -> None:
    name = "bert-reranker-with-prompts"
    model = random_model(name)
    assert (model.info["default_prompt"], sorted(model.info["prompts"])) == (
        "question",
        ["other", "question"],
    )
    for options, key in (({}, name), ({"prompt_name": "other"}, f"{name}/other"), ({"prompt": ""}, None)):
        ranked = model.rank(WORDS[4], WORDS, **options)  # type: ignore[arg-type]
        found = np.array([item.score for item in sorted(ranked, key=lambda item: item.index)])
        expected = references[key or "bert-reranker"]
        # The plain one's repository says that its logits are the scores, and so does this.
        assert np.abs(found - expected).max() < 1e-4
    with pytest.raises(InvalidParameterError, match="prompt_name='none' is no prompt"):
        model.rank("w1", WORDS, prompt_name="none")


@pytest.mark.parity
@pytest.mark.timeout(1800)
def test_the_stored_references_are_what_sentence_transformers_gives_now(
    references: References, minilm_folder: Path, tmp_path: Path
) -> None:
    python = os.environ.get("MLXENGINE_PARITY_PYTHON", sys.executable)
    script = Path(__file__).parent / "make_references.py"
    target = tmp_path / "references.npz"
    subprocess.run([python, str(script), str(minilm_folder), str(target)], check=True, capture_output=True)
    with np.load(target, allow_pickle=False) as computed:
        again = dict(computed)
    assert again.keys() == references.keys()
    for name, value in references.items():
        assert np.abs(again[name].astype(float) - value.astype(float)).max() < 1e-4, name
