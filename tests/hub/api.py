"""The hub's JSON answers, as pure functions of the repositories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from .repos import CREATED, Commit, HubFile, Repo

Query = Mapping[str, Sequence[str]]

_ALWAYS = ("private", "downloads", "likes", "library_name", "pipeline_tag", "tags", "createdAt")
_FULL = ("author", "sha", "lastModified", "gated", "disabled", "siblings")
EXPANDABLE = frozenset(
    (*_ALWAYS, *_FULL, "config", "cardData", "usedStorage", "safetensors", "spaces", "trendingScore", "gguf")
)


class BadRequest(ValueError):
    """A query that the hub answers with 400."""


def truthy(query: Query, name: str) -> bool:
    return query.get(name, ["false"])[-1].lower() in ("true", "1")


def _sibling(file: HubFile, blobs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": file.path}
    if blobs:
        entry |= {"size": file.size, "blobId": file.oid}
        if file.lfs:
            entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    return entry


def _field(repo: Repo, commit: Commit, name: str, blobs: bool = False) -> Any:
    if name == "author":
        return repo.id.split("/")[0] if "/" in repo.id else None
    if name == "sha":
        return commit.sha
    if name in ("private", "gated"):
        return getattr(repo, name)
    if name == "siblings":
        return [_sibling(file, blobs) for file in commit.files.values()]
    if name == "usedStorage":
        unique = {file.etag: file.size for state in repo.commits.values() for file in state.files.values()}
        return sum(unique.values())
    if name == "safetensors":
        counts = commit.parameters
        return {"parameters": counts, "total": sum(counts.values())} if counts else None
    if name == "config":
        config = commit.json_documents.get("config.json", {})
        kept = ("model_type", "architectures", "quantization_config", "tokenizer_config")
        return {key: config[key] for key in kept if key in config} if isinstance(config, dict) else {}
    defaults = {
        "downloads": 0,
        "likes": 0,
        "trendingScore": 0,
        "tags": [],
        "disabled": False,
        "spaces": [],
        "createdAt": CREATED,
        "lastModified": CREATED,
    }
    return repo.meta.get(name, defaults.get(name))


def describe(repo: Repo, commit: Commit, fields: Sequence[str], blobs: bool = False) -> dict[str, Any]:
    head: dict[str, Any] = {"_id": commit.sha[:24], "id": repo.id}
    values = {name: _field(repo, commit, name, blobs) for name in dict.fromkeys(fields)}
    return head | {name: value for name, value in values.items() if value is not None}


def model_info(repo: Repo, commit: Commit, query: Query) -> dict[str, Any]:
    expand = query.get("expand")
    if expand:
        return describe(repo, commit, _expanded(expand))
    fields = (*_ALWAYS, *_FULL, "config", "cardData", "usedStorage", "safetensors")
    return describe(repo, commit, fields, truthy(query, "blobs")) | {"modelId": repo.id}


def _expanded(names: Sequence[str]) -> Sequence[str]:
    unknown = [name for name in names if name not in EXPANDABLE]
    if unknown:
        raise BadRequest(f"unknown expand: {', '.join(unknown)}")
    return names


def list_models(
    repos: Sequence[Repo], query: Query, page_size: int
) -> tuple[list[dict[str, Any]], int | None]:
    """One page of the list, and the next page's cursor if there is one."""
    found = [repo for repo in repos if _matches(repo, query)]
    sort = query.get("sort", ["trendingScore"])[-1]
    found.sort(key=lambda repo: repo.id)
    found.sort(key=lambda repo: _field(repo, repo.head, sort) or 0, reverse=True)
    if expand := query.get("expand"):
        fields: Sequence[str] = _expanded(expand)
    else:
        extra = [name for name in ("config", "cardData") if truthy(query, name)]
        fields = (*_ALWAYS, *(_FULL if truthy(query, "full") else ()), *extra)
    start = int(query.get("cursor", ["0"])[-1])
    limit = min(int(query.get("limit", [str(page_size)])[-1]), page_size)
    page = [describe(repo, repo.head, fields) for repo in found[start : start + limit]]
    if not expand:
        page = [item | {"modelId": item["id"]} for item in page]
    return page, start + limit if start + limit < len(found) else None


def _matches(repo: Repo, query: Query) -> bool:
    tags = {*repo.meta.get("tags", ()), repo.meta.get("pipeline_tag"), repo.meta.get("library_name")}
    wanted = [tag for value in query.get("filter", ()) for tag in value.split(",")]
    author = repo.id.split("/")[0]
    gated = query.get("gated")
    return (
        all(tag in tags for tag in wanted)
        and all(text.lower() in repo.id.lower() for text in query.get("search", ()))
        and all(name == author for name in query.get("author", ()))
        and all(name == repo.meta.get("pipeline_tag") for name in query.get("pipeline_tag", ()))
        and (not gated or (gated[-1].lower() == "true") == bool(repo.gated))
        and not repo.private
    )


def _tree_entry(file: HubFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": file.path}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    return entry


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}


def tree(
    commit: Commit, folder: str, query: Query, page_size: int
) -> tuple[list[dict[str, Any]], int | None]:
    """One page of the tree under a folder, and the next page's cursor if there is one."""
    recursive, prefix = truthy(query, "recursive"), f"{folder.strip('/')}/" if folder.strip("/") else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in commit.files.items():
        if not path.startswith(prefix):
            continue
        parents = [parent.as_posix() for parent in PurePosixPath(path[len(prefix) :]).parents][::-1][1:]
        for parent in parents if recursive else parents[:1]:
            entries.setdefault(prefix + parent, _folder_entry(prefix + parent))
        if recursive or not parents:
            entries[path] = _tree_entry(file)
    start = int(query.get("cursor", ["0"])[-1])
    limit = min(int(query.get("limit", [str(page_size)])[-1]), page_size)
    page = list(entries.values())[start : start + limit]
    return page, start + limit if start + limit < len(entries) else None


def paths_info(commit: Commit, paths: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for path in paths:
        if path in commit.files:
            found.append(_tree_entry(commit.files[path]))
        elif any(name.startswith(path.rstrip("/") + "/") for name in commit.files):
            found.append(_folder_entry(path))
    return found


def refs(repo: Repo) -> dict[str, Any]:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in repo.refs.items()
    ]
    return {"branches": branches, "tags": [], "converts": [], "pullRequests": []}
