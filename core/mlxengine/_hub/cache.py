"""Where a repository's files lie in huggingface_hub's cache, and which of them are known to be good.

Beside the standard layout (``blobs/``, ``snapshots/``, ``refs/``) a repository's folder gets one folder
of ours, ``mlxengine/``: ``<commit>.listing.json`` (what the hub says the commit holds) and
``<commit>.ready.json`` (which files were verified, and their size and time of change since then).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from .._files import write_atomically
from .._version import __version__
from ..contract.configuration import FileInfo
from ..errors import MLXEngineError
from .access import Cancelled, check, never
from .names import is_commit, is_hash, problem_with, read_json

FORMAT = 1
PARTIAL = ".mlxengine.incomplete"


@frozen(kw_only=True)
class Listing:
    """What one commit of a repository holds, as the hub says it."""

    repo: str
    commit: str
    files: tuple[FileInfo, ...]
    license: str | None = None
    tags: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    library_name: str | None = None


@frozen(kw_only=True)
class Verified:
    """A file whose content was hashed, and how it looked then."""

    path: str
    size: int
    mtime_ns: int
    hash: str

    def still(self, found: os.stat_result | None) -> bool:
        """Whether the file looks as it did when it was hashed."""
        return found is not None and (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


@frozen
class RepoCache:
    """One repository's folder in the cache."""

    cache_dir: Path
    repo: str
    folder: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "folder", self.cache_dir / ("models--" + self.repo.replace("/", "--")))

    def blob(self, file: FileInfo) -> Path:
        """Where the file's content is kept; its name is the content's hash."""
        assert file.hash is not None
        return self.folder / "blobs" / file.hash.partition(":")[2]

    def partial(self, file: FileInfo) -> Path:
        """Where content that is not complete is kept."""
        blob = self.blob(file)
        return blob.with_name(blob.name + PARTIAL)

    def drop(self, file: FileInfo) -> None:
        """Remove the file's blob, and what it is a link to (huggingface_hub's shared Xet store)."""
        blob = self.blob(file)
        if blob.is_symlink():
            shared = blob.resolve()
            if shared.is_relative_to(self.cache_dir):
                shared.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)

    def snapshot(self, commit: str) -> Path:
        """The folder through which libraries see a commit's files."""
        return self.folder / "snapshots" / commit

    def pointer(self, commit: str, path: str) -> Path:
        """The file's place in the snapshot."""
        return self.snapshot(commit) / path

    def own(self, commit: str, what: str) -> Path:
        """``mlxengine/<commit>.<what>.json``."""
        return self.folder / "mlxengine" / f"{commit}.{what}.json"

    # -- references -------------------------------------------------------------------------------

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit id stands for, as far as the cache knows."""
        if is_commit(revision):
            return revision
        try:
            text = (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        return text if is_commit(text) else None

    def set_ref(self, revision: str, commit: str) -> None:
        """Remember which commit a branch or tag stood for."""
        if is_commit(revision) or self.commit_of(revision) == commit:
            return
        path = self.folder / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, commit.encode(), self._scratch(), durable=False)

    # -- listing and marker -----------------------------------------------------------------------

    def listing(self, commit: str) -> Listing | None:
        """The commit's listing, if it was kept and can be read."""
        data = _load(self.own(commit, "listing"))
        if data is None:
            return None
        try:
            files = tuple(FileInfo(path=i["path"], size=i["size"], hash=i["hash"]) for i in data["files"])
            listing = Listing(
                repo=self.repo,
                commit=commit,
                files=files,
                license=data["license"],
                tags=tuple(data["tags"]),
                pipeline_tag=data["pipeline_tag"],
                library_name=data["library_name"],
            )
        except (KeyError, TypeError):
            return None
        whole = all(problem_with(f.path) is None and is_hash(f.hash) for f in files if f.hash is not None)
        return listing if whole else None

    def keep_listing(self, listing: Listing) -> None:
        """Keep a listing, so that the model can be found again without a network."""
        path = self.own(listing.commit, "listing")
        if path.exists() and self.listing(listing.commit) is not None:
            return
        _save(
            path,
            {
                "license": listing.license,
                "tags": list(listing.tags),
                "pipeline_tag": listing.pipeline_tag,
                "library_name": listing.library_name,
                "files": [{"path": f.path, "size": f.size, "hash": f.hash} for f in listing.files],
            },
            self.repo,
            listing.commit,
            durable=False,
        )

    def marker(self, commit: str) -> dict[str, Verified]:
        """The files of a commit that were verified, by path; empty if there is no readable marker."""
        data = _load(self.own(commit, "ready"))
        try:
            items = [Verified(**item) for item in (data or {})["files"]]
        except (KeyError, TypeError):
            return {}
        return {item.path: item for item in items}

    def keep_marker(self, commit: str, verified: Iterable[Verified]) -> None:
        """Write the marker: the last act of a download. Older entries of other files are kept."""
        with self.lock(f"mlxengine-{commit}"):
            merged = {**self.marker(commit), **{item.path: item for item in verified}}
            files = [
                {"path": i.path, "size": i.size, "mtime_ns": i.mtime_ns, "hash": i.hash}
                for i in sorted(merged.values(), key=lambda item: item.path)
            ]
            _save(self.own(commit, "ready"), {"files": files}, self.repo, commit)
            self._sweep()

    def unready(self, commit: str, files: Iterable[FileInfo]) -> list[FileInfo]:
        """Which of the files are not ready: not verified, or changed since, or gone."""
        known = self.marker(commit)
        snapshot = str(self.snapshot(commit))
        wrong = []
        for file in files:
            entry = known.get(file.path)
            if entry is None or entry.hash != file.hash or not entry.still(_stat(f"{snapshot}/{file.path}")):
                wrong.append(file)
        return wrong

    def commits(self) -> list[str]:
        """The commits of which anything is known, oldest marker or snapshot first."""
        found: dict[str, float] = {}
        for folder in ("snapshots", "mlxengine"):
            try:
                for entry in os.scandir(self.folder / folder):
                    name = entry.name.partition(".")[0]
                    if is_commit(name):
                        found[name] = max(found.get(name, 0.0), entry.stat(follow_symlinks=False).st_mtime)
            except OSError:
                continue
        return sorted(found, key=lambda name: found[name])

    def hashed(self) -> dict[str, list[Verified]]:
        """Every verified file of every commit, by hash: a blob that commits share is hashed once."""
        found: dict[str, list[Verified]] = {}
        for commit in self.commits():
            for item in self.marker(commit).values():
                found.setdefault(item.hash, []).append(item)
        return found

    # -- pointers and locks -----------------------------------------------------------------------

    def point(self, commit: str, file: FileInfo) -> None:
        """Make the file's place in the snapshot lead to its blob, as huggingface_hub does."""
        pointer, blob = self.pointer(commit, file.path), self.blob(file)
        target = os.path.relpath(blob, pointer.parent)
        if pointer.is_symlink() and str(pointer.readlink()) == target:
            return
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._scratch()
        try:
            temporary.symlink_to(target)
        except (OSError, NotImplementedError):
            os.link(blob, temporary)  # no symbolic links here: both names lead to one content
        temporary.replace(pointer)

    def _scratch(self) -> Path:
        """A name for what is not in place yet: in our own folder, where a killed process leaves no litter
        that others take for a file of the model or for a branch.
        """
        folder = self.folder / "mlxengine"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f".{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"

    def _sweep(self) -> None:
        """Remove what processes that were killed left in our folder more than an hour ago."""
        for stray in (self.folder / "mlxengine").glob(".*"):
            try:
                if time.time() - stray.lstat().st_mtime > 3600:
                    stray.unlink()
            except OSError:
                continue

    @contextmanager
    def lock(
        self, name: str, cancelled: Cancelled = never, until: Callable[[], bool] = never
    ) -> Iterator[bool]:
        """huggingface_hub's own lock for a blob (or another name), waited for in short slices.

        Gives ``False``, without the lock, as soon as somebody else holds it and ``until()`` is true.

        Raises:
            CancelledError: the caller gave up while it waited.
        """
        from huggingface_hub.utils import WeakFileLock

        path = self.cache_dir / ".locks" / self.folder.name / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            manager = WeakFileLock(path, timeout=0.3)
            try:
                manager.__enter__()
                break
            except TimeoutError:  # filelock's is one
                pass
            check(cancelled)
            if until():
                yield False
                return
        try:
            yield True
        finally:
            manager.__exit__(None, None, None)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 (a Path for each of many files costs more than the stat)
    except OSError:
        return None


def _load(path: Path) -> dict[str, Any] | None:
    try:
        data = read_json(path.read_bytes(), path.name)
    except (OSError, MLXEngineError):
        return None
    return data if isinstance(data, dict) and data.get("format") == FORMAT else None


def _save(path: Path, content: dict[str, Any], repo: str, commit: str, *, durable: bool = True) -> None:
    head = {"format": FORMAT, "written_by": f"mlxengine {__version__}", "repo": repo, "commit": commit}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({**head, **content}, indent=1).encode(), durable=durable)
