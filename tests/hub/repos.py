"""Repositories as the hub sees them: files with hashes, commits, refs, and who may read them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

META = ".hub.json"
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".npz", ".model", ".png", ".zip")
LFS_SIZE = 1 << 20
CREATED = "2026-01-01T00:00:00.000Z"

Content = bytes | Path


@dataclass(frozen=True)
class HubFile:
    """One file of a commit. ``content`` is its bytes, or the file on disk that holds them."""

    path: str
    content: Content
    lfs: bool

    @cached_property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        return _file_sha256(self.content)

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode()

    @cached_property
    def oid(self) -> str:
        """The git blob SHA-1: of the content, or of the pointer's text for an LFS file."""
        content = self.pointer if self.lfs else self.read()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    def open(self) -> BinaryIO:
        import io

        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")


_hashes: dict[tuple[str, int, int], str] = {}


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with path.open("rb") as stream:
            _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[key]


@dataclass(frozen=True)
class Commit:
    """A state of the repository: 40 hex digits and the files by path."""

    sha: str
    files: Mapping[str, HubFile]

    @cached_property
    def json_documents(self) -> Mapping[str, Any]:
        found = {}
        for name in ("config.json",):
            if name in self.files and self.files[name].size <= 1 << 20:
                try:
                    found[name] = json.loads(self.files[name].read())
                except (ValueError, RecursionError):
                    continue
        return found

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Number of parameters by dtype, from the safetensors headers."""
        counts: dict[str, int] = {}
        for file in self.files.values():
            if not file.path.endswith(".safetensors"):
                continue
            for entry in _safetensors_header(file).values():
                number = 1
                for extent in entry.get("shape", ()):
                    number *= extent
                counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + number
        return counts


def _safetensors_header(file: HubFile) -> dict[str, Any]:
    try:
        with file.open() as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 1 << 24)))
        return {key: value for key, value in header.items() if key != "__metadata__"}
    except (ValueError, struct.error, AttributeError, RecursionError):
        return {}


@dataclass
class Repo:
    """A model repository.

    Args:
        id: ``"org/name"``.
        gated: ``False``, ``"auto"`` or ``"manual"``.
        private: hidden from everyone without a token that may read it.
        meta: what the list and the model information show: ``pipeline_tag``, ``library_name``, ``tags``,
            ``downloads``, ``likes``, ``lastModified``, ``createdAt``, ``cardData``.
    """

    id: str
    gated: bool | str = False
    private: bool = False
    meta: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(
        self,
        files: Mapping[str, Content | None],
        *,
        ref: str = "main",
        lfs: Mapping[str, bool] | None = None,
    ) -> str:
        """Add, replace or (with ``None``) delete files on a ref; returns the new commit's id."""
        now = dict(self.commits[self.refs[ref]].files) if ref in self.refs else {}
        for path, content in files.items():
            if content is None:
                now.pop(path, None)
                continue
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            large = path.lower().endswith(LFS_SUFFIXES) or size > LFS_SIZE
            now[path] = HubFile(path, content, (lfs or {}).get(path, large))
        listing = json.dumps(sorted((path, file.etag) for path, file in now.items()))
        parent = self.refs.get(ref, "")
        sha = hashlib.sha1(f"{self.id}\n{parent}\n{listing}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, now)
        self.refs[ref] = sha
        return sha

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or (a prefix of at least 7 digits of) a commit id names."""
        if revision in self.refs:
            return self.commits[self.refs[revision]]
        if len(revision) >= 7:
            matches = [commit for sha, commit in self.commits.items() if sha.startswith(revision)]
            if len(matches) == 1:
                return matches[0]
        return None

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["main"]]


def read_folder(folder: Path, repo_id: str) -> Repo:
    """A repository from a folder; ``.hub.json`` in it may give ``gated``, ``private`` and the meta."""
    described = json.loads((folder / META).read_text()) if (folder / META).exists() else {}
    gated, private = described.pop("gated", False), described.pop("private", False)
    repo = Repo(repo_id, gated=gated, private=private, meta=described)
    files: dict[str, Content | None] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != META
    }
    repo.commit(files)
    return repo


class RepoStore:
    """The repositories of a server: folders ``root/org/name``, and what tests add."""

    def __init__(self, root: Path | None = None) -> None:
        self._repos: dict[str, Repo] = {}
        if root is not None:
            for folder in sorted(root.glob("*/*")):
                if folder.is_dir() and not folder.name.startswith("."):
                    self.add_folder(folder, f"{folder.parent.name}/{folder.name}")

    def add_folder(self, folder: Path, repo_id: str) -> Repo:
        self._repos[repo_id] = read_folder(folder, repo_id)
        return self._repos[repo_id]

    def add(self, repo_id: str, files: Mapping[str, Content | None], **settings: Any) -> Repo:
        """Add (or replace) a repository. Settings: ``gated``, ``private``, ``meta``, ``lfs`` (by path)."""
        lfs = settings.pop("lfs", None)
        repo = Repo(repo_id, **settings)
        repo.commit(files, lfs=lfs)
        self._repos[repo_id] = repo
        return repo

    def remove(self, repo_id: str) -> None:
        del self._repos[repo_id]

    def get(self, repo_id: str) -> Repo | None:
        return self._repos.get(repo_id)

    def __getitem__(self, repo_id: str) -> Repo:
        return self._repos[repo_id]

    def all(self) -> list[Repo]:
        return list(self._repos.values())
