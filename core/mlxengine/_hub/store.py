"""What is on this machine: listed, verified, repaired, removed. Only `repair` makes requests."""

from __future__ import annotations

import enum
import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from ..contract.configuration import FileInfo, ModelConfiguration, ModelRef
from ..errors import CorruptFileError, InvalidModelRefError, InvalidParameterError, ModelNotFoundError
from .access import Access, Cancelled, never
from .cache import PARTIAL, RepoCache
from .content import hash_file
from .download import typed_disk_errors
from .events import Corrupt, HubEvent
from .fetch import Report, fetch_files
from .local import local_card
from .resolve import stock_listing


class FileState(enum.StrEnum):
    """How a file was found."""

    OK = "ok"
    UNVERIFIED = "unverified"
    MISSING = "missing"
    CHANGED = "changed"
    CORRUPT = "corrupt"


@frozen(kw_only=True)
class FileStatus:
    """One file of a model on this machine; ``hashed`` says whether its content was read."""

    path: str
    size: int
    state: FileState
    hashed: bool = False


@frozen(kw_only=True)
class VerifyReport:
    """What `verify` found. ``commit`` is ``None`` for a local folder or file."""

    model: str
    commit: str | None
    files: tuple[FileStatus, ...]
    problem: str = ""

    @property
    def bad(self) -> tuple[FileStatus, ...]:
        """The files that are not as they should be."""
        return tuple(file for file in self.files if file.state is not FileState.OK)

    @property
    def ok(self) -> bool:
        """Whether every file is there and as it was verified."""
        return bool(self.files) and not self.bad and not self.problem


@frozen(kw_only=True)
class LocalRevision:
    """One commit of a model on this machine; ``size`` in bytes of the files that are here."""

    commit: str
    refs: tuple[str, ...]
    ready: bool
    size: int
    path: Path


@frozen(kw_only=True)
class LocalModel:
    """A repository on this machine.

    Args:
        id: the repository's id.
        revisions: its commits, newest last.
        size: bytes of all its content, each blob counted once, downloads that are not complete included.
        partial: of that, bytes of downloads that are not complete.
    """

    id: str
    revisions: tuple[LocalRevision, ...]
    size: int
    partial: int

    @property
    def ready(self) -> bool:
        """Whether one of its commits can be loaded."""
        return any(revision.ready for revision in self.revisions)


@frozen(kw_only=True)
class Removal:
    """What `remove` removed, or would: ``freed`` bytes in ``files`` files."""

    model: str
    commits: tuple[str, ...]
    freed: int
    files: int


def cached(access: Access, ref: ModelRef) -> tuple[RepoCache, str]:
    """The cache folder and the commit of a reference.

    Raises:
        ModelNotFoundError: nothing of it is on this machine.
    """
    cache = RepoCache(access.cache_dir, repo_id(ref))
    commit = cache.commit_of(ref.revision or "main")
    if commit is None and ref.revision is None:
        commit = next(reversed(cache.commits()), None)
    if commit is None or commit not in cache.commits():
        raise ModelNotFoundError(
            f"{ref} is not in {access.cache_dir}.", hint="`mlxengine ls` shows what is; fetch it with `pull`."
        )
    return cache, commit


def repo_id(ref: ModelRef) -> str:
    """The repository that a reference names.

    Raises:
        InvalidModelRefError: it names a local path or a kind.
    """
    if ref.repo_id is None:
        raise InvalidModelRefError(f"{ref} is not a repository.", hint='Give "org/name[@revision]".')
    return ref.repo_id


def verify(
    access: Access,
    ref: ModelRef,
    *,
    deep: bool = False,
    sample: float = 1.0,
    cancelled: Cancelled = never,
) -> VerifyReport:
    """Check what is on this machine; makes no request. See `mlxengine.hub.verify`."""
    if not 0 < sample <= 1:
        raise InvalidParameterError(f"sample={sample!r} must be above 0 and at most 1.")
    if ref.path is not None:
        return _verify_local(ref)
    cache, commit = cached(access, ref)
    known = cache.marker(commit)
    files = marked_files(cache, commit)
    hashed = files if sample == 1 else random.sample(files, max(1, round(sample * len(files))))
    unready = {file.path for file in cache.unready(commit, files)}
    found = []
    for file in files:
        path = cache.pointer(commit, file.path)
        state = FileState.OK
        if not path.is_file():
            state = FileState.MISSING
        elif file.path in unready:
            state = FileState.CHANGED if file.path in known else FileState.UNVERIFIED
        read = deep and file in hashed and state is not FileState.MISSING
        if read:
            state = FileState.OK if hash_file(path, file, cancelled) == file.hash else FileState.CORRUPT
        found.append(FileStatus(path=file.path, size=file.size, state=state, hashed=read))
    problem = "" if found else "No download of it was completed here."
    return VerifyReport(model=cache.repo, commit=commit, files=tuple(found), problem=problem)


def marked_files(cache: RepoCache, commit: str) -> list[FileInfo]:
    """The files that a commit should have here: those that were verified, else those that are here."""
    known = cache.marker(commit)
    if known:
        return [FileInfo(path=item.path, size=item.size, hash=item.hash) for item in known.values()]
    listing = stock_listing(cache, commit)
    return list(listing.files) if listing is not None else []


def _verify_local(ref: ModelRef) -> VerifyReport:
    try:
        card = local_card(ref, ModelConfiguration(id=str(ref)))
    except CorruptFileError as error:
        return VerifyReport(model=str(ref), commit=None, files=(), problem=error.message)
    files = tuple(FileStatus(path=f.path, size=f.size, state=FileState.OK) for f in card.files)
    return VerifyReport(model=str(ref), commit=None, files=files)


def repair(
    access: Access, ref: ModelRef, *, report: Report | None = None, cancelled: Cancelled = never
) -> tuple[str, ...]:
    """Hash every file and fetch the bad and missing ones again. See `mlxengine.hub.repair`."""
    cache, commit = cached(access, ref)
    files = marked_files(cache, commit)
    if not files:
        raise ModelNotFoundError(f"No download of {ref} was completed here.", hint="Fetch it with `pull`.")
    bad = {file.path for file in files if not cache.pointer(commit, file.path).is_file()}

    def listen(event: HubEvent) -> None:
        if isinstance(event, Corrupt):
            bad.add(event.file)
        if report is not None:
            report(event)

    revision = ref.revision or "main"
    fetch_files(
        access,
        cache.repo,
        commit,
        files,
        revision=revision,
        report=listen,
        cancelled=cancelled,
        verify="deep",
    )
    return tuple(sorted(bad))


def list_local(access: Access) -> tuple[LocalModel, ...]:
    """Every model repository in the cache, by id."""
    found = []
    for folder in sorted(access.cache_dir.glob("models--*")):
        if folder.is_dir():
            found.append(_local_model(RepoCache(access.cache_dir, folder.name[8:].replace("--", "/"))))
    return tuple(found)


def _local_model(cache: RepoCache) -> LocalModel:
    refs: dict[str, list[str]] = {}
    root = cache.folder / "refs"
    for path in root.rglob("*") if root.is_dir() else ():
        name = path.relative_to(root).as_posix()
        commit = cache.commit_of(name) if path.is_file() else None
        if commit is not None:
            refs.setdefault(commit, []).append(name)
    revisions = []
    for commit in cache.commits():
        files = marked_files(cache, commit)
        known = cache.marker(commit)
        revisions.append(
            LocalRevision(
                commit=commit,
                refs=tuple(sorted(refs.get(commit, ()))),
                ready=bool(known) and not cache.unready(commit, files),
                size=_total(cache.snapshot(commit).rglob("*")),
                path=cache.snapshot(commit),
            )
        )
    blobs = list((cache.folder / "blobs").glob("*"))
    partial = _total(path for path in blobs if path.name.endswith((PARTIAL, ".incomplete")))
    return LocalModel(id=cache.repo, revisions=tuple(revisions), size=_total(blobs), partial=partial)


def _total(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def remove(access: Access, ref: ModelRef, *, dry_run: bool = False) -> Removal:
    """Remove a repository, or one revision of it. See `mlxengine.hub.remove`."""
    with typed_disk_errors(access.cache_dir):
        return _remove(access, ref, dry_run)


def _remove(access: Access, ref: ModelRef, dry_run: bool) -> Removal:
    cache = RepoCache(access.cache_dir, repo_id(ref))
    if cache.folder.is_symlink() or not cache.folder.is_dir():
        raise ModelNotFoundError(f"{ref} is not in {access.cache_dir}.", hint="`mlxengine ls` shows what is.")
    if ref.revision is None:
        return _remove_all(cache, dry_run)
    _, commit = cached(access, ref)
    others = [other for other in cache.commits() if other != commit]
    if not others:
        return _remove_all(cache, dry_run)
    kept = {blob for other in others for blob in _blobs(cache, other)}
    gone = [blob for blob in _blobs(cache, commit) if blob not in kept]
    freed = _total(gone)
    if not dry_run:
        # the marker goes first: what is half removed must not look ready
        for what in ("ready", "listing"):
            cache.own(commit, what).unlink(missing_ok=True)
        shutil.rmtree(cache.snapshot(commit), ignore_errors=True)
        for blob in gone:
            blob.unlink(missing_ok=True)
        for path in (cache.folder / "refs").rglob("*"):
            if path.is_file() and path.read_text().strip() == commit:
                path.unlink()
    return Removal(model=cache.repo, commits=(commit,), freed=freed, files=len(gone))


def _blobs(cache: RepoCache, commit: str) -> set[Path]:
    found = set()
    for pointer in cache.snapshot(commit).rglob("*"):
        if pointer.is_symlink():
            found.add(Path(os.path.normpath(pointer.parent / pointer.readlink())))
    listing = cache.listing(commit)
    for file in listing.files if listing is not None else ():
        if file.hash is not None:
            found |= {path for path in (cache.blob(file), cache.partial(file)) if path.exists()}
    return {path for path in found if path.parent == cache.folder / "blobs"}


def _remove_all(cache: RepoCache, dry_run: bool) -> Removal:
    blobs = list((cache.folder / "blobs").glob("*"))
    removal = Removal(model=cache.repo, commits=tuple(cache.commits()), freed=_total(blobs), files=len(blobs))
    if not dry_run:
        for commit in removal.commits:
            cache.own(commit, "ready").unlink(missing_ok=True)
        shutil.rmtree(cache.folder)
        shutil.rmtree(cache.cache_dir / ".locks" / cache.folder.name, ignore_errors=True)
    return removal


__all__ = [
    "FileState",
    "FileStatus",
    "LocalModel",
    "LocalRevision",
    "Removal",
    "VerifyReport",
    "list_local",
    "remove",
    "repair",
    "verify",
]
