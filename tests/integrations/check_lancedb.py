"""LanceDB with our embedding function: its registry, its tables in a new process, on real weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector
from mlxengine import EmbeddingHandle, InferenceEngine
from mlxengine.errors import InvalidParameterError
from mlxengine.integrations.lancedb import MLXEngineEmbeddings
from pydantic import ValidationError

TEXTS = ["A cat sleeps.", "Shares fell.", "It rains."]
ANOTHER_PROCESS = """
import sys, lancedb, mlxengine.integrations.lancedb
table = lancedb.connect(sys.argv[1]).open_table("texts")
table.add([{"text": "The market lost a tenth."}])
print(table.search("the stock market").limit(2).to_arrow()["text"].to_pylist())
"""


def test_a_table_embeds_what_is_added_and_asked_in_another_process_too(minilm: str, tmp_path: Path) -> None:
    ours = get_registry().get("mlxengine").create(model=minilm)
    assert isinstance(ours, MLXEngineEmbeddings)

    class Row(LanceModel):
        text: str = ours.SourceField()
        vector: Vector(ours.ndims()) = ours.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path).create_table("texts", schema=Row)
    table.add([{"text": text} for text in TEXTS])
    assert table.search("a kitten").limit(1).to_pydantic(Row)[0].text == "A cat sleeps."
    stored = np.stack(table.to_arrow()["vector"].to_numpy())
    assert np.abs(stored - ours.generate_embeddings(TEXTS)).max() == 0
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(eval(done.stdout)) == {"Shares fell.", "The market lost a tenth."}


def test_queries_and_texts_get_the_models_prompts(
    engine: InferenceEngine, prompted: str, prompted_model: EmbeddingHandle
) -> None:
    get_registry().set_var("engine", engine)
    ours = MLXEngineEmbeddings.create(model=prompted, engine="$var:engine")
    assert ours.safe_model_dump() == {"model": prompted, "engine": "$var:engine"}
    assert ours._source.handle._engine is engine
    assert np.array_equal(ours.compute_query_embeddings("w1 w2"), prompted_model.embed_query("w1 w2"))
    texts = pa.chunked_array([["w1 w2"], ["w3"]])
    assert np.array_equal(
        ours.compute_source_embeddings(texts), prompted_model.embed_document(["w1 w2", "w3"])
    )
    assert ours.ndims() == prompted_model.dimension


def test_a_row_without_a_text_has_no_vector(minilm: str, tmp_path: Path) -> None:
    ours = MLXEngineEmbeddings.create(model=minilm, truncate_dim=64)
    found = ours.compute_source_embeddings(pa.array(["a", None, "b"]))
    assert [None if row is None else len(row) for row in found] == [64, None, 64]

    class Row(LanceModel):
        text: str | None = ours.SourceField()
        vector: Vector(64, nullable=True) | None = ours.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path).create_table("texts", schema=Row)
    table.add([{"text": "a"}, {"text": None}, {"text": "b"}], on_bad_vectors="null")
    assert [row is None for row in table.to_arrow()["vector"].to_pylist()] == [False, True, False]


def test_what_is_wrong_is_said_at_once_and_not_tried_seven_times(minilm: str) -> None:
    with pytest.raises(InvalidParameterError, match="truncate_dim"):
        MLXEngineEmbeddings.create(model=minilm, truncate_dim=0)
    with pytest.raises(ValidationError, match="device"):
        MLXEngineEmbeddings.create(model=minilm, device="cuda")
    ours = MLXEngineEmbeddings.create(model="/there/is/none")
    with pytest.raises(Exception, match="/there/is/none"):
        ours.compute_source_embeddings_with_retry(["a"])
