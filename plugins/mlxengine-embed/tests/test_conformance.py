"""The clauses that every plugin keeps, on this one."""

import tempfile
from pathlib import Path

import embed_checkpoints
import picture_checkpoints
from mlxengine import EmbedRequest, ImagePart, RankRequest
from mlxengine.errors import InvalidParameterError, UnsupportedInputError
from mlxengine.testing import Example, PluginConformance, Specimen

pytest_plugins = ["mlxengine.testing.pytest"]

_ROOT = Path(tempfile.mkdtemp(prefix="mlxengine-embed-"))
_WORDS = embed_checkpoints.word_texts()


class TestEmbed(PluginConformance):
    name = "embed"
    specimen = Specimen(
        path=embed_checkpoints.write("bert-mean", _ROOT),
        examples=[
            Example(request=EmbedRequest(texts=_WORDS[:3]), shows={"embeddings"}),
            Example(request=EmbedRequest(texts=_WORDS, batch_tokens=60, normalize=True)),
        ],
        refused=[
            (EmbedRequest(texts=("w1",), prompt_name="unknown"), InvalidParameterError),
            (EmbedRequest(texts=("w1",), truncate_dim=10_000), InvalidParameterError),
            (RankRequest(query="w1", documents=("w2",)), UnsupportedInputError),
        ],
    )


class TestSeeing(PluginConformance):
    name = "embed"
    specimen = Specimen(
        path=picture_checkpoints.write("clip", _ROOT),
        examples=[
            Example(
                request=EmbedRequest(texts=["a cat", *map(ImagePart, picture_checkpoints.pictures())]),
                shows={"embeddings", "vision"},
            ),
            Example(request=EmbedRequest(texts=picture_checkpoints.CLIP_TEXTS, batch_tokens=20)),
        ],
        refused=[
            (EmbedRequest(texts=[ImagePart(b"none")]), UnsupportedInputError),
            (EmbedRequest(texts=("a cat",), output="tokens"), UnsupportedInputError),
        ],
    )


class TestRerank(PluginConformance):
    name = "embed"
    specimen = Specimen(
        path=embed_checkpoints.write("bert-reranker", _ROOT),
        examples=[
            Example(request=RankRequest(query=_WORDS[4], documents=_WORDS[:3]), shows={"reranking"}),
            Example(request=RankRequest(query=_WORDS[3], documents=_WORDS, batch_tokens=60)),
        ],
        refused=[(EmbedRequest(texts=("w1",)), UnsupportedInputError)],
    )
