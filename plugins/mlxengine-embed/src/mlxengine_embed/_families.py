"""The known rules of model families whose repositories leave them out.

A repository that says how it pools is always believed; these rules serve converted repositories that
kept only the encoder. Each is taken from the family's own model card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import field, frozen
from mlxengine import ModelCard

_BGE = {"query": "Represent this sentence for searching relevant passages: "}
_QWEN_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_GEMMA = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
}
_E5 = {"query": "query: ", "document": "passage: ", "passage": "passage: "}
_E5_INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
_NOMIC = {"query": "search_query: ", "document": "search_document: ", "clustering": "clustering: "}


@frozen(kw_only=True)
class Family:
    """Pooling, normalisation and prompts that all models of a family share.

    ``widens`` marks a family that projects its vectors to four times their size and back; conversions
    keep the two matrices beside the encoder's as ``dense.0`` and ``dense.1``.
    """

    name: str
    pattern: str
    pooling: str
    normalize: bool = True
    prompts: Mapping[str, str] = field(factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    widens: bool = False


# The first pattern that is found in the lower-cased name decides.
FAMILIES = (
    Family(name="bge-m3", pattern=r"bge-m3", pooling="cls", max_length=8192),
    Family(name="bge-micro", pattern=r"bge-micro", pooling="mean", max_length=512),
    Family(name="bge", pattern=r"bge-(small|base|large)-?zh", pooling="cls", max_length=512),
    Family(
        name="bge",
        pattern=r"bge-(small|base|large)",
        pooling="cls",
        prompts=_BGE,
        max_length=512,
    ),
    Family(name="minilm", pattern=r"all-minilm|paraphrase-.*minilm", pooling="mean", max_length=256),
    Family(
        name="e5-instruct",
        pattern=r"\be5-(small|base|large)-instruct",
        pooling="mean",
        prompts={"query": _E5_INSTRUCT},
        max_length=512,
    ),
    Family(name="e5", pattern=r"\be5-(small|base|large)", pooling="mean", prompts=_E5, max_length=512),
    Family(name="gte-modernbert", pattern=r"gte-modernbert", pooling="cls", max_length=8192),
    Family(name="gte", pattern=r"\bgte-(small|base|large)", pooling="mean", max_length=512),
    Family(
        name="nomic-modernbert",
        pattern=r"modernbert-embed",
        pooling="mean",
        prompts=_NOMIC,
        max_length=8192,
    ),
    Family(
        name="arctic-v2",
        pattern=r"arctic-embed-.*v2",
        pooling="cls",
        prompts={"query": "query: "},
        max_length=8192,
    ),
    Family(name="arctic", pattern=r"arctic-embed", pooling="cls", prompts=_BGE, max_length=512),
    Family(name="mxbai", pattern=r"mxbai-embed", pooling="cls", prompts=_BGE, max_length=512),
    Family(
        name="qwen3-embedding",
        pattern=r"qwen3-embedding",
        pooling="lasttoken",
        prompts={"query": _QWEN_QUERY},
        max_length=32768,
    ),
    Family(
        name="embeddinggemma",
        pattern=r"embedding-?gemma",
        pooling="mean",
        prompts=_GEMMA,
        max_length=2048,
        widens=True,
    ),
)


def family_of(card: ModelCard) -> Family | None:
    """The family that a model's registry entry or name belongs to, or ``None``."""
    name = f"{card.configuration.family or ''} {card.id}".lower()
    return next((family for family in FAMILIES if re.search(family.pattern, name)), None)


__all__ = ["FAMILIES", "Family", "family_of"]
