"""One file: resumed, hashed while it arrives, put in place only when its hash is right."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from attrs import field, frozen

from ..contract.configuration import FileInfo
from ..errors import CorruptFileError, DownloadError, InsufficientDiskError
from .access import Access, Cancelled, check, never
from .cache import RepoCache
from .content import Digest, hash_file
from .events import Corrupt, HubEvent, Resumed, Retry, Verifying
from .patience import Patience
from .secrets import saved_token, scrub, silent
from .transport import Answer, get
from .wire import Trouble

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@frozen(kw_only=True)
class Job:
    """What the files of one download share.

    Args:
        cache: the repository's folder.
        commit: the pinned commit.
        emit: takes events, from any thread.
        moved: ``moved(path, at)``: the file's first ``at`` bytes are there.
        cancelled: whether to stop.
        known: whether a blob of this hash, looking as this file does, was verified before.
    """

    access: Access
    cache: RepoCache
    commit: str
    emit: Callable[[HubEvent], None] = field(default=lambda _event: None)
    moved: Callable[[str, int], None] = field(default=lambda _path, _at: None)
    cancelled: Cancelled = never
    known: Callable[[FileInfo, os.stat_result], bool] = field(default=lambda _file, _stat: False)

    def url(self, path: str) -> str:
        """The address at which the hub offers a file of the pinned commit."""
        return f"{self.access.endpoint}/{self.cache.repo}/resolve/{self.commit}/{quote(path)}"

    def check(self) -> None:
        """Raise `CancelledError` if the caller gave up."""
        check(self.cancelled)


@contextmanager
def typed_disk_errors(folder: Path) -> Iterator[None]:
    """Give what a disk refuses a type of ours; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientDiskError(
                f"The disk of {folder} became full.",
                hint="Free some space and call again: what has arrived is kept and resumed.",
            ) from error
        if error.errno in (*READ_ONLY, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR):
            raise DownloadError(
                f"{folder} cannot be written: {error.strerror} ({error.filename or 'a file in it'}).",
                hint="Check its permissions and its disk, or choose another cache_dir.",
                recoverable=False,
            ) from error
        raise


def obtain(job: Job, file: FileInfo) -> os.stat_result:
    """Make the file's blob be there with the right content, from the disk if possible.

    Returns:
        how the blob looked when its content was known to be right.

    Raises:
        CorruptFileError: what the hub sends is not what it lists, also after fetching it again.
        DownloadError: nothing arrived for too long; the partial file stays.
        InsufficientDiskError: the disk is full; the partial file stays.
        CancelledError: the caller gave up; the partial file stays.
        ResolutionError: the hub refuses the file.
    """
    blob = job.cache.blob(file)
    if blob.exists() and not os.access(blob.parent, os.W_OK):
        found = good_blob(job, file)  # a cache that others fill: nothing can be locked or replaced there
        if found is not None:
            return found
    with typed_disk_errors(job.cache.cache_dir):
        return _obtain(job, file, blob)


def _obtain(job: Job, file: FileInfo, blob: Path) -> os.stat_result:
    blob.parent.mkdir(parents=True, exist_ok=True)
    with job.cache.lock(blob.name, job.cancelled, until=lambda: _follow(job, file)):
        found = good_blob(job, file, discard=True)
        if found is not None:
            # Another client completed the file while we waited: what we had of it is of no use.
            job.cache.partial(file).unlink(missing_ok=True)
            return found
        if file.size <= job.access.policy.xet_above:
            return _stream(job, file, blob)
    return _through_xet(job, file)


def _follow(job: Job, file: FileInfo) -> bool:
    """While another process fetches the file: show how far it is, and go on waiting."""
    try:
        job.moved(file.path, min(file.size, job.cache.partial(file).stat().st_size))
    except OSError:
        pass
    return False


def good_blob(job: Job, file: FileInfo, *, discard: bool = False) -> os.stat_result | None:
    """How the blob looks, if its content is right; a wrong one is thrown away if ``discard``."""
    blob = job.cache.blob(file)
    try:
        found = blob.stat()
    except OSError:
        if discard:
            job.cache.drop(file)  # a link that leads nowhere
        return None
    if not job.known(file, found):
        job.emit(Verifying(repo=job.cache.repo, file=file.path, size=found.st_size))
        content = hash_file(blob, file, job.cancelled)
        if content != file.hash:
            reject(job, file, content, found.st_size)
            if discard:
                job.cache.drop(file)
            return None
    job.moved(file.path, file.size)
    return found


def reject(job: Job, file: FileInfo, content: str | None, size: int) -> None:
    """Say that what was found is not the file."""
    found = content or f"{size} bytes instead of {file.size}"
    job.emit(Corrupt(repo=job.cache.repo, file=file.path, expected=file.hash or "", found=found))


def _stream(job: Job, file: FileInfo, blob: Path) -> os.stat_result:
    for _ in range(job.access.policy.corrupt_attempts):
        partial = Partial(job, file)
        try:
            partial.fill(file.size)
            content = partial.digest.text()
            if content == file.hash and (found := partial.commit(blob)) is not None:
                return found
            reject(job, file, content, partial.at)
            partial.discard()
        finally:
            partial.close()
    raise CorruptFileError(
        f"{file.path} of {job.cache.repo} does not have the content that the hub lists for it "
        f"({file.hash}), after {job.access.policy.corrupt_attempts} downloads.",
        hint="A proxy or a mirror may change or damage it; try another network or endpoint.",
    )


class Partial:
    """A file that is not complete, the hash of what is there, and the way to get more of it.

    Bytes are written at their own offset and never appended, so that two writers (on a file system whose
    locks lie) write the same bytes to the same place; a wrong partial is unlinked, never truncated.
    """

    def __init__(self, job: Job, file: FileInfo) -> None:
        self._job, self._file = job, file
        self._path = job.cache.partial(file)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        self.digest = Digest(file)
        self.at = 0
        self._resume()

    def _resume(self) -> None:
        have = os.fstat(self._descriptor).st_size
        if have > self._file.size:
            self.discard()
            self.close()
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            return
        while block := os.pread(self._descriptor, self._job.access.policy.chunk, self.at):
            self.digest.update(block)
            self.at += len(block)
            self._job.check()
        if self.at:
            event = Resumed(repo=self._job.cache.repo, file=self._file.path, at=self.at, size=self._file.size)
            self._job.emit(event)
        self._job.moved(self._file.path, self.at)

    def fill(self, stop: int) -> None:
        """Fetch until the first ``stop`` bytes are there, going on wherever a connection ends."""
        job, file = self._job, self._file
        patience = Patience(job.access.policy, job.cancelled, self._retry)
        while self.at < stop:
            before, start, problem = self.at, time.monotonic(), None
            try:
                self._receive(stop)
            except Trouble as trouble:
                problem = trouble
            job.check()
            if self.at >= stop:
                return
            if self.at - before > job.access.policy.slowest * (time.monotonic() - start):
                patience.progressed()
            elif problem is None:
                problem = Trouble("the answer ended too early")
            if problem is not None:
                patience.failed(problem, _gave_up(f"{file.path} of {job.cache.repo}", problem))

    def _receive(self, stop: int) -> None:
        job, file, begin = self._job, self._file, self.at
        last = f"{stop - 1}" if stop < file.size else ""
        headers = {"Range": f"bytes={begin}-{last}"} if begin or last else {}
        url = job.url(file.path)
        policy = job.access.policy
        with get(
            job.access, url, repo=job.cache.repo, policy=policy, cancelled=job.cancelled, headers=headers
        ) as answer:
            skip, left = _skip(answer, begin, file), answer.length
            for chunk in answer.chunks():
                left -= len(chunk)
                data = memoryview(chunk)[skip:]
                skip = max(0, skip - len(chunk))
                self._write(data[: stop - self.at])
                if self.at >= stop and left != 0:
                    return  # whatever else it sends is not ours; read to its end, a connection lives on

    def _write(self, data: memoryview) -> None:
        self.digest.update(data)
        while data:
            count = os.pwrite(self._descriptor, data, self.at)
            self.at += count
            data = data[count:]
        self._job.moved(self._file.path, self.at)

    def _retry(self, reason: str, delay: float, attempt: int) -> None:
        event = Retry(
            repo=self._job.cache.repo, file=self._file.path, reason=reason, delay=delay, attempt=attempt
        )
        self._job.emit(event)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes of the file that are there already."""
        return os.pread(self._descriptor, stop - start, start)

    def commit(self, blob: Path) -> os.stat_result | None:
        """Put the complete file in its place; ``None`` if it is not the one that was written."""
        os.fsync(self._descriptor)
        ours, there = os.fstat(self._descriptor), self._path.stat()
        if (ours.st_ino, ours.st_size) != (there.st_ino, self._file.size):
            return None
        self._path.replace(blob)
        return ours

    def discard(self) -> None:
        """Throw away what is there."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; what is there stays for the next call."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _skip(answer: Answer, begin: int, file: FileInfo) -> int:
    """How many bytes of a body come before those that were asked for.

    Raises:
        Trouble: the body is not the part of the file that was asked for.
    """
    encoding = answer.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Trouble(f"the answer is encoded as {encoding}, which was not asked for", again=False)
    if answer.status == 200:
        return begin  # Range was ignored: the body starts at the file's beginning
    told = answer.headers.get("content-range", "")
    first, _, total = told.removeprefix("bytes ").partition("/")
    if answer.status != 206 or first.partition("-")[0] != str(begin) or total not in (str(file.size), "*"):
        raise Trouble(f"bytes from {begin} were asked for, the answer has {told or answer.status}")
    return 0


def _through_xet(job: Job, file: FileInfo) -> os.stat_result:
    """A file above the hub's limit for plain HTTP: huggingface_hub's own way, then our own hash.

    It takes the blob's lock itself. A cancel does not wait for it; it goes on until it has its file.
    """
    from huggingface_hub import hf_hub_download

    access = job.access
    problem: Exception | None = None
    scheme, _, address = access.endpoint.partition("://")
    token = access.token if access.token is not None else saved_token()
    try:
        hf_hub_download(
            job.cache.repo,
            file.path,
            revision=job.commit,
            cache_dir=job.cache.cache_dir,
            endpoint=f"{scheme}://{access.userinfo}@{address}" if access.userinfo else access.endpoint,
            token=token or False,
            library_name="mlxengine",
        )
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's
        problem = error
    except Exception as error:
        problem = error
    if problem is not None:
        secrets = (*access.secrets, *filter(None, (token,)))
        trouble = Trouble(f"{type(problem).__name__}: {scrub(str(problem), secrets)[:500]}")
        raise _gave_up(f"{file.path} of {job.cache.repo}", trouble) from silent(problem, secrets)
    found = good_blob(job, file, discard=True)
    if found is None:
        raise CorruptFileError(
            f"{file.path} of {job.cache.repo} does not have the content that the hub lists for it.",
            hint="Call again.",
        )
    return found


def _gave_up(file: str, problem: Trouble) -> DownloadError:
    """The error for a file whose download made no progress for too long."""
    hint = "Call again: what has arrived is kept and resumed."
    if not problem.again:
        hint = "Check the endpoint, and what stands between it and this machine."
    return DownloadError(f"{file} did not arrive: {problem.reason}.", hint=hint)
