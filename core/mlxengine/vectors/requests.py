"""What can be asked of an embedding model or a cross-encoder."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from operator import index
from typing import Any

from attrs import field, frozen

from ..contract._convert import document, named, text, texts
from ..contract.events import Array
from ..contract.media import ImagePart
from ..contract.requests import Request
from ..errors import InvalidParameterError


def _ranges(value: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if value is None:
        return None
    try:
        lowest, highest = (tuple(map(float, side)) for side in value)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(
            "ranges must be (lowest, highest), the numbers of each dimension."
        ) from error
    return lowest, highest


def _inputs(
    value: Iterable[str | Sequence[int] | ImagePart],
) -> tuple[str | tuple[int, ...] | ImagePart, ...]:
    if isinstance(value, str):
        return texts(value)  # refused
    given: list[Any] = [_ids(item) for item in value]
    return document(tuple(given))


def _ids(item: Any) -> Any:
    if hasattr(item, "tolist") and not isinstance(item, str):  # a numpy array
        item = item.tolist()
    return tuple(item) if isinstance(item, list) else item


def _whole(value: Any, name: str) -> int | None:
    if value is None:
        return None
    whole = index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else 0
    if whole < 1:
        raise InvalidParameterError(f"{name} must be a positive whole number, found {value!r}.")
    return whole


def _truncate_dim(value: int | None) -> int | None:
    return _whole(value, "truncate_dim")


def _batch_tokens(value: int | None) -> int | None:
    return _whole(value, "batch_tokens")


def _named(value: str, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidParameterError(f"{name} must be a text, found {value!r}.")
    return text(value)


def _prompt(value: str | None) -> str | None:
    return None if value is None else _named(value, "prompt")


def _prompt_name(value: str | None) -> str | None:
    return None if value is None else _named(value, "prompt_name")


def _precision(value: str) -> str:
    return _named(value, "precision")


def _output(value: str) -> str:
    return _named(value, "output")


def _task(value: str | None) -> str | None:
    if value not in (None, "query", "document"):
        raise InvalidParameterError(
            f"task={value!r} is not known.", hint='Give "query", "document", or None.'
        )
    return value


def _normalize(value: bool | None) -> bool | None:
    if value is not None and value not in (True, False):
        raise InvalidParameterError(f"normalize must be True, False or None, found {value!r}.")
    return None if value is None else bool(value)


def _activation(value: str | None) -> str | None:
    if value not in (None, "identity", "sigmoid", "softmax"):
        raise InvalidParameterError(
            f"activation={value!r} is not known.", hint='Give "identity", "sigmoid", "softmax", or None.'
        )
    return value


def _pairs(value: Iterable[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str | Mapping | Set | bytes) or not isinstance(value, Iterable):
        raise InvalidParameterError(
            f"pairs must be a sequence of pairs of texts, found a {type(value).__name__}.",
            hint='Give [("a query", "a document"), …].',
        )
    found = []
    for place, item in enumerate(value):
        pair = () if isinstance(item, str) or not isinstance(item, Iterable) else tuple(item)
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise InvalidParameterError(
                f"pairs[{place}] is not a pair of texts, found {reprlib.repr(item)}.",
                hint='Give [("a query", "a document"), …], for one pair too.',
            )
        found.append((text(pair[0]), text(pair[1])))
    return tuple(found)


@frozen(kw_only=True, field_transformer=named)
class EmbedRequest(Request):
    """Texts in, one vector each out; of models that see, pictures too.

    Args:
        texts: what to embed; or the token ids of each, which are taken as they are: special tokens and any
            prompt are among them already. Pictures (`ImagePart`) may stand among texts.
        prompt: put before every text, as it is.
        prompt_name: name of one of the model's own prompts (``"query"``, ``"document"``).
        normalize: scale vectors to unit length; ``None`` does what the model's repository says.
        truncate_dim: keep the first dimensions only (and normalise again if normalised).
        precision: ``"float32"``, ``"float16"``, ``"int8"``, ``"uint8"``, ``"binary"`` or ``"ubinary"``.
        output: ``"pooled"`` (one vector a text), ``"tokens"`` (one a token), or ``"sparse"`` (a weight for
            each term of the vocabulary, most of them 0).
        task: what the texts are, ``"query"`` or ``"document"``, to a model that reads the two differently.
        batch_tokens: most padded tokens in one step; ``None`` lets the plugin choose.
    """

    texts: tuple[str | tuple[int, ...] | ImagePart, ...] = field(converter=_inputs)
    prompt: str | None = field(default=None, converter=_prompt)
    prompt_name: str | None = field(default=None, converter=_prompt_name)
    normalize: bool | None = field(default=None, converter=_normalize)
    truncate_dim: int | None = field(default=None, converter=_truncate_dim)
    precision: str = field(default="float32", converter=_precision)
    output: str = field(default="pooled", converter=_output)
    task: str | None = field(default=None, converter=_task)
    batch_tokens: int | None = field(default=None, converter=_batch_tokens)
    ranges: tuple[tuple[float, ...], tuple[float, ...]] | None = field(
        default=None, converter=_ranges, repr=False
    )


@frozen(kw_only=True, field_transformer=named)
class RankRequest(Request):
    """A query and documents in, one relevance score each out (cross-encoders).

    Args:
        query: the query.
        documents: what to score against it.
        prompt: put before the query, as it is; ``""`` leaves out the model's default prompt.
        prompt_name: name of one of the model's own prompts.
        batch_tokens: most padded tokens in one step.
    """

    query: str = field(converter=text)
    documents: tuple[str, ...] = field(converter=texts)
    prompt: str | None = field(default=None, converter=_prompt)
    prompt_name: str | None = field(default=None, converter=_prompt_name)
    batch_tokens: int | None = field(default=None, converter=_batch_tokens)


@frozen(kw_only=True)
class PredictRequest(Request):
    """Pairs of texts in, a cross-encoder's scores of each out, one for each of its labels.

    Args:
        pairs: what to score, each two texts.
        activation: what makes scores of logits: ``"identity"``, ``"sigmoid"``, or ``"softmax"`` over the
            labels; ``None`` does what the model's repository says.
        prompt: put before the first text of every pair; ``""`` leaves out the model's default prompt.
        prompt_name: name of one of the model's own prompts.
        batch_tokens: most padded tokens in one step.
    """

    pairs: tuple[tuple[str, str], ...] = field(converter=_pairs)
    activation: str | None = field(default=None, converter=_activation)
    prompt: str | None = field(default=None, converter=_prompt)
    prompt_name: str | None = field(default=None, converter=_prompt_name)
    batch_tokens: int | None = field(default=None, converter=_batch_tokens)


def _top_k(value: int) -> int:
    whole = _whole(value, "top_k")
    if whole is None:
        raise InvalidParameterError("top_k must be a positive whole number, found None.")
    return whole


@frozen(kw_only=True)
class SearchRequest(Request):
    """Vectors in, the most similar ones of a corpus out; a block of the corpus is one step.

    Args:
        queries: float32 (queries, size).
        corpus: (count, size): a numpy array, a memory-mapped one, or whatever has a ``shape`` and gives rows
            for a slice. It is read a block at a time, on the thread that owns the device.
        top_k: how many of the corpus for each query.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"`` (negative distances).
    """

    queries: Array
    corpus: Any = field(repr=False, eq=False)
    top_k: int = field(default=10, converter=_top_k)
    similarity: str = "cosine"

    def __attrs_post_init__(self) -> None:
        shapes = tuple(self.queries.shape), tuple(getattr(self.corpus, "shape", ()))
        if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
            raise InvalidParameterError(
                f"Queries of the shape {shapes[0]} cannot be searched in a corpus of {shapes[1]}.",
                hint="Both are (count, size), with vectors of the same model.",
            )
        if self.similarity not in ("cosine", "dot", "euclidean", "manhattan"):
            raise InvalidParameterError(f"The similarity function {self.similarity!r} is not known.")


@frozen(kw_only=True)
class MaxSimRequest(Request):
    """Token vectors of queries and documents in, how much each query finds in each document out.

    The score is the sum over the query's tokens of the greatest dot product with any of the document's
    (Khattab and Zaharia 2020); a block of documents is one step.

    Args:
        queries: float32 (tokens, size) each.
        documents: float32 (tokens, size) each; one without tokens has the score 0.
    """

    queries: tuple[Array, ...] = field(repr=False)
    documents: tuple[Array, ...] = field(repr=False)

    def __attrs_post_init__(self) -> None:
        sizes = {matrix.shape[-1] for matrix in (*self.queries, *self.documents) if len(matrix.shape) == 2}
        if len(sizes) > 1 or any(len(matrix.shape) != 2 for matrix in (*self.queries, *self.documents)):
            raise InvalidParameterError(
                "Token vectors of these shapes cannot be compared.",
                hint="Each text has (tokens, size), with vectors of the same model.",
            )


__all__ = ["EmbedRequest", "MaxSimRequest", "PredictRequest", "RankRequest", "SearchRequest"]
