"""Registry entries as a JSON file beside a plugin's code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

from attrs import evolve

from ..contract.configuration import ModelConfiguration, Provenance
from .selection import bits_named

Entry = TypeVar("Entry", bound=ModelConfiguration)
Facts = dict[str, Any]
_NOT_SHARED = ("id", "quantization", "base_model", "memory_bytes")  # of a model with its conversions


class Entries(Sequence[Entry]):
    """The entries of a JSON file, read when they are first needed; `get` builds no more than one group."""

    def __init__(self, path: Path, entry: type[Entry]) -> None:
        self._path = path
        self._entry = entry

    def get(self, model: str) -> Entry | None:
        """The entry of an id, in any case; ``None`` if there is none."""
        key = model.casefold()
        group = self._index.get(key)
        if group is None:
            return None
        return next(item for item in self._built(group) if item.id.casefold() == key)

    @overload
    def __getitem__(self, at: int) -> Entry: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Entry, ...]: ...

    def __getitem__(self, at: int | slice) -> Entry | tuple[Entry, ...]:
        return self._all[at]

    def __len__(self) -> int:
        return len(self._all)

    @cached_property
    def _data(self) -> Facts:
        found: Facts = json.loads(self._path.read_text(encoding="utf-8"))
        return found

    @cached_property
    def _all(self) -> tuple[Entry, ...]:
        return tuple(item for group in self._data["groups"] for item in self._built(group))

    @cached_property
    def _index(self) -> dict[str, Facts]:
        """The group of each id."""
        found: dict[str, Facts] = {}
        for group in self._data["groups"]:
            for model in group["models"]:
                names = [model["id"]]
                for pattern, (replaced, *_) in model.get("converted", {}).items():
                    names += [pattern.replace("*", name) for name in replaced.split()]
                found |= {name.casefold(): group for name in names}
        return found

    def _stated(self, facts: Facts, sources: Mapping[str, str]) -> Iterator[Provenance]:
        for name, fields in sources.items():
            known = tuple(field for field in fields.split() if facts.get(field) is not None)
            if known:
                yield Provenance(
                    checked=self._data["checked"], source=self._data["sources"][name], fields=known
                )

    def _one(
        self, facts: Facts, known: list[Provenance], how: str | None = None, whole: bool = True
    ) -> Entry:
        count = next((one for one in known if "parameter_count" in one.fields), None)
        bits = bits_named(facts.get("quantization"))
        if whole and count is not None and bits is not None and facts.get("memory_bytes") is None:
            how = f"{facts['parameter_count']} weights of {bits:g} bits"
            facts = {**facts, "memory_bytes": int(facts["parameter_count"] * bits / 8)}
        if count is not None and how is not None:
            known = [*known, evolve(count, fields=("memory_bytes",), how=f"computed: {how}")]
        first = next((one for one in known if "id" in one.fields), None)
        return self._entry(**facts, provenance=first, sources=tuple(one for one in known if one is not first))

    def _built(self, group: Facts) -> Iterator[Entry]:
        for model in group["models"]:
            facts = {**group["facts"], **model}
            sources = {**group.get("from", {}), **facts.pop("from", {})}
            converted, computed = facts.pop("converted", {}), facts.pop("computed", None)
            facts |= {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
            yield self._one(facts, list(self._stated(facts, sources)), computed)
            shared = {name: _only(fields) for name, fields in sources.items()}
            for pattern, (names, source, *partly) in converted.items():
                for name in names.split():
                    own = {"id": pattern.replace("*", name), "base_model": facts["id"], "quantization": name}
                    copy = {**facts, **own, "memory_bytes": None}
                    listed = self._stated(copy, {source: "id base_model quantization"} if source else {})
                    yield self._one(copy, [*listed, *self._stated(copy, shared)], whole=not partly)


def read_entries(path: Path, entry: type[Entry]) -> Entries[Entry]:
    """The entries of a JSON file, each with the sources of its facts; what models share is written once::

        {"checked": "2026-11-22",
         "sources": {"card": "https://…", "list": "https://…"},
         "groups": [
           {"facts": {"family": "some", "license": "mit", "context_length": 8192},
            "from": {"list": "id size parameter_count", "card": "license context_length"},
            "models": [
              {"id": "org/Some-1B", "size": "1B", "parameter_count": 1100048384,
               "converted": {"mlx-community/Some-1B-*": ["4bit 8bit", "list"]}}]}]}

    ``from`` says which source states which fields; a model may add to it, and may replace a shared fact or
    withdraw it with ``null``. An entry counts as checked if a source names the repository itself (``id``).
    ``computed`` is the arithmetic behind a ``memory_bytes`` that is given beside it.
    ``converted`` lists repositories with the same weights in fewer bits, ``*`` standing for each of them:
    they become entries of their own, with the base model's facts; ``["4bit", "list", "partly"]`` says that
    they leave parts as they were (a vision tower, for example). The memory of the weights is computed where
    no source states it, the quantization is known, and all of them are of it.

    Args:
        path: the JSON file.
        entry: the class of the entries; the file's keys are its fields.
    """
    return Entries(path, entry)


def _only(fields: str) -> str:
    return " ".join(field for field in fields.split() if field not in _NOT_SHARED)
