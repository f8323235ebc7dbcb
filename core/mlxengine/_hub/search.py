"""Searching the hub: one request for a page of models, each with what it weighs and whether it fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from attrs import frozen

from ..contract.configuration import is_repo_id, parse_size
from ..contract.device import Device
from ..contract.fit import FitVerdict, allowed, judge, rough
from ..contract.kinds import Kind
from ..errors import InvalidParameterError, OfflineError
from .access import Access, Cancelled, never
from .api import get_page
from .headers import dtype_bits
from .names import text, texts

_SORTS = {"downloads": "downloads", "likes": "likes", "updated": "lastModified", "trending": "trendingScore"}
_FIELDS = (
    *("safetensors", "usedStorage", "gated", "downloads", "likes", "tags", "config", "siblings"),
    *("pipeline_tag", "lastModified", "sha", "library_name"),
)
_BITS = re.compile(r"(?:^|[-_])(\d)-?bit(?:$|[-_.])", re.IGNORECASE)
_SIZE = re.compile(r"(?:^|[-_])(\d+x)?(\d+(?:\.\d+)?)([mb])(?:$|[-_.])", re.IGNORECASE)
_MOST_PAGES = 20


@frozen(kw_only=True)
class SearchResult:
    """One model that the hub found. Sizes are bytes; ``None`` is what the hub does not say.

    Args:
        id: the repository's id.
        kind: the one that its pipeline tag belongs to, or ``None``.
        parameters: number of parameters, by its weights or, for packed weights, by its name.
        weight_bytes: bytes of its weights in memory.
        storage_bytes: bytes of the whole repository on the hub, all revisions together.
        quantization: for example ``"4bit"``.
        gated: whether its terms must be accepted first.
        fit: whether it fits on this machine.
    """

    id: str
    commit: str | None
    kind: str | None
    parameters: float | None
    weight_bytes: int | None
    storage_bytes: int | None
    quantization: str | None
    gated: bool
    downloads: int
    likes: int
    license: str | None
    architecture: str | None
    last_modified: str | None
    tags: tuple[str, ...]
    fit: FitVerdict


def memory_verdict(
    weight_bytes: int | None, parameters: float | None = None, device: Device | None = None
) -> FitVerdict:
    """Compare weights, and a fifth for the rest, with the memory that models may use here."""
    device = device or Device.detect()
    needed = None if weight_bytes is None else rough(weight_bytes, parameters, device).total
    return judge(needed, allowed(device))


def search(
    access: Access,
    query: str,
    *,
    kind: str | None = None,
    author: str | None = None,
    library: str | None = "mlx",
    max_size: int | None = None,
    fits: bool = False,
    sort: str = "downloads",
    limit: int = 20,
    device: Device | None = None,
    kinds: Mapping[str, Kind],
    cancelled: Cancelled = never,
) -> tuple[SearchResult, ...]:
    """See `mlxengine.hub.search`."""
    pipelines = {item.name: item.pipelines for item in kinds.values() if item.pipelines}
    if kind is not None and kind not in pipelines:
        raise InvalidParameterError(f"kind={kind!r} is unknown.", hint=f"One of: {', '.join(pipelines)}.")
    if sort not in _SORTS:
        raise InvalidParameterError(f"sort={sort!r} is unknown.", hint=f"One of: {', '.join(_SORTS)}.")
    if limit < 1:
        raise InvalidParameterError(f"limit={limit!r} must be at least 1.")
    if access.offline:
        raise OfflineError(
            "Searching needs the hub, and the network is off.", hint="`mlxengine ls` lists what is here."
        )
    machine = device or Device.detect()
    tags = {tag: name for name, found_tags in pipelines.items() for tag in found_tags}
    found: dict[str, SearchResult] = {}
    for pipeline in pipelines[kind] if kind is not None else (None,):
        kept = 0
        for item in _items(access, query, pipeline, author, library, sort, limit, cancelled):
            if not is_repo_id(item.get("id")):
                continue  # nothing that could be asked for
            result = _result(item, tags, machine)
            large = max_size is not None and (result.weight_bytes or result.storage_bytes or 0) > max_size
            if large or (fits and result.fit is FitVerdict.WONT_FIT):
                continue
            kept += result.id not in found
            found.setdefault(result.id, result)
            if kept >= limit:
                break
    results = list(found.values())
    if kind is not None and len(pipelines[kind]) > 1:
        results.sort(key=_order(sort), reverse=True)
    return tuple(results[:limit])


def _order(sort: str) -> Callable[[SearchResult], Any]:
    if sort == "updated":
        return lambda result: result.last_modified or ""
    return lambda result: result.likes if sort == "likes" else result.downloads


def _items(
    access: Access,
    query: str,
    pipeline: str | None,
    author: str | None,
    library: str | None,
    sort: str,
    limit: int,
    cancelled: Cancelled,
) -> Iterator[Mapping[str, Any]]:
    params = [("search", query), ("author", author), ("pipeline_tag", pipeline), ("filter", library)]
    params = [(name, value) for name, value in params if value]
    params += [
        ("sort", _SORTS[sort]),
        ("limit", str(max(limit, 50))),
        *(("expand", name) for name in _FIELDS),
    ]
    url = f"{access.endpoint}/api/models?{urlencode(params)}"
    for _ in range(_MOST_PAGES):
        page, following = get_page(access, url, repo="its models", cancelled=cancelled)
        yield from (item for item in page if isinstance(item, dict)) if isinstance(page, list) else ()
        if following is None:
            return
        url = following


def _result(item: Mapping[str, Any], kinds: Mapping[str, str], device: Device) -> SearchResult:
    identity = str(item["id"])
    found = item.get("config")
    config = found if isinstance(found, Mapping) else {}
    tags = texts(item.get("tags"))
    counts, weight_bytes = _weights(item)
    quantization = _quantization(identity, config)
    named = _parameters_in(identity)
    parameters = named if named is not None and quantization is not None else counts or named
    return SearchResult(
        id=identity,
        commit=text(item.get("sha")),
        kind=kinds.get(str(item.get("pipeline_tag"))),
        parameters=parameters,
        weight_bytes=weight_bytes,
        storage_bytes=_natural(item.get("usedStorage")),
        quantization=quantization,
        gated=bool(item.get("gated")),
        downloads=_natural(item.get("downloads")) or 0,
        likes=_natural(item.get("likes")) or 0,
        license=next((tag[8:] for tag in tags if tag.startswith("license:")), None),
        architecture=text(config.get("model_type")),
        last_modified=text(item.get("lastModified")),
        tags=tags,
        fit=memory_verdict(weight_bytes, parameters, device),
    )


def _natural(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _weights(item: Mapping[str, Any]) -> tuple[float | None, int | None]:
    found = item.get("safetensors")
    counts = found.get("parameters") if isinstance(found, Mapping) else None
    if not isinstance(counts, Mapping) or not counts:
        return None, None
    numbers = {str(dtype): _natural(count) or 0 for dtype, count in counts.items()}
    return float(sum(numbers.values())), sum(n * dtype_bits(dtype) // 8 for dtype, n in numbers.items())


def _quantization(identity: str, config: Mapping[str, Any]) -> str | None:
    settings = config.get("quantization_config") or config.get("quantization")
    bits = _natural(settings.get("bits")) if isinstance(settings, Mapping) else None
    if bits is not None:
        return f"{bits}bit"
    match = _BITS.search(identity)
    return f"{match[1]}bit" if match else None


def _parameters_in(identity: str) -> float | None:
    match = _SIZE.search(identity.rpartition("/")[2])
    return parse_size(f"{match[1] or ''}{match[2]}{match[3]}") if match else None


__all__ = ["FitVerdict", "SearchResult", "memory_verdict", "search"]
