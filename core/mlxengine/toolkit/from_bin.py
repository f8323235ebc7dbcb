"""A repository whose weights are pickles, written again as safetensors: the same numbers and names."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import asdict, frozen

from .._hub.names import PICKLES
from ..errors import ConfigurationError, IncompatibleWeightsError
from .torch_file import DTYPES, StoredTensor, TorchFile

WEIGHTS = "*pytorch_model*.bin"  # diffusers puts a word before it
LAYERS = "*_linear.pt"  # single layers beside them, as BGE-M3 keeps its further outputs
DOCUMENTS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
RECORD = "converted_from_bin.json"
_INDEXES = ("pytorch_model.bin.index.json", "model.safetensors.index.json")


@frozen(kw_only=True)
class ConvertedFile:
    """A pickle and what became of it, by their places in the two folders and their SHA-256."""

    source: str
    source_sha256: str
    file: str
    sha256: str


@frozen(kw_only=True)
class Converted:
    """What was written.

    Args:
        path: the folder.
        files: one for each pickle.
        tensors: how many.
        nbytes: of all weights.
    """

    path: Path
    files: tuple[ConvertedFile, ...]
    tensors: int
    nbytes: int


def convert_bin(source: Path, target: Path) -> Converted:
    """Write a folder's ``pytorch_model*.bin`` as ``model*.safetensors``, and those of its stages' folders.

    ``diffusion_pytorch_model.bin``, and single layers that lie beside them (`LAYERS`), keep their names. A
    file alone becomes a file: an adapter, taught words, an upscaler.

    No code of the files is run (`torch_file`). ``target`` appears whole or not at all; beside the weights it
    has the documents of the source, and `RECORD` with the checksums of what was read and written.

    Args:
        source: a folder, or a file of ``torch.save``.
        target: a folder, or a ``.safetensors`` file, that does not exist yet.

    Raises:
        ConfigurationError: the target exists, or is not named as a file of safetensors.
        IncompatibleWeightsError: there is no such file, or one holds anything else than tensors by name.
        CorruptFileError: a file is damaged.
    """
    if target.exists():
        raise ConfigurationError(f"{target} exists already.", hint="Name a new folder.")
    if source.is_file():
        return _convert_file(source, target)
    folders = [source, *sorted(path for path in source.iterdir() if path.is_dir())] if source.is_dir() else []
    pickles = [file for folder in folders for file in sorted(folder.glob(WEIGHTS))]
    pickles += sorted(source.glob(LAYERS)) if pickles else []
    if not pickles:
        raise IncompatibleWeightsError(
            f"{source} holds no pytorch_model.bin.", hint="Only the files of that name are converted."
        )
    if kept := sorted(source.glob("*.safetensors")):
        raise IncompatibleWeightsError(
            f"{source} has {kept[0].name} already.", hint="Load it as it is; its pickles are left alone."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        made = scratch / "model"
        for folder in folders:
            _copy_documents(folder, made / folder.relative_to(source))
        files, tensors, size = [], 0, 0
        names: dict[tuple[Path, str], Path] = {}
        for file in pickles:
            place = file.relative_to(source)
            written = place.with_name(re.sub(r"^pytorch_model", "model", file.stem) + ".safetensors")
            with TorchFile(file) as opened:
                for name in opened.tensors if file.match(WEIGHTS) else ():
                    if (other := names.setdefault((place.parent, name), place)) != place:
                        raise IncompatibleWeightsError(f"{name} is in {other} and in {place} of {source}.")
                tensors += len(opened.tensors)
                checksum = _write(opened, made / written)
            files.append(
                ConvertedFile(
                    source=str(place), source_sha256=_sha256(file), file=str(written), sha256=checksum
                )
            )
            size += (made / written).stat().st_size
        record = [asdict(item) for item in files]
        (made / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        made.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Converted(path=target, files=tuple(files), tensors=tensors, nbytes=size)


def _convert_file(source: Path, target: Path) -> Converted:
    if target.suffix != ".safetensors":
        raise ConfigurationError(f"{target} is to hold a file.", hint="End its name in .safetensors.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        with TorchFile(source) as opened:
            checksum, count = _write(opened, made), len(opened.tensors)
        size = made.stat().st_size
        made.rename(target)
    file = ConvertedFile(source=source.name, source_sha256=_sha256(source), file=target.name, sha256=checksum)
    return Converted(path=target, files=(file,), tensors=count, nbytes=size)


def _copy_documents(source: Path, target: Path) -> None:
    found = [file for pattern in DOCUMENTS for file in sorted(source.glob(pattern)) if file.is_file()]
    kept = [file for file in found if file.name not in _INDEXES]
    if kept or any(source.glob(WEIGHTS)):
        target.mkdir(parents=True, exist_ok=True)
    for file in kept:
        shutil.copyfile(file, target / file.name)


def _write(opened: TorchFile, path: Path) -> str:
    """The tensors as one safetensors file, a tensor at a time; its SHA-256."""
    header, place = _header(opened.tensors)
    digest = hashlib.sha256()
    with path.open("xb") as out:
        for piece in (struct.pack("<Q", len(header)), header):
            out.write(piece)
            digest.update(piece)
        for tensor in opened.tensors.values():
            data = opened.data(tensor)
            out.write(data)
            digest.update(data)
            place -= len(data)
    assert place == 0
    return digest.hexdigest()


def _header(tensors: Mapping[str, StoredTensor]) -> tuple[bytes, int]:
    """What stands at the beginning of a safetensors file, padded to eight bytes, and the size of the rest."""
    sizes, place = dict(DTYPES.values()), 0
    found: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, tensor in tensors.items():
        end = place + tensor.count * sizes[tensor.dtype]
        shape: Sequence[int] = list(tensor.shape)
        found[name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(found, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), place


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["DOCUMENTS", "PICKLES", "RECORD", "WEIGHTS", "Converted", "ConvertedFile", "convert_bin"]
