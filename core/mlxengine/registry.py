"""The registry of models: the plugins' entries, the configuration file's, and what is registered at run time.

An entry is a `ModelConfiguration`. Its facts are those that somebody looked up: what nobody did stays
``None``, and ``provenance`` says when and against what the rest was checked.
"""

from __future__ import annotations

import difflib
import enum
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from attrs import evolve, fields_dict, frozen

from ._registry.file import read_entries
from ._registry.selection import Prefer, Recommendation, base_name, bits_of, recommend, weight_bytes
from ._registry.tasks import for_task
from .contract.configuration import ModelConfiguration, Provenance, parse_size
from .contract.device import Device
from .contract.kinds import Kind, named, own_kinds
from .errors import (
    ConfigurationError,
    InvalidModelRefError,
    InvalidParameterError,
    ModelNotFoundError,
    PluginContractError,
)

_log = logging.getLogger("mlxengine.registry")


class Origin(enum.StrEnum):
    """Who put an entry there; a later one in this order replaces an earlier one of the same id."""

    PLUGIN = "plugin"
    FILE = "file"
    RUNTIME = "runtime"


@frozen(kw_only=True)
class Entry:
    """A configuration with the plugin (or other provider) that listed it."""

    configuration: ModelConfiguration
    provider: str
    origin: Origin


class ModelRegistry:
    """The single source of truth for configurations that are known without asking a hub.

    Iterating gives the configurations, smallest first, unknown sizes last. ``kinds`` say which tasks there
    are; core's own by default.
    """

    def __init__(
        self, entries: Iterable[ModelConfiguration] = (), kinds: Mapping[str, Kind] | None = None
    ) -> None:
        self._entries: dict[str, Entry] = {}
        self._kinds = named(own_kinds()) if kinds is None else kinds
        for item in entries:
            self.register(item)

    def add(self, entries: Iterable[ModelConfiguration], provider: str) -> None:
        """Take over the entries that a plugin lists; all of them or, if one is wrong, none.

        Raises:
            PluginContractError: an entry is not a `ModelConfiguration`, or its id is listed already.
        """
        found: dict[str, Entry] = {}
        for item in entries:
            problem = None
            if not isinstance(item, ModelConfiguration):
                problem = f"list_models must return ModelConfiguration objects, found {type(item).__name__}"
            else:
                key = _key(item.id)
                other = found.get(key) or self._entries.get(key)
                if not _valid(item):
                    problem = f"{item.id!r} is not the id of a model"
                elif other and other.origin is Origin.PLUGIN:
                    problem = f"the model {item.id!r} is listed twice (the other is {other.provider!r}'s)"
            if problem:
                raise PluginContractError(
                    f"Plugin {provider!r}: {problem}.", plugin=provider, hook="list_models"
                )
            found[key] = Entry(configuration=item, provider=provider, origin=Origin.PLUGIN)
        for key, entry in found.items():
            self._entries.setdefault(key, entry)

    def register(
        self, configuration: ModelConfiguration, *, replace: bool = False, origin: Origin = Origin.RUNTIME
    ) -> None:
        """Add an entry at run time. It takes the place of a plugin's of the same id.

        Args:
            configuration: the entry.
            replace: also take the place of one that was registered before.
            origin: `Origin.FILE` for the configuration file's entries.

        Raises:
            InvalidParameterError: it is not a `ModelConfiguration`.
            InvalidModelRefError: its id is not one.
            ConfigurationError: an entry of this id was registered before.
        """
        if not isinstance(configuration, ModelConfiguration):
            raise InvalidParameterError(
                f"Only a ModelConfiguration can be registered, found {type(configuration).__name__}."
            )
        configuration.ref  # noqa: B018  (raises for what is not an id)
        key = _key(configuration.id)
        other = self._entries.get(key)
        if other and other.origin is origin and not replace:
            raise ConfigurationError(
                f"The model {configuration.id!r} is registered twice ({origin.value}).",
                hint="Remove one of them, or pass replace=True.",
            )
        if other and origin is Origin.FILE and other.origin is Origin.RUNTIME:
            return
        self._entries[key] = Entry(configuration=configuration, provider=origin.value, origin=origin)

    def unregister(self, model: str) -> None:
        """Forget an entry.

        Raises:
            ModelNotFoundError: there is none of that id.
        """
        self.entry(model)
        del self._entries[_key(model)]

    def get(self, model: str) -> ModelConfiguration | None:
        """The entry of an id, or ``None``. An ``@revision`` in the text goes into the answer."""
        entry = self._entries.get(_key(model))
        if entry is None:
            return None
        _, _, revision = model.partition("@")
        return evolve(entry.configuration, revision=revision) if revision else entry.configuration

    def entry(self, model: str) -> Entry:
        """The entry of an id with its provider.

        Raises:
            ModelNotFoundError: there is none; the nearest ids are suggested.
        """
        found = self._entries.get(_key(model))
        if found is None:
            ids = {key: item.configuration.id for key, item in self._entries.items()}
            near = [ids[key] for key in difflib.get_close_matches(_key(model), ids, 3, 0.5)]
            raise ModelNotFoundError(
                f"The registry has no entry {model!r}.",
                hint=f"Did you mean {' or '.join(near)}?"
                if near
                else "`mlxengine models` lists what it has.",
            )
        return found

    def __contains__(self, model: object) -> bool:
        return isinstance(model, str) and _key(model) in self._entries

    def __iter__(self) -> Iterator[ModelConfiguration]:
        return iter(sorted((entry.configuration for entry in self._entries.values()), key=_order))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of model that have entries."""
        return tuple(sorted({item.kind for item in self if item.kind}))

    @property
    def families(self) -> tuple[str, ...]:
        """The families that have entries."""
        return tuple(sorted({item.family for item in self if item.family}))

    def variants(self, model: str) -> tuple[ModelConfiguration, ...]:
        """All entries of one model in its different quantizations, itself included, fewest bits first.

        Raises:
            ModelNotFoundError: there is no entry of that id.
        """
        wanted = base_name(self.entry(model).configuration)
        same = (item for item in self if base_name(item) == wanted)
        return tuple(sorted(same, key=lambda item: (bits_of(item) or 99.0, item.id)))

    def filter(
        self,
        *,
        kind: str | None = None,
        family: str | None = None,
        quantization: str | None = None,
        license: str | None = None,
        min_size: str | float | None = None,
        max_size: str | float | None = None,
        max_bytes: int | None = None,
        min_context: int | None = None,
        checked: bool | None = None,
    ) -> tuple[ModelConfiguration, ...]:
        """The entries that meet every condition, smallest first.

        Sizes are numbers of parameters (``"1.7B"`` or ``1.7e9``) and compared as numbers; ``max_bytes``
        bounds the memory of the weights, and ``min_context`` is a number of tokens. An entry in which such
        a fact is unknown does not meet a condition on it.

        Raises:
            InvalidParameterError: a size cannot be read.
        """
        low, high = _parameters(min_size), _parameters(max_size)

        def meets(item: ModelConfiguration) -> bool:
            named = ((kind, item.kind), (family, item.family), (quantization, item.quantization))
            if any(wanted is not None and wanted.lower() != (has or "").lower() for wanted, has in named):
                return False
            if license is not None and license.lower() != (item.license or "").lower():
                return False
            if checked is not None and checked is not (item.provenance is not None):
                return False
            size, weight = item.parameters, weight_bytes(item)
            too_small = low is not None and (size is None or size < low)
            too_big = high is not None and (size is None or size > high)
            too_heavy = max_bytes is not None and (weight is None or weight > max_bytes)
            too_short = min_context is not None and (item.context_length or 0) < min_context
            return not (too_small or too_big or too_heavy or too_short)

        return tuple(item for item in self if meets(item))

    def search(self, text: str) -> tuple[ModelConfiguration, ...]:
        """The entries in which every word of the text occurs, those with a match in the name first."""
        words = text.lower().split()
        ranked = []
        for item in self:
            name = item.id.lower()
            named = (item.kind, item.family, item.size, item.quantization, item.license, item.base_model)
            rest = " ".join(fact for fact in (*named, item.summary, item.template_notes) if fact).lower()
            if all(word in name or word in rest for word in words):
                ranked.append((-sum(word in name for word in words), item))
        return tuple(item for _, item in sorted(ranked, key=lambda pair: pair[0]))

    def recommend(
        self,
        kind: str,
        device: Device | None = None,
        task: str | None = None,
        *,
        prefer: Prefer | str = Prefer.QUALITY,
        budget: int | None = None,
        among: Collection[str] | None = None,
        checked_only: bool = False,
        reckon: Callable[[ModelConfiguration], int | None] | None = None,
    ) -> Recommendation:
        """The entry of a kind that suits a device best, and why, in words.

        Args:
            kind: one of ``kinds``.
            device: the machine; detected if left out.
            task: only entries that are for it by what they say themselves: ``"chat"``, ``"code"``,
                ``"reasoning"``, ``"tools"``, ``"multilingual"``, ``"rerank"``, ``"turbo"`` …
            prefer: ``"quality"`` takes the most parameters that fit, in the most bits; ``"speed"`` does so
                within a quarter of the memory; ``"small"`` takes what needs the least.
            budget: bytes to stay within instead of the device's working set.
            among: consider only these ids (what is on disk, for example).
            checked_only: consider only entries that were checked, as ``auto:`` does.
            reckon: bytes that an entry needs, where somebody knows better than its weights (an engine's
                ``reckon``).

        Raises:
            InvalidParameterError: no entry is of such a kind or for such a task (near ones are named), or
                the budget is not a positive number.
            ModelNotFoundError: no entry fits; the message says what the smallest one needs.
        """
        if kind not in self.kinds:
            known = ", ".join(self.kinds) or "none: no plugin lists models"
            raise InvalidParameterError(
                f"The registry has no models of kind {kind!r}.", hint=f"Kinds: {known}."
            )
        if prefer not in tuple(Prefer):
            raise InvalidParameterError(f"prefer={prefer!r} must be one of {', '.join(Prefer)}.")
        keys = None if among is None else {_key(item) for item in among}
        entries = [item for item in self.filter(kind=kind) if keys is None or _key(item.id) in keys]
        if checked_only:
            entries = [item for item in entries if item.provenance is not None]
        if task is not None:
            entries = for_task(entries, kind, task, self._kinds.get(kind))
        return recommend(entries, kind, device or Device.detect(), Prefer(prefer), budget, task, reckon)

    def provenance(self, model: str, field: str) -> Provenance | None:
        """Where one fact of an entry comes from, or when it was checked; ``None`` if nobody did.

        Raises:
            ModelNotFoundError: there is no entry of that id.
            InvalidParameterError: an entry has no such field.
        """
        item = self.entry(model).configuration
        if field not in fields_dict(type(item)):
            raise InvalidParameterError(f"A model's entry has no field {field!r}.")
        if getattr(item, field) is None:
            return None
        known = item.sources if item.provenance is None else (item.provenance, *item.sources)
        return next((source for source in known if not source.fields or field in source.fields), None)


def build_registry(
    listed: Mapping[str, Iterable[ModelConfiguration]],
    own: Iterable[ModelConfiguration] = (),
    kinds: Mapping[str, Kind] | None = None,
) -> ModelRegistry:
    """The registry of the plugins' entries, by provider, and the configuration file's.

    An entry that cannot be taken over is left out with a warning: one bad entry does not cost the rest.
    """
    found = ModelRegistry(kinds=kinds)
    for provider, items in listed.items():
        for item in items:
            try:
                found.add([item], provider)
            except PluginContractError as error:
                _log.warning("%s", error)
    for item in own:
        found.register(item, origin=Origin.FILE)
    return found


def _valid(item: ModelConfiguration) -> bool:
    try:
        return item.ref.auto is None
    except InvalidModelRefError:
        return False


def _key(model: str) -> str:
    return model.partition("@")[0].strip().casefold()


def _order(item: ModelConfiguration) -> tuple[float, float, str]:
    return (item.parameters or float("inf"), bits_of(item) or 99.0, item.id)


def _parameters(size: str | float | None) -> float | None:
    if isinstance(size, str):
        return parse_size(size)
    if size is not None and (isinstance(size, bool) or not size >= 0):
        raise InvalidParameterError(f"{size!r} is not a model size.", hint="Write it as 135M, 1.7B or 8x7B.")
    return size


__all__ = ["Entry", "ModelRegistry", "Origin", "Prefer", "Recommendation", "build_registry", "read_entries"]
