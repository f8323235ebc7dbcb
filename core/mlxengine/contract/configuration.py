"""What is asked for (`ModelRef`, `ModelConfiguration`) and what was found (`ModelCard`)."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from attrs import field, frozen

from ..errors import InvalidModelRefError, InvalidParameterError
from ..readonly import FrozenDict, freeze

# Compiled when first used: every program that imports the engine would pay for it.
_REPO = r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?"
_REVISION = r"[\w][\w./-]{0,254}"
_SIZE = r"(\d+(?:\.\d+)?)\s*([KMBT])?"
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def is_repo_id(value: object) -> bool:
    """Whether this names a repository on a hub: ``"org/name"``, or ``"name"``."""
    if not isinstance(value, str) or not re.fullmatch(_REPO, value):
        return False
    return ".." not in value and "--" not in value


@functools.lru_cache(maxsize=512)  # each entry of the registry is read with one
def parse_size(text: str) -> float:
    """Number of parameters that a size such as ``"135M"``, ``"1.7B"`` or ``"8x7B"`` names.

    Raises:
        InvalidParameterError: the text is not a size.
    """
    total = 1.0
    for factor in text.replace("×", "x").lower().split("x"):
        match = re.fullmatch(_SIZE, factor.strip(), re.IGNORECASE)
        if match is None:
            raise InvalidParameterError(
                f"{text!r} is not a model size.", hint="Write it as 135M, 1.7B or 8x7B."
            )
        total *= float(match[1]) * _UNITS.get((match[2] or "").upper(), 1.0)
    return total


@frozen(kw_only=True)
class ModelRef:
    """A parsed reference to a model: a repository on the hub, a local path, or ``auto:kind``.

    Exactly one of ``repo_id``, ``path`` and ``auto`` is set.
    """

    repo_id: str | None = None
    path: Path | None = None
    auto: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | Path, revision: str | None = None) -> ModelRef:
        """Read ``"org/name"``, ``"org/name@revision"``, a folder, a file of weights, or ``"auto:kind"``.

        A text that starts with ``/``, ``./``, ``../`` or ``~``, or names something that exists, is a path.

        Raises:
            InvalidModelRefError: the text is none of these.
        """
        if isinstance(text, Path):
            return cls(path=text.expanduser())
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise InvalidModelRefError(
                f"{text!r} is not a model reference.", hint='Give "org/name", "org/name@revision" or a path.'
            )
        text = text.strip()
        if text.startswith("auto:"):
            return cls(auto=text[5:] or None) if text[5:] else cls._refuse(text)
        if text.startswith(("/", "./", "../", "~")) or text in (".", "..") or Path(text).exists():
            return cls(path=Path(text).expanduser())
        name, _, pinned = text.partition("@")
        revision = pinned or revision
        bad_revision = revision is not None and (not re.fullmatch(_REVISION, revision) or ".." in revision)
        if not is_repo_id(name) or bad_revision:
            return cls._refuse(text)
        return cls(repo_id=name, revision=revision)

    @classmethod
    def _refuse(cls, text: str) -> ModelRef:
        raise InvalidModelRefError(
            f"{text!r} is neither a repository id nor an existing path.",
            hint='Give "org/name", "org/name@revision", "auto:kind", or the path of a folder or GGUF file.',
        )

    def __str__(self) -> str:
        if self.auto:
            return f"auto:{self.auto}"
        name = self.repo_id or str(self.path)
        return f"{name}@{self.revision}" if self.revision else name


@frozen(kw_only=True)
class Provenance:
    """When and against what an entry's facts were last checked, or where some of them come from.

    Args:
        checked: ISO date, for example ``"2026-11-22"``.
        source: what they were compared with, for example ``"hub"``, or the address where they stand.
        fields: the fields that were checked; empty means all that are set.
        how: ``"documented"`` for what the source states, or ``"computed: …"`` with the arithmetic.
    """

    checked: str
    source: str
    fields: tuple[str, ...] = ()
    how: str = "documented"


@frozen(kw_only=True)
class ModelConfiguration:
    """What is asked for: a model, and how to load it. Also an entry of the registry.

    A plugin for a new kind subclasses it when its kind has defaults of its own. Facts that nobody
    looked up stay ``None``.

    Args:
        id: ``"org/name"``, ``"org/name@revision"``, a path, or ``"auto:kind"``.
        revision: branch, tag or commit; overrides none, the id's own wins.
        kind: the name of one (`InferenceEngine.kinds`).
        family: for example ``"smollm2"``.
        size: number of parameters as people write it, for example ``"135M"``.
        quantization: for example ``"4bit"``; ``None`` is unknown, ``"none"`` is full precision.
        summary: one line for people.
        context_length: longest context in tokens.
        license: SPDX identifier or the hub's license tag.
        memory_bytes: bytes that the weights take when loaded.
        parameter_count: exact number of weights, where ``size`` is rounded.
        base_model: id of the repository that this one was converted from.
        template_notes: what the chat template takes: system messages, tools, a switch for thinking.
        tasks: what it is good for (``"code"``, ``"reasoning"`` …), beside what its name and notes say.
        default_prompt: what a demonstration asks it.
        extra_eos_tokens: token texts that end an answer besides the tokenizer's own.
        chat_template: a Jinja template that replaces the repository's.
        adapter: a LoRA/DoRA folder or repository to load with the model.
        plugin: the entry-point name of the plugin that must serve it.
        trust_remote_code: allow the repository's own Python code.
        features: feature flags for this model, as ``(name, value)`` pairs.
        provenance: when the entry was checked; ``None`` says that it was not.
        sources: where single facts come from, beside ``provenance``.
    """

    id: str
    revision: str | None = None
    kind: str | None = None
    family: str | None = None
    size: str | None = None
    quantization: str | None = None
    summary: str = ""
    context_length: int | None = None
    license: str | None = None
    memory_bytes: int | None = None
    parameter_count: int | None = None
    base_model: str | None = None
    template_notes: str | None = None
    tasks: tuple[str, ...] = ()
    default_prompt: str | None = None
    extra_eos_tokens: tuple[str, ...] = ()
    chat_template: str | None = None
    adapter: str | None = None
    plugin: str | None = None
    trust_remote_code: bool = False
    features: tuple[tuple[str, object], ...] = ()
    provenance: Provenance | None = None
    sources: tuple[Provenance, ...] = ()

    def __attrs_post_init__(self) -> None:
        if self.size is not None:
            parse_size(self.size)
        for name, value in self.features:
            if not isinstance(value, Hashable):
                raise InvalidParameterError(
                    f"{name}={value!r} is no value of a flag.", hint="Give a number, a text or a truth value."
                )

    @property
    def parameters(self) -> float | None:
        """Number of parameters as ``size`` rounds it, or ``None`` where the size is unknown."""
        return None if self.size is None else parse_size(self.size)

    @property
    def ref(self) -> ModelRef:
        """The parsed id and revision."""
        return ModelRef.parse(self.id, self.revision)


class Source(enum.StrEnum):
    """Where a model's files come from."""

    HUB = "hub"
    FOLDER = "folder"
    GGUF = "gguf"
    SAFETENSORS = "safetensors"


@frozen(kw_only=True)
class FileInfo:
    """One file of a model: its path inside the repository, size in bytes, and content hash.

    ``hash`` is ``"sha256:<hex>"`` for a large file, ``"git:<hex>"`` (git blob SHA-1) for a small one, or
    ``None`` for a local file that nobody hashed.
    """

    path: str
    size: int
    hash: str | None = None

    @property
    def suffix(self) -> str:
        """The end of its name from the last dot on, in lower case: ``".safetensors"``."""
        return PurePosixPath(self.path).suffix.lower()


@frozen(kw_only=True)
class TensorInfo:
    """One tensor as a safetensors header (or GGUF directory) describes it: dtype name, shape, bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str


@frozen(kw_only=True)
class ModelCard:
    """What was found out about a model without fetching its weights.

    Args:
        ref: what was asked for.
        configuration: the caller's configuration (or the registry's entry).
        source: hub, folder or GGUF file.
        commit: the resolved commit (40 hex digits) of a hub model; a digest of the listing otherwise.
        path: the local folder or GGUF file, for a local source.
        files: every file of the repository.
        documents: every JSON file of at most 1 MiB, decoded and read-only, by path.
        tensors: the tensors that the safetensors headers or the GGUF directory list; empty if unread.
        gguf: GGUF metadata (scalars and short strings), empty for other formats.
        license, tags, pipeline_tag, library_name: what the hub says.
    """

    ref: ModelRef
    configuration: ModelConfiguration
    source: Source
    commit: str
    path: Path | None = None
    files: tuple[FileInfo, ...] = ()
    documents: Mapping[str, Any] = field(factory=dict, converter=freeze, repr=False)
    tensors: tuple[TensorInfo, ...] = field(default=(), repr=False)
    gguf: Mapping[str, Any] = field(factory=dict, converter=freeze, repr=False)
    license: str | None = None
    tags: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    library_name: str | None = None

    @property
    def id(self) -> str:
        """The repository's id, or the local path as text."""
        return self.ref.repo_id or str(self.path)

    @property
    def config(self) -> Mapping[str, Any]:
        """``config.json``, read-only; empty if there is none."""
        found = self.documents.get("config.json")
        return found if isinstance(found, Mapping) else FrozenDict()

    @property
    def architecture(self) -> str | None:
        """``model_type``, else the pipeline's class (``model_index.json``), else GGUF's architecture."""
        index = self.documents.get("model_index.json")
        pipeline = index.get("_class_name") if isinstance(index, Mapping) else None
        for found in (self.config.get("model_type"), pipeline, self.gguf.get("general.architecture")):
            if isinstance(found, str):
                return found
        return None

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """The checkpoint's quantization settings, or ``None`` for full precision."""
        for key in ("quantization", "quantization_config"):
            found = self.config.get(key)
            if isinstance(found, Mapping):
                return found
        return None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors by their headers, or of the weight files where no header was read."""
        if self.tensors:
            return sum(tensor.nbytes for tensor in self.tensors)
        return sum(item.size for item in self.files if item.suffix in (".safetensors", ".gguf"))

    def names(self, *suffixes: str) -> Sequence[str]:
        """Paths of the files whose names end with one of the suffixes (all files without any)."""
        return [item.path for item in self.files if not suffixes or item.path.endswith(suffixes)]


__all__ = [
    "FileInfo",
    "ModelCard",
    "ModelConfiguration",
    "ModelRef",
    "Provenance",
    "Source",
    "TensorInfo",
    "parse_size",
]
