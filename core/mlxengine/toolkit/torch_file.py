"""Tensors out of the files that ``torch.save`` writes, without running what is in them.

Such a file is a zip archive of a pickle and the raw numbers. A pickle is a program; Python's own reader
calls whatever it names. This one walks through its instructions (parsed by ``pickletools``) with a stack of
its own, and knows a dictionary, a list, a tensor's description and nothing else: no function is called and
no class made because a file says so. What it does not know it refuses by name. It needs neither torch nor
Python's unpickler.
"""

from __future__ import annotations

import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from ..errors import CorruptFileError, IncompatibleWeightsError

_ZIP = b"PK\x03\x04"
_MOST_PICKLE = 16 << 20
"""Bytes of a pickle: descriptions of a hundred thousand tensors."""
_MOST_DIMENSIONS = 16
_MOST_COPIES = 4
"""How many times its own size a file's tensors may have together; they may share numbers."""

DTYPES: Mapping[str, tuple[str, int]] = {
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "DoubleStorage": ("F64", 8),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
"""The storages of torch: what safetensors calls their numbers, and the bytes of one."""
# RuntimeError: encrypted, or (NotImplementedError) of a later version of the format.
_UNREADABLE = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, struct.error)
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2")


@frozen
class _Name:
    """A global that a pickle names; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@frozen
class _Storage:
    key: str
    dtype: str
    count: int


@frozen(kw_only=True)
class StoredTensor:
    """Where a tensor's numbers are in a file.

    Args:
        key: of its storage.
        dtype: as safetensors calls it.
        offset: of its first number in the storage, in numbers.
        shape, stride: in numbers.
    """

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        found = 1
        for size in self.shape:
            found *= size
        return found


class _Stack:
    """What is being put together, and where the groups begin that are still open."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.marks: list[int] = []

    def since_mark(self) -> list[Any]:
        """Take off the innermost group."""
        place = self.marks.pop()
        items = self.items[place:]
        del self.items[place:]
        return items


class TorchFile:
    """A file of ``torch.save`` that holds one dictionary of tensors, or dictionaries of them by name.

    Args:
        path: the file. It is opened for as long as this is, so use it as a context manager.

    Raises:
        IncompatibleWeightsError: it holds anything else than tensors by name, or an older format.
        CorruptFileError: it is cut off, or its parts contradict each other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: tuple[str, bytes] = ("", b"")
        with path.open("rb") as file:
            start = file.read(4)
        if start != _ZIP:
            raise self._not_a_zip(start)
        try:
            self._zip = zipfile.ZipFile(path)
        except _UNREADABLE as error:
            raise self._corrupt(f"its archive cannot be read: {error}") from error
        try:
            self._entries = self._checked()
            self.tensors = self._described()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def data(self, tensor: StoredTensor) -> bytes:
        """The numbers of a tensor, little-endian, the last dimension first.

        Raises:
            CorruptFileError: they are not what their checksum says.
        """
        import numpy as np

        if not tensor.count:
            return b""
        item = dict(DTYPES.values())[tensor.dtype]
        if self._last[0] != tensor.key:  # neighbours often share a storage
            self._last = tensor.key, self._read(f"data/{tensor.key}")
        first = np.frombuffer(self._last[1], dtype=f"V{item}")[tensor.offset :]
        strides = tuple(step * item for step in tensor.stride)
        view = np.lib.stride_tricks.as_strided(first, tensor.shape, strides, writeable=False)
        return bytes(np.ascontiguousarray(view).tobytes())

    def _checked(self) -> dict[str, zipfile.ZipInfo]:
        """The archive's entries by their names without the folder that all of them are in."""
        size, entries, total = self._path.stat().st_size, {}, 0
        for entry in self._zip.infolist():
            folder, _, name = entry.filename.partition("/")
            if not name or ".." in entry.filename.split("/") or "\\" in entry.filename or not folder:
                raise self._refused(f"an entry of the name {entry.filename!r}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise self._refused(f"the compressed entry {entry.filename!r}, which torch never writes")
            if name in entries:
                raise self._refused(f"the entry {entry.filename!r} twice")
            entries[name], total = entry, total + entry.file_size
        if total > size:
            raise self._corrupt("its entries overlap")
        if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
            raise self._refused("a program (TorchScript)", "Only a state dictionary can be converted.")
        if "data.pkl" not in entries:
            raise self._refused("no data.pkl", "It is some other zip file.")
        if "byteorder" in entries and self._read("byteorder", entries) != b"little":
            raise self._refused("big-endian numbers")
        return entries

    def _read(self, name: str, entries: Mapping[str, zipfile.ZipInfo] | None = None) -> bytes:
        try:
            return self._zip.read((entries or self._entries)[name])
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            ValueError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise self._corrupt(f"{name} cannot be read: {error}") from error

    def _described(self) -> Mapping[str, StoredTensor]:
        if self._entries["data.pkl"].file_size > _MOST_PICKLE:
            raise self._refused(f"a pickle of more than {_MOST_PICKLE >> 20} MiB")
        walked = self._walked(self._read("data.pkl"))
        if not isinstance(walked, dict):
            raise self._refused(f"{_what(walked)} instead of tensors by their names")
        found = _flat(walked)
        bytes_in_all = 0
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, StoredTensor):
                raise self._refused(
                    f"{_what(value)} under {str(name)[:200]!r}",
                    "Save the state dictionary alone: model.state_dict().",
                )
            bytes_in_all += value.count * dict(DTYPES.values())[value.dtype]
        if bytes_in_all > _MOST_COPIES * self._path.stat().st_size:
            raise self._refused(f"tensors of {bytes_in_all} bytes in a file of {self._path.stat().st_size}")
        return found

    def _walked(self, pickle: bytes) -> Any:
        """What the pickle describes, found without obeying it."""
        stack, memo = _Stack(), dict[int, Any]()
        try:
            for code, argument, _ in _instructions(pickle):
                if code == "STOP":
                    return stack.items.pop()
                self._step(code, argument, stack, memo)
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise self._corrupt(f"its pickle makes no sense ({type(error).__name__})") from error
        except (ValueError, UnicodeDecodeError) as error:
            raise self._corrupt(f"its pickle cannot be parsed: {error}") from error
        raise self._corrupt("its pickle has no end")

    def _step(self, code: str, argument: Any, kept: _Stack, memo: dict[int, Any]) -> None:
        stack = kept.items
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _PUSHED:
            stack.append(argument)
        elif code in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if code == "EMPTY_DICT" else [])
        elif code == "MARK":
            kept.marks.append(len(stack))
        elif code in ("PROTO", "FRAME"):
            pass
        elif code == "GLOBAL":
            stack.append(self._named(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(self._named(module, name))
        elif code in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(code[-1])
            if len(stack) < size:
                raise IndexError
            stack[-size:] = [tuple(stack[-size:])]
        elif code == "TUPLE":
            items = kept.since_mark()
            stack.append(tuple(items))
        elif code in ("APPEND", "APPENDS"):
            items = [stack.pop()] if code == "APPEND" else kept.since_mark()
            _list(stack[-1]).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = [*reversed((stack.pop(), stack.pop()))] if code == "SETITEM" else kept.since_mark()
            if not all(type(key) in (str, int) for key in items[::2]):
                raise TypeError
            _dict(stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        elif code == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif code == "REDUCE":
            arguments = stack.pop()
            stack.append(self._made(stack.pop(), arguments))
        elif code == "BUILD":
            # A state dictionary brings notes on its modules' versions; nothing else has a state.
            _dict(stack.pop()), _dict(stack[-1])
        else:
            raise self._refused(f"the pickle instruction {code}")

    def _named(self, module: Any, name: Any) -> _Name:
        known = (
            (module == "collections" and name == "OrderedDict")
            or (module == "torch._utils" and name in (*_REBUILD, "_rebuild_parameter"))
            or (module == "torch" and name in DTYPES)
        )
        if not known:
            raise self._refused(
                f"{module}.{name}"[:200], "Only tensors are read; nothing of a file is ever called."
            )
        return _Name(module, name)

    def _storage(self, told: Any) -> _Storage:
        kind, storage, key, _place, count = told
        if kind != "storage" or not isinstance(storage, _Name) or storage.module != "torch":
            raise self._refused("a reference to something else than a storage")
        if not isinstance(key, str) or not re.fullmatch(r"[0-9A-Za-z_]{1,64}", key):
            raise self._refused(f"a storage of the name {str(key)[:80]!r}")
        dtype, item = DTYPES[storage.name]
        entry = self._entries.get(f"data/{key}")
        if entry is None or _whole(count) * item != entry.file_size:
            raise self._corrupt(f"the storage {key} is missing, or not as large as it is described")
        return _Storage(key, dtype, count)

    def _made(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name):
            raise self._refused(f"a call of {_what(function)}")
        if function.name == "OrderedDict":
            if arguments != ():
                raise self._refused("an OrderedDict that is made of something")
            return {}
        if function.name == "_rebuild_parameter":
            tensor = arguments[0]
            if not isinstance(tensor, StoredTensor):
                raise TypeError
            return tensor
        if function.name not in _REBUILD:
            raise self._refused(f"a call of {function}")
        storage, offset, shape, stride = arguments[:4]
        if not isinstance(storage, _Storage) or len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS:
            raise TypeError
        sizes, steps = tuple(map(_whole, shape)), tuple(map(_whole, stride))
        found = StoredTensor(
            key=storage.key,
            dtype=storage.dtype,
            offset=_whole(offset),
            shape=sizes,
            # No step is taken along a dimension of one.
            stride=tuple(step if size > 1 else 0 for size, step in zip(sizes, steps, strict=True)),
        )
        reach = sum((size - 1) * step for size, step in zip(found.shape, found.stride, strict=True))
        if found.count > storage.count or (found.count and found.offset + reach >= storage.count):
            raise self._corrupt(
                f"a tensor of the shape {found.shape} is outside of its storage {storage.key}"
            )
        return found

    def _not_a_zip(self, start: bytes) -> IncompatibleWeightsError | CorruptFileError:
        if not start:
            return self._corrupt("it is empty")
        if start.startswith((b"\x80", b"(", b"c")):
            return IncompatibleWeightsError(
                f"{self._path} is in the format that torch wrote before 1.6, which is not read.",
                hint="Where the file is trusted, save it again: torch.save(torch.load(path), new_path).",
            )
        return IncompatibleWeightsError(
            f"{self._path} is no file of torch.save.", hint="Only its zip archives are read."
        )

    def _refused(self, what: str, hint: str = "Nothing of this file was run.") -> IncompatibleWeightsError:
        return IncompatibleWeightsError(f"{self._path} holds {what}, which is refused.", hint=hint)

    def _corrupt(self, what: str) -> CorruptFileError:
        return CorruptFileError(
            f"{self._path} is damaged: {what}.", hint="Fetch it again.", recoverable=False
        )


_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSHED = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
)


def _flat(found: dict[Any, Any]) -> dict[Any, Any]:
    """Dictionaries in a dictionary, by joined names; one alone, as trainers wrap them, by its own."""
    groups = [value for value in found.values() if isinstance(value, dict)]
    if not groups or len(groups) < len(found):
        return found
    if len(groups) == 1:
        return groups[0]
    return {f"{name}.{inner}": value for name, group in found.items() for inner, value in group.items()}


def _instructions(pickle: bytes) -> Iterator[tuple[str, Any, int | None]]:
    for code, argument, place in pickletools.genops(pickle):
        yield code.name, argument, place


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise TypeError
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _what(value: Any) -> str:
    return str(value) if isinstance(value, _Name) else f"a value of the type {type(value).__name__}"


__all__ = ["DTYPES", "StoredTensor", "TorchFile"]
