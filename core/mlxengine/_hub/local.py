"""Folders and files of this machine as models: checked as a repository is, and left where they are."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..contract.configuration import FileInfo, ModelCard, ModelConfiguration, ModelRef, Source
from ..errors import CorruptFileError, InvalidModelRefError, ModelNotFoundError
from ..readonly import freeze
from .gguf import gguf_directory
from .headers import safetensors_tensors
from .inspection import decode_documents, documents_of, read_weights
from .names import PICKLES, problem_with

_MOST_FILES = 10_000
_SKIPPED = (".git", ".cache", "__pycache__")


def local_card(ref: ModelRef, configuration: ModelConfiguration) -> ModelCard:
    """The card of a folder, or of a ``.gguf`` or ``.safetensors`` file.

    ``commit`` is a digest of the files' names, sizes and times of change.

    Raises:
        ModelNotFoundError: there is no such folder or file.
        InvalidModelRefError: the file is neither.
        IncompatibleWeightsError: its configuration cannot be read, or an index names a missing shard.
        CorruptFileError: a header lies about its file, or a file is not a regular one.
    """
    assert ref.path is not None
    path = ref.path
    if not path.exists():
        raise ModelNotFoundError(f"There is no folder or file {path}.", hint="Check the path.")
    if path.is_dir():
        return _folder_card(path, ref, configuration)
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise InvalidModelRefError(
            f"{path} is a pickle, which can run code while it is read: it is never loaded.",
            hint="Take the .safetensors file of the same model.",
        )
    if suffix not in (".gguf", ".safetensors"):
        raise InvalidModelRefError(
            f"{path} is neither a folder nor a .gguf or .safetensors file.", hint="Give the model's folder."
        )
    file, digest = _info(path, path.name)
    read = _reader(path)
    metadata: dict[str, Any] = {}
    if suffix == ".gguf":
        metadata, tensors = gguf_directory(read, file.size, path.name)
    else:
        tensors = safetensors_tensors(read, file.size, path.name)
    return ModelCard(
        ref=ref,
        configuration=configuration,
        source=Source.GGUF if suffix == ".gguf" else Source.SAFETENSORS,
        commit=hashlib.sha1(digest.encode(), usedforsecurity=False).hexdigest(),
        path=path,
        files=(file,),
        tensors=tensors,
        gguf=freeze(metadata),
        license=metadata.get("general.license") if isinstance(metadata.get("general.license"), str) else None,
    )


def _folder_card(folder: Path, ref: ModelRef, configuration: ModelConfiguration) -> ModelCard:
    files, digest = [], hashlib.sha1(usedforsecurity=False)
    for name in _names(folder):
        if problem_with(name) is not None:
            continue  # no model library writes such a name
        file, line = _info(folder / name, name)
        files.append(file)
        digest.update(f"{line}\n".encode())
    if not files:
        raise ModelNotFoundError(f"{folder} has no files.", hint="Check the path.")
    documents = decode_documents(documents_of(files), lambda file: (folder / file.path).read_bytes())

    def parse(parser: Callable[..., Any], wanted: list[FileInfo]) -> list[Any]:
        return [parser(_reader(folder / file.path), file.size, file.path) for file in wanted]

    tensors, gguf = read_weights(files, documents, parse)
    return ModelCard(
        ref=ref,
        configuration=configuration,
        source=Source.FOLDER,
        commit=digest.hexdigest(),
        path=folder,
        files=tuple(files),
        documents=freeze(documents),
        tensors=tensors,
        gguf=freeze(gguf),
    )


def _names(folder: Path) -> Iterator[str]:
    count = 0
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            count += 1
            if count > _MOST_FILES:
                raise ModelNotFoundError(
                    f"{folder} has more than {_MOST_FILES} files.", hint="Give the folder of one model."
                )
            yield (Path(here) / name).relative_to(folder).as_posix()


def _info(path: Path, name: str) -> tuple[FileInfo, str]:
    try:
        found = path.stat()
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}.", hint="Check the link.") from error
    if not stat.S_ISREG(found.st_mode):
        raise CorruptFileError(f"{path} is not a regular file.", hint="Remove it from the model's folder.")
    return FileInfo(path=name, size=found.st_size), f"{name} {found.st_size} {found.st_mtime_ns}"


def _reader(path: Path) -> Callable[[int, int], bytes]:
    def read(start: int, stop: int) -> bytes:
        with path.open("rb") as handle:
            handle.seek(start)
            return handle.read(stop - start)

    return read
