"""Registry entries as a JSON file beside a plugin's code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from attrs import evolve

from ..contract.configuration import ModelConfiguration, Provenance
from .selection import bits_named

Entry = TypeVar("Entry", bound=ModelConfiguration)
Facts = dict[str, Any]
_NOT_SHARED = ("id", "quantization", "base_model", "memory_bytes")  # of a model with its conversions


def read_entries(path: Path, entry: type[Entry]) -> tuple[Entry, ...]:
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
    data = json.loads(path.read_text(encoding="utf-8"))
    checked, addresses = data["checked"], data["sources"]

    def stated(facts: Facts, sources: Mapping[str, str]) -> Iterator[Provenance]:
        for name, fields in sources.items():
            known = tuple(field for field in fields.split() if facts.get(field) is not None)
            if known:
                yield Provenance(checked=checked, source=addresses[name], fields=known)

    def built(facts: Facts, known: list[Provenance], how: str | None = None, whole: bool = True) -> Entry:
        count = next((one for one in known if "parameter_count" in one.fields), None)
        bits = bits_named(facts.get("quantization"))
        if whole and count is not None and bits is not None and facts.get("memory_bytes") is None:
            how = f"{facts['parameter_count']} weights of {bits:g} bits"
            facts = {**facts, "memory_bytes": int(facts["parameter_count"] * bits / 8)}
        if count is not None and how is not None:
            known = [*known, evolve(count, fields=("memory_bytes",), how=f"computed: {how}")]
        first = next((one for one in known if "id" in one.fields), None)
        return entry(**facts, provenance=first, sources=tuple(one for one in known if one is not first))

    def entries() -> Iterator[Entry]:
        for group in data["groups"]:
            for model in group["models"]:
                facts = {**group["facts"], **model}
                sources = {**group.get("from", {}), **facts.pop("from", {})}
                converted, computed = facts.pop("converted", {}), facts.pop("computed", None)
                facts |= {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
                yield built(facts, list(stated(facts, sources)), computed)
                shared = {name: _only(fields) for name, fields in sources.items()}
                for pattern, (names, source, *partly) in converted.items():
                    for name in names.split():
                        own = {
                            "id": pattern.replace("*", name),
                            "base_model": facts["id"],
                            "quantization": name,
                        }
                        copy = {**facts, **own, "memory_bytes": None}
                        listed = stated(copy, {source: "id base_model quantization"} if source else {})
                        yield built(copy, [*listed, *stated(copy, shared)], whole=not partly)

    return tuple(entries())


def _only(fields: str) -> str:
    return " ".join(field for field in fields.split() if field not in _NOT_SHARED)
