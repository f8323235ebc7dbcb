"""What can be asked of an embedding model or a cross-encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import field, frozen

from ..contract._convert import document, optional_text, text, texts
from ..contract.requests import Request


def _ranges(value: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if value is None:
        return None
    lowest, highest = (tuple(map(float, side)) for side in value)
    return lowest, highest


def _inputs(value: Iterable[str | Sequence[int]]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, str):
        return texts(value)  # refused
    given: list[Any] = [tuple(item) if isinstance(item, list) else item for item in value]
    return document(tuple(given))


@frozen(kw_only=True)
class EmbedRequest(Request):
    """Texts in, one vector each out.

    Args:
        texts: what to embed; or the token ids of each, which are taken as they are: special tokens and any
            prompt are among them already.
        prompt: put before every text, as it is.
        prompt_name: name of one of the model's own prompts (``"query"``, ``"document"``).
        normalize: scale vectors to unit length; ``None`` does what the model's repository says.
        truncate_dim: keep the first dimensions only (and normalise again if normalised).
        precision: ``"float32"``, ``"float16"``, ``"int8"``, ``"uint8"``, ``"binary"`` or ``"ubinary"``.
        output: ``"pooled"`` (one vector a text) or ``"tokens"`` (one a token).
        batch_tokens: most padded tokens in one step; ``None`` lets the plugin choose.
    """

    texts: tuple[str | tuple[int, ...], ...] = field(converter=_inputs)
    prompt: str | None = field(default=None, converter=optional_text)
    prompt_name: str | None = field(default=None, converter=optional_text)
    normalize: bool | None = None
    truncate_dim: int | None = None
    precision: str = "float32"
    output: str = "pooled"
    batch_tokens: int | None = None
    ranges: tuple[tuple[float, ...], tuple[float, ...]] | None = field(
        default=None, converter=_ranges, repr=False
    )


@frozen(kw_only=True)
class RankRequest(Request):
    """A query and documents in, one relevance score each out (cross-encoders).

    Args:
        query: the query.
        documents: what to score against it.
        batch_tokens: most padded tokens in one step.
    """

    query: str = field(converter=text)
    documents: tuple[str, ...] = field(converter=texts)
    batch_tokens: int | None = None


__all__ = ["EmbedRequest", "RankRequest"]
