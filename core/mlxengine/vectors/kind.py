"""The kind that turns texts into vectors, or ranks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract.kinds import Kind, Task

if TYPE_CHECKING:
    from ..contract.configuration import ModelCard


def encodes(card: ModelCard) -> bool:
    """Whether a model looks like one of sentence-transformers'."""
    names = {item.path for item in card.files}
    return "modules.json" in names or any(name.startswith("1_Pooling/") for name in names)


KINDS = (
    Kind(
        name="embed",
        summary="embedding models and rerankers",
        handle="mlxengine.vectors.handle:EmbeddingHandle",
        async_handle="mlxengine.vectors.handle_async:AsyncEmbeddingHandle",
        workload="mlxengine.vectors.workload:VectorWorkload",
        usage="mlxengine.contract.tokens:TokenUsage",
        run="mlxengine.vectors.verbs:RUN",
        bench="mlxengine.vectors.verbs:BENCH",
        mock="mlxengine.vectors.mock:VectorMock",
        looks="mlxengine.vectors.kind:encodes",
        pipelines=["sentence-similarity", "feature-extraction"],
        tasks=[
            Task(name="multilingual", words=r"multilingual|over \d+ languages"),
            Task(name="rerank", words=r"rerank\w*|cross-encoder"),
            Task(name="embedding", words="", unless="rerank"),
        ],
        install="mlxengine[embed]",
        libraries=["mlx-embeddings", "transformers"],
    ),
)
