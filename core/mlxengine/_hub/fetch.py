"""All files of a model: planned, checked against the disk, fetched, pointed at, and marked ready."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from .._files import sync_folder
from ..contract.configuration import FileInfo, ModelCard, Source
from ..errors import CorruptFileError, InsufficientDiskError, InvalidParameterError, OfflineError
from .access import Access, Cancelled, never
from .cache import RepoCache, Verified
from .download import READ_ONLY, Job, good_blob, obtain, typed_disk_errors
from .events import Bytes, Corrupt, Failed, HubEvent, Planned, Ready
from .select import select
from .workers import each

log = logging.getLogger("mlxengine.hub")
Report = Callable[[HubEvent], None]


@frozen(kw_only=True)
class PlannedFile:
    """One file of a plan: ``have`` of ``size`` bytes are on the disk already."""

    path: str
    size: int
    hash: str
    have: int


@frozen(kw_only=True)
class DownloadPlan:
    """What a fetch would do. Sizes are bytes.

    Args:
        repo, commit: the repository, and the one commit that all files are taken from.
        files: every file that would be there afterwards.
        free: free space on the cache's disk.
        reserve: of that, what is left alone.
    """

    repo: str
    commit: str
    files: tuple[PlannedFile, ...]
    free: int
    reserve: int

    @property
    def total(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def need(self) -> int:
        """Bytes that would be fetched."""
        return sum(file.size - file.have for file in self.files)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is missing."""
        return self.need <= max(0, self.free - self.reserve)


def make_plan(cache: RepoCache, commit: str, files: Sequence[FileInfo]) -> DownloadPlan:
    """Compare what is asked for with what the disk has; makes no request."""
    folder = cache.cache_dir
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    planned = [PlannedFile(path=f.path, size=f.size, hash=f.hash or "", have=_have(cache, f)) for f in files]
    reserve = min(512 << 20, usage.total // 100)
    return DownloadPlan(
        repo=cache.repo, commit=commit, files=tuple(planned), free=usage.free, reserve=reserve
    )


def _have(cache: RepoCache, file: FileInfo) -> int:
    for path in (cache.blob(file), cache.partial(file)):
        try:
            size = path.stat().st_size
        except OSError:
            continue
        if path.name.endswith(".incomplete"):
            return size if size <= file.size else 0
        if size == file.size:
            return size
    return 0


def fetch(
    card: ModelCard,
    patterns: Sequence[str],
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
    report: Report | None = None,
    cancelled: Cancelled = never,
    verify: str | None = None,
    pickles: bool = False,
) -> Path:
    """Make the files of a resolved model that match the patterns be here, complete and verified.

    Args:
        verify: ``"deep"`` hashes every file again, also those that are marked ready.
        report: takes `HubEvent` values, one at a time, from any thread.
        pickles: fetch pickles that match, too; nothing opens them.

    Returns:
        the folder that holds the files, laid out as in the repository; for a local source, its own path.

    Raises:
        OfflineError: files are missing and the network is off; the message names them.
        CorruptFileError, DownloadError, InsufficientDiskError: see `obtain`.
        IncompatibleWeightsError: the weights exist as pickles only.
        CancelledError: ``cancelled()`` became true; what has arrived is kept.
    """
    if verify not in (None, "deep"):
        raise InvalidParameterError(f"verify={verify!r} must be None or 'deep'.")
    files = select(card, patterns, pickles=pickles)
    if card.source is not Source.HUB:
        assert card.path is not None
        return card.path
    access = Access.of(endpoint=endpoint, cache_dir=cache_dir, token=token, offline=offline)
    revision = card.ref.revision or "main"
    return fetch_files(
        access,
        card.id,
        card.commit,
        files,
        revision=revision,
        report=report,
        cancelled=cancelled,
        verify=verify,
    )


def fetch_files(
    access: Access,
    repo: str,
    commit: str,
    files: Sequence[FileInfo],
    *,
    revision: str = "main",
    report: Report | None = None,
    cancelled: Cancelled = never,
    verify: str | None = None,
) -> Path:
    """`fetch` for a list of files of a pinned commit."""
    cache = RepoCache(access.cache_dir, repo)
    progress = Progress(repo, files, report)
    todo = list(files) if verify == "deep" else cache.unready(commit, files)
    known = {} if verify == "deep" else cache.hashed()
    job = Job(
        access=access,
        cache=cache,
        commit=commit,
        emit=progress.emit,
        moved=progress.moved,
        cancelled=cancelled,
        known=lambda file, found: any(item.still(found) for item in known.get(file.hash or "", ())),
    )
    try:
        plan = make_plan(cache, commit, files)
        need = sum(file.size - _have(cache, file) for file in todo)
        progress.emit(Planned(repo=repo, commit=commit, files=len(files), total=plan.total, need=need))
        waiting = {file.path for file in todo}
        for file in files:
            if file.path not in waiting:
                progress.moved(file.path, file.size)
        if todo:
            looks = _from_disk(job, todo) if access.offline else _from_hub(job, todo, plan)
            with typed_disk_errors(cache.cache_dir):
                _make_ready(cache, commit, todo, looks)
        if not access.offline:
            with (
                typed_disk_errors(cache.cache_dir),
                _unless_read_only(f"{revision} is not noted as {commit}"),
            ):
                cache.set_ref(revision, commit)
    except BaseException as error:
        with suppress(Exception):  # the listener's own trouble must not hide ours
            progress.emit(Failed(repo=repo, error=str(error) or type(error).__name__))
        raise
    progress.finish()
    path = cache.snapshot(commit)
    progress.emit(Ready(repo=repo, path=path))
    return path


def _make_ready(
    cache: RepoCache, commit: str, files: Sequence[FileInfo], looks: Sequence[os.stat_result]
) -> None:
    sync_folder(cache.folder / "blobs")
    for file in files:
        cache.point(commit, file)
    verified = [
        Verified(path=file.path, size=file.size, mtime_ns=look.st_mtime_ns, hash=file.hash or "")
        for file, look in zip(files, looks, strict=True)
    ]
    with _unless_read_only(f"{cache.repo} is hashed again at every load"):
        cache.keep_marker(commit, verified)


@contextmanager
def _unless_read_only(consequence: str) -> Iterator[None]:
    """Note something beside files that are all here; a cache that others fill does without."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        log.warning("The cache is read-only (%s): %s", error.filename, consequence)


def _from_hub(job: Job, todo: Sequence[FileInfo], plan: DownloadPlan) -> list[os.stat_result]:
    if not plan.fits:
        raise InsufficientDiskError(
            f"{plan.repo} needs {plan.need / 1e9:.2f} GB more on the disk of {job.cache.cache_dir}, "
            f"which has {plan.free / 1e9:.2f} GB free ({plan.reserve / 1e9:.2f} GB of it are left alone).",
            hint="Free some space, remove models (`mlxengine rm`), or choose another cache_dir.",
        )
    order = sorted(range(len(todo)), key=lambda index: -todo[index].size)
    looks = each(job, [todo[index] for index in order], obtain)
    return [look for _, look in sorted(zip(order, looks, strict=True), key=lambda pair: pair[0])]


def _from_disk(job: Job, todo: Sequence[FileInfo]) -> list[os.stat_result]:
    """Without a network: take what is in the cache, if all of it is there and right."""
    absent = [file.path for file in todo if not job.cache.blob(file).exists()]
    if absent:
        raise OfflineError(
            f"{job.cache.repo} is not complete in {job.cache.cache_dir}, and the network is off: "
            f"{len(absent)} of its files are missing ({', '.join(absent[:20])}).",
            hint="Fetch it once with a network.",
        )
    looks = each(job, todo, lambda job, file: good_blob(job, file))
    wrong = [file.path for file, look in zip(todo, looks, strict=True) if look is None]
    if wrong:
        raise CorruptFileError(
            f"Files of {job.cache.repo} are damaged: {', '.join(wrong)}.",
            hint=f"Run `mlxengine repair {job.cache.repo}` with a network.",
        )
    return [look for look in looks if look is not None]


class Progress:
    """Adds up the bytes of all files, and passes events on one at a time."""

    def __init__(self, repo: str, files: Sequence[FileInfo], report: Report | None) -> None:
        self._repo, self._report = repo, report
        self._total = sum(file.size for file in files)
        self._at = dict.fromkeys((file.path for file in files), 0)
        self._sum = self._most = 0
        self._lock = threading.RLock()

    def emit(self, event: HubEvent) -> None:
        if isinstance(event, Corrupt):
            log.warning("%s of %s is damaged and is thrown away", event.file, event.repo)
        if self._report is not None:
            with self._lock:
                self._report(event)

    def moved(self, path: str, at: int) -> None:
        """The first ``at`` bytes of a file are there."""
        with self._lock:
            self._sum += at - self._at[path]
            self._at[path] = at
            if self._sum > self._most:
                self._most = self._sum
                self.emit(Bytes(repo=self._repo, done=self._most, total=self._total))

    def finish(self) -> None:
        """Everything is there."""
        with self._lock:
            if self._most < self._total or not self._total:
                self._most = self._total
                self.emit(Bytes(repo=self._repo, done=self._total, total=self._total))


__all__ = ["DownloadPlan", "PlannedFile", "Progress", "Report", "fetch", "fetch_files", "make_plan"]
