"""Reranking in the form that Cohere's and Jina's clients know."""

from __future__ import annotations

from typing import Any

from mlxengine import AsyncEmbeddingHandle, Event, Finished, RankRequest, Scores, TokenUsage

from ._answers import Asked, Dialect
from ._fields import Fields, Table, callers, honoured, refused

TABLE = Table(
    "Rerank (Cohere, Jina)",
    "/v1/rerank",
    (
        honoured("model", "A served model's name or alias; left out, it is the first one."),
        honoured("query"),
        honoured("documents", 'Texts, or objects with a "text".'),
        honoured("top_n", "The best so many."),
        honoured("return_documents"),
        refused("max_tokens_per_doc", "Documents are cut where the model ends; cut them yourself."),
        refused("max_chunks_per_doc", "Documents are read whole."),
        refused("rank_fields", 'Documents are texts, or objects with a "text".'),
        callers("priority", "A key has its priority."),
    ),
)


def read(body: dict[str, Any], request_id: str) -> Asked:
    """A body as what the engine is asked.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    unknown = TABLE.check(body)
    fields = Fields(body)
    documents = _documents(fields)
    top = fields.integer("top_n")
    if top is not None and top < 1:
        raise fields.wrong("top_n", "top_n is a number from 1.")
    returned = fields.flag("return_documents") or False
    head = {"id": f"rerank-{request_id[4:]}", "model": fields.text("model") or ""}
    return Asked(
        model=fields.text("model"),
        requests=(RankRequest(query=fields.need("query"), documents=documents),),
        handle=AsyncEmbeddingHandle,
        gives="scores",
        whole=lambda events: {**head, **_whole(events, documents, top, returned=returned)},
        unknown=unknown,
        aside=True,
    )


def _documents(fields: Fields) -> list[str]:
    found = []
    for number, item in enumerate(fields.items("documents")):
        where = f"documents[{number}]"
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise fields.wrong(where, f"{where} must be a text.", "invalid_type")
        found.append(text)
    if not found:
        raise fields.wrong("documents", "documents must hold at least one.", "missing_value")
    return found


def _whole(events: list[Event], documents: list[str], top: int | None, *, returned: bool) -> dict[str, Any]:
    scores = [
        pair
        for event in events
        if isinstance(event, Scores)
        for pair in zip(event.indices, event.scores, strict=True)
    ]
    best = sorted(scores, key=lambda pair: (-pair[1], pair[0]))[:top]
    last = events[-1]
    tokens = TokenUsage.of(last.usage).prompt_tokens if isinstance(last, Finished) else 0
    results = [
        {"index": index, "relevance_score": score}
        | ({"document": {"text": documents[index]}} if returned else {})
        for index, score in best
    ]
    return {"results": results, "usage": {"total_tokens": tokens}}


DIALECT = Dialect(TABLE, read)

__all__ = ["DIALECT", "TABLE", "read"]
