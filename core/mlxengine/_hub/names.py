"""What a hub (or a folder) may call its files, and how its JSON is read: nothing is taken on trust."""

from __future__ import annotations

import json
import re
from typing import Any

from .._shown import unshowable
from ..errors import CorruptFileError, IncompatibleWeightsError

DOCUMENT_BYTES = 1 << 20
"""JSON files of at most this many bytes are part of a `ModelCard`."""

_DEPTH = 100
_NAME_BYTES = 255
_PATH_BYTES = 1024
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
"""Suffixes under which weights are kept as pickles, which run code when they are read."""


def problem_with(path: object) -> str | None:
    """Why a file of this name cannot be kept in a folder of ours, or ``None`` if it can."""
    if not isinstance(path, str) or not path:
        return "it is empty"
    if unshowable(path):
        return "it has a character that nobody can see, or that a terminal obeys"
    if "\\" in path or _DRIVE.match(path):
        return "it has a backslash or a drive"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "it is not Unicode text"
    if len(encoded) > _PATH_BYTES:
        return f"it is longer than {_PATH_BYTES} bytes"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "it is absolute or leaves the repository"
        if len(part.encode()) > _NAME_BYTES:
            return f"a part of it is longer than {_NAME_BYTES} bytes"
        if _DEVICE.fullmatch(part) or part.endswith((" ", ".")):
            return "it is the name of a device on some systems, or one that they change"
    return None


def check_path(path: object, owner: str) -> str:
    """The path itself, if it may be used below a folder of ours.

    Raises:
        CorruptFileError: it is absolute, leaves the repository, names a device, or is too long.
    """
    why = problem_with(path)
    if why is not None or not isinstance(path, str):
        raise CorruptFileError(
            f"{owner} lists a file named {str(path)[:80]!r}, which is refused: {why}.",
            hint="Do not use this repository; tell its owner.",
            recoverable=False,
        )
    return path


def text(value: object) -> str | None:
    """What should be a text, if it is one."""
    return value if isinstance(value, str) else None


def texts(value: object) -> tuple[str, ...]:
    """The texts in what should be a list of them."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def is_commit(text: object) -> bool:
    """Whether the text is a full commit id."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def is_hash(text: object) -> bool:
    """Whether the text is a content hash as `FileInfo.hash` writes it."""
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


def read_json(data: bytes, what: str, *, unique: bool = False) -> Any:
    """Decode a JSON document that a stranger wrote.

    ``unique``: no object may name a key twice, which readers understand differently.

    Raises:
        IncompatibleWeightsError: it is not JSON, not UTF-8, or nested more than 100 deep.
    """
    try:
        hook = _once if unique else None
        found = json.loads(data.decode("utf-8-sig"), object_pairs_hook=hook)
        level, depth = [found], 1
        while level := [item for value in level for item in _inside(value)]:
            depth += 1
            if depth > _DEPTH:
                raise ValueError(f"it is nested more than {_DEPTH} deep")
        return found
    except (ValueError, RecursionError) as error:
        raise IncompatibleWeightsError(
            f"{what} is not a JSON document that can be read: {error}.",
            hint="Look at the file: a web page or a Git LFS pointer saved in its place is the usual reason.",
        ) from error


def _inside(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, dict | list)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object names a key twice")
    return found


def is_document(path: str, size: int) -> bool:
    """Whether a file is one of the JSON documents that a `ModelCard` carries."""
    return path.endswith(".json") and size <= DOCUMENT_BYTES
