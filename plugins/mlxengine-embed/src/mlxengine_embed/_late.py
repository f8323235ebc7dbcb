"""Models of one vector a token (late interaction): what they do to queries and what to documents.

The layouts are PyLate's (``model_type`` "ColBERT"), whose settings are at the top, sentence-transformers'
``MultiVectorEncoder``, which has modules for them, and ColBERT's own (``HF_ColBERT``). Pure: everything is
read from a card's JSON files.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from mlxengine import ModelCard
from mlxengine.errors import UnsupportedArchitectureError

METADATA = "artifact.metadata"
"""Where ColBERT's own layout keeps its settings, as JSON."""


@frozen(kw_only=True)
class Late:
    """How texts become token vectors.

    Args:
        prefixes: what a prompt begins with that is a single token, where the tokenizer has it.
        query_length, document_length: longest input in tokens, ``None`` as for other texts.
        expansion: how many tokens a query has at least, filled up with ``filler``; ``None`` for as many as
            it has.
        fixed: whether a query is cut to that length, too.
        attends: whether the others see the tokens that fill up a query.
        filler: that token; ``None`` for the mask token, else the one that ends a text.
        skipped: words whose tokens have no vectors in texts of these tasks.
        skip_tasks: ``"query"``, ``"document"``.
    """

    prefixes: tuple[str, ...] = ()
    query_length: int | None = None
    document_length: int | None = None
    expansion: int | None = None
    fixed: bool = True
    attends: bool = False
    filler: str | None = None
    skipped: tuple[str, ...] = ()
    skip_tasks: tuple[str, ...] = ("document",)

    def longest(self, task: str | None) -> int | None:
        """The longest input for a task."""
        if task == "query":
            if self.expansion is None or not self.fixed:
                return max(self.query_length, self.expansion or 0) if self.query_length else None
            return self.expansion
        return self.document_length if task == "document" else None


def is_late(card: ModelCard) -> bool:
    """Whether a repository says that it makes token vectors."""
    own = card.documents.get("config_sentence_transformers.json")
    if isinstance(own, Mapping) and own.get("model_type") in ("ColBERT", "MultiVectorEncoder"):
        return True
    return "HF_ColBERT" in (card.config.get("architectures") or ()) and "modules.json" not in card.documents


def read_stanford(card: ModelCard) -> Late:
    """The settings of ColBERT's own layout, from `METADATA` where a loaded card has it, else its defaults.

    Raises:
        UnsupportedArchitectureError: one of them is not known.
    """
    found = card.documents.get(METADATA)
    given: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    if given.get("similarity", "cosine") != "cosine":
        raise UnsupportedArchitectureError(
            f"{METADATA} of {card.id} says similarity={given['similarity']!r}, which is not known.",
            hint="Known is cosine.",
        )
    markers = given.get("query_token_id") or "[unused0]", given.get("doc_token_id") or "[unused1]"
    return Late(
        prefixes=tuple(f"{marker} " for marker in markers),
        document_length=given.get("doc_maxlen"),
        expansion=given.get("query_maxlen") or 32,
        attends=bool(given.get("attend_to_mask_tokens")),
        skipped=tuple(string.punctuation) if given.get("mask_punctuation", True) else (),
    )


def read_late(card: ModelCard, transformer: Mapping[str, Any], mask: Mapping[str, Any] | None) -> Late:
    """The settings of a repository.

    Args:
        card: the model.
        transformer: the configuration of its ``Transformer``.
        mask: that of its ``MultiVectorMask``, where it has one.

    Raises:
        UnsupportedArchitectureError: one of them is not known.
    """
    own = card.documents["config_sentence_transformers.json"]
    given = {**own, **transformer}
    prefixes = tuple(str(own[key]) for key in ("query_prefix", "document_prefix") if own.get(key))
    expansion = given.get("query_expansion")
    if "query_expansion" not in given and own.get("model_type") == "ColBERT":
        filled = own.get("do_query_expansion") is not False
        attends = bool(own.get("attend_to_expansion_tokens", own.get("attend_to_mask_tokens")))
        length = given.get("query_length") or 32
        expansion = {"strategy": "fixed", "attend": attends, "length": length} if filled else None
    words: Any = (mask or {}).get("skiplist_words") or ()
    if own.get("model_type") == "ColBERT" and mask is None:
        words = own.get("skiplist_words")
        words = list(string.punctuation) if words is None else words
    tasks = (mask or {}).get("skiplist_tasks") or ("document",)
    if expansion is not None:
        keys = {"strategy", "attend", "length", "token"}
        whole = isinstance(expansion, Mapping) and set(expansion) <= keys and expansion.get("length")
        if not whole or expansion.get("strategy") not in ("fixed", "min"):
            raise UnsupportedArchitectureError(
                f"{card.id} says query_expansion={expansion!r}, which is not known.",
                hint='Known is {"strategy": "fixed" or "min", "length": …, "attend": …, "token": …}.',
            )
    found = expansion or {}
    return Late(
        prefixes=prefixes,
        query_length=given.get("query_length"),
        document_length=given.get("document_length"),
        expansion=found.get("length"),
        fixed=found.get("strategy", "fixed") == "fixed",
        attends=bool(found.get("attend", False)),
        filler=found.get("token"),
        skipped=_words(words),
        skip_tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
    )


def _words(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else ()


__all__ = ["METADATA", "Late", "is_late", "read_late", "read_stanford"]
