"""Reads what a card needs of a repository's files: JSON documents whole, weights by their headers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from attrs import field, frozen

from ..contract.configuration import FileInfo, TensorInfo
from ..errors import CorruptFileError, IncompatibleWeightsError, OfflineError
from .cache import Listing
from .content import hash_bytes
from .download import Job, Partial, good_blob, obtain, typed_disk_errors
from .gguf import gguf_directory
from .headers import Reader, safetensors_tensors
from .names import DOCUMENT_BYTES, is_document, read_json
from .workers import each

_MOST_DOCUMENTS = 200
_FIRST_PIECE = 1 << 17
_ESSENTIAL = ("config.json", "model_index.json")
_INDEX = ".safetensors.index.json"


@frozen(kw_only=True)
class Found:
    """What reading a repository's files brought."""

    documents: Mapping[str, Any] = field(factory=dict)
    tensors: tuple[TensorInfo, ...] = ()
    gguf: Mapping[str, Any] = field(factory=dict)


def decode_documents(files: Iterable[FileInfo], load: Callable[[FileInfo], bytes]) -> dict[str, Any]:
    """Decode JSON documents; one that loading cannot do without must be readable, others are left out.

    Raises:
        IncompatibleWeightsError: ``config.json`` or ``model_index.json`` (in any folder) cannot be read.
    """
    documents = {}
    for file in files:
        try:
            documents[file.path] = read_json(load(file), file.path)
        except IncompatibleWeightsError:
            if PurePosixPath(file.path).name in _ESSENTIAL or file.path.endswith(_INDEX):
                raise
    return documents


def documents_of(files: Sequence[FileInfo]) -> list[FileInfo]:
    """The files that are documents.

    Raises:
        IncompatibleWeightsError: a configuration is too large to be one.
    """
    for file in files:
        if PurePosixPath(file.path).name in _ESSENTIAL and file.size > DOCUMENT_BYTES:
            raise IncompatibleWeightsError(
                f"{file.path} has {file.size} bytes; no configuration above {DOCUMENT_BYTES} is read.",
                hint="Look at the file: it is not what its name says.",
            )
    found = [file for file in files if is_document(file.path, file.size)]
    return sorted(found, key=lambda file: (file.path.count("/"), file.path))[:_MOST_DOCUMENTS]


def weights_of(files: Sequence[FileInfo], documents: Mapping[str, Any]) -> list[FileInfo]:
    """The safetensors files whose headers are read: where a folder has an index, the shards it names.

    Raises:
        IncompatibleWeightsError: an index names a shard that is not there.
    """
    by_path = {file.path: file for file in files if file.suffix == ".safetensors"}
    indexed: set[str] = set()
    shards: set[str] = set()
    for path, document in documents.items():
        weight_map = document.get("weight_map") if isinstance(document, Mapping) else None
        if not path.endswith(_INDEX) or not isinstance(weight_map, Mapping):
            continue
        folder = PurePosixPath(path).parent
        indexed.add(str(folder))
        named = {str(folder / name) for name in weight_map.values() if isinstance(name, str)}
        missing = sorted(named - by_path.keys())
        if missing:
            raise IncompatibleWeightsError(
                f"{path} names weights that are not there: {', '.join(missing[:3])}.",
                hint="The repository (or folder) is incomplete.",
            )
        shards |= named
    return [
        file
        for path, file in sorted(by_path.items())
        if path in shards or str(PurePosixPath(path).parent) not in indexed
    ]


def read_weights(
    files: Sequence[FileInfo], documents: Mapping[str, Any], parse: Callable[[Any, list[FileInfo]], list[Any]]
) -> tuple[tuple[TensorInfo, ...], Mapping[str, Any]]:
    """Tensors and GGUF metadata. ``parse(parser, files)`` runs a header parser over files.

    Of several GGUF files only the smallest one's metadata is read: they are as a rule one model,
    quantized in different ways, and their tensors together would be no model.
    """
    tensors: tuple[TensorInfo, ...] = ()
    for found in parse(safetensors_tensors, weights_of(files, documents)):
        tensors += found
    ggufs = sorted(
        (file for file in files if file.suffix == ".gguf" and file.size), key=lambda file: file.size
    )
    if tensors or not ggufs:
        return tensors, {}
    ((metadata, entries),) = parse(gguf_directory, ggufs[:1])
    return (entries if len(ggufs) == 1 else ()), metadata


def inspect(job: Job, listing: Listing) -> Found:
    """Read documents and headers of a repository of the hub, through the cache.

    The first bytes of a weight file are kept as the beginning of its download.
    """
    wanted = documents_of(listing.files)
    if job.access.offline:
        _need([file for file in wanted if not job.cache.blob(file).exists()], job)
    else:
        each(job, wanted, _document)
    documents = decode_documents(wanted, lambda file: _checked(job, file))

    def parse(parser: Callable[[Reader, int, str], Any], files: list[FileInfo]) -> list[Any]:
        return each(job, files, lambda job, file: _header(job, file, parser))

    with typed_disk_errors(job.cache.cache_dir):
        tensors, gguf = read_weights(listing.files, documents, parse)
    return Found(documents=documents, tensors=tensors, gguf=gguf)


def _need(absent: Sequence[FileInfo], job: Job) -> None:
    if absent:
        raise OfflineError(
            f"{job.cache.repo} is not complete in {job.cache.cache_dir}, and the network is off: "
            f"missing are {', '.join(file.path for file in absent[:20])}.",
            hint="Fetch it once with a network.",
        )


def _document(job: Job, file: FileInfo) -> None:
    try:
        right = hash_bytes(job.cache.blob(file).read_bytes(), file) == file.hash
    except OSError:
        right = False
    if not right:
        obtain(job, file)


def _checked(job: Job, file: FileInfo) -> bytes:
    data = job.cache.blob(file).read_bytes()
    if hash_bytes(data, file) != file.hash:
        raise CorruptFileError(
            f"{file.path} of {job.cache.repo} is damaged.", hint=f"Run `mlxengine repair {job.cache.repo}`."
        )
    return data


def _header(job: Job, file: FileInfo, parser: Callable[[Reader, int, str], Any]) -> Any:
    attempts = 1 if job.access.offline else job.access.policy.corrupt_attempts
    for attempt in range(1, attempts + 1):
        try:
            return parser(lambda start, stop: _first_bytes(job, file, start, stop), file.size, file.path)
        except CorruptFileError:
            if attempt == attempts or not _was_damaged(job, file):
                raise
    raise AssertionError("unreachable")


def _was_damaged(job: Job, file: FileInfo) -> bool:
    """After a header that makes no sense: throw away what is here, unless the hub's own file is like that."""
    with job.cache.lock(job.cache.blob(file).name, job.cancelled):
        if good_blob(job, file, discard=True) is not None:
            return False
        job.cache.partial(file).unlink(missing_ok=True)
    return True


def _first_bytes(job: Job, file: FileInfo, start: int, stop: int) -> bytes:
    """Bytes near a file's beginning: from the disk, or fetched and kept for the download to go on from."""
    stop = min(stop, file.size)
    blob, partial = job.cache.blob(file), job.cache.partial(file)

    def here() -> bytes | None:
        for path in (blob, partial):
            try:
                with path.open("rb") as handle:
                    size = os.fstat(handle.fileno()).st_size
                    if size == file.size if path is blob else size >= stop:
                        return os.pread(handle.fileno(), stop - start, start)
            except OSError:
                continue
        return None

    data = here()
    if data is not None:
        return data
    if job.access.offline:
        _need([file], job)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with job.cache.lock(blob.name, job.cancelled, until=lambda: here() is not None) as locked:
        data = here()
        if data is None and locked:
            held = Partial(job, file)
            try:
                held.fill(max(stop, min(file.size, _FIRST_PIECE)))
                data = held.read(start, stop)
            finally:
                held.close()
    return data if data is not None else _first_bytes(job, file, start, stop)
