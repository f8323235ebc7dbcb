"""Plugins: found, checked, set aside when broken, asked for claims. The only user of pluggy.

Facts about pluggy 1.7 that shape this module: a generator hook under ``firstresult`` cannot decline, so
the owner of a model is computed once and its implementation is called directly; a wrapper around a
generator exits before the first event; arguments with defaults are never passed. Registration order
never decides anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from attrs import evolve

from .._scheduling.faults import calling
from .._version import __version__
from ..contract.features import Feature, FeatureRegistry, Layer
from ..contract.hookspecs import ENTRY_POINT_GROUP, PROJECT, REQUIRED_HOOKS, Claim, Command, HookSpecs
from ..contract.plugins import Owner, PluginRecord
from ..errors import (
    AmbiguousModelError,
    NoPluginForModelError,
    PluginContractError,
    PluginError,
    PluginLoadError,
    is_ctrl_c,
)
from . import border

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from .._config import Settings
    from ..contract.configuration import ModelCard, ModelConfiguration
    from ..contract.kinds import Kind

T = TypeVar("T")
_REFUSING = ("load_model", "generate", "self_test")
log = logging.getLogger("mlxengine.plugins")


class Host:
    """The registered plugins.

    Args:
        plugins: plugin objects, or ``(name, object)`` pairs; ``None`` discovers the entry points.
        distributions: which distribution provides an entry-point name that several claim.
        layers: the outer feature levels (engine, environment, file).
        off: names of entry points that are not to be used.
    """

    def __init__(
        self,
        plugins: Sequence[object] | None = None,
        *,
        distributions: Mapping[str, str] | None = None,
        layers: Sequence[Layer] = (),
        off: Collection[str] = (),
    ) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self.records: list[PluginRecord] = []
        self.features = FeatureRegistry(layers)
        self._kinds: dict[str, Kind] | None = None
        if plugins is None:
            self._discover(distributions or {}, off)
        else:
            for item in plugins:
                name, plugin = item if isinstance(item, tuple) else (_name_of(item), item)
                self._add(PluginRecord(name=name, plugin=plugin))
        for records in self._listed().values():
            for record in records if len(records) > 1 else ():  # core itself is no plugin
                self._refuse(record, _listed_twice(record, records))

    @classmethod
    def installed(cls, settings: Settings, layers: Sequence[Layer] = ()) -> Host:
        """The installed plugins, as the configuration file and the environment want them."""
        return cls(distributions=settings.distributions, layers=layers, off=settings.off)

    # -- finding ------------------------------------------------------------------------------------

    def _discover(self, distributions: Mapping[str, str], off: Collection[str]) -> None:
        from importlib.metadata import entry_points

        by_name: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=ENTRY_POINT_GROUP):
            by_name.setdefault(point.name, []).append(point)
        for name, points in sorted(by_name.items()):
            if name in off:
                distribution, version = _distribution(points[0])
                record = PluginRecord(name=name, distribution=distribution, version=version, off=True)
                self.records.append(record)
                continue
            wanted = distributions.get(name)
            chosen = [point for point in points if wanted is None or wanted == _distribution(point)[0]]
            if len(chosen) == 1:
                self._load(chosen[0])
                continue
            offers = ", ".join(sorted(str(_distribution(point)[0]) for point in points))
            for point in points:
                self._set_aside(
                    point,
                    f"The plugin name {name!r} is claimed by {len(points)} distributions: {offers}.",
                    f"Uninstall all but one, or choose: InferenceEngine(distributions={{{name!r}: …}}).",
                )

    def _load(self, point: EntryPoint) -> None:
        from .installed import unmet  # reading metadata is not needed to import the engine

        distribution, version = _distribution(point)
        wanted = None if distribution is None else unmet(distribution, version)
        if wanted is not None:
            self._set_aside(
                point,
                f"The plugin {point.name!r} needs {wanted}, and this is {PROJECT} {__version__}.",
                f"Install versions of {distribution} and {PROJECT} that go together.",
            )
            return
        try:
            plugin = point.load()
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            self._set_aside(
                point,
                f"The plugin {point.name!r} failed on import: {type(error).__name__}: {error}.",
                f"Reinstall or uninstall {distribution}.",
                error,
            )
            return
        self._add(PluginRecord(name=point.name, distribution=distribution, version=version, plugin=plugin))

    def _set_aside(
        self, point: EntryPoint, message: str, hint: str, cause: BaseException | None = None
    ) -> None:
        distribution, version = _distribution(point)
        error = PluginLoadError(message, plugin=point.name, distribution=distribution, hint=hint)
        error.__cause__ = cause
        log.warning("%s", error)
        self.records.append(
            PluginRecord(name=point.name, distribution=distribution, version=version, error=error)
        )

    def register(self, plugin: object, name: str) -> PluginRecord:
        """Register a plugin, or set it aside with the reason in the returned record's ``error``."""
        record = PluginRecord(name=name, plugin=plugin)
        self._add(record)
        for records in self._listed().values():
            if len(records) > 1 and record in records:  # the others are in use
                self._refuse(record, _listed_twice(record, records))
        return record

    def _add(self, record: PluginRecord) -> None:
        self.records.append(record)
        try:
            self._register(record)
        except PluginError as error:
            self._refuse(record, error)

    def _refuse(self, record: PluginRecord, error: PluginError) -> None:
        """Set a plugin aside that was found, and say why."""
        if record.error is not None or record not in self.records:
            return
        error.distribution = record.distribution
        record.error = error
        self._kinds = None
        self.features.remove(record.name)
        if self._manager.is_registered(record.plugin):
            self._manager.unregister(record.plugin)
        log.warning("The plugin %s is set aside: %s", record.where, error)

    def _listed(self) -> dict[str, list[PluginRecord]]:
        """The plugins that list each kind; ``"core"`` stands beside them for a kind of core's own."""
        found: dict[str, list[PluginRecord]] = {}
        for record in self.active():
            for kind in record.kinds:
                found.setdefault(kind.name, []).append(record)
        if found:
            from ..contract.kinds import own_kinds

            for kind in own_kinds():
                if kind.name in found:
                    found[kind.name].append(PluginRecord(name="core", distribution=PROJECT))
        return found

    def _register(self, record: PluginRecord) -> None:
        taken = [other.name for other in self.active() if other is not record]
        if record.name in taken:
            raise PluginContractError(
                f"A plugin named {record.name!r} is registered already.", plugin=record.name
            )
        try:
            self._manager.register(record.plugin, record.name)
        except BaseException as error:  # it looks at the plugin's attributes, which may run code
            if is_ctrl_c(error):
                raise
            raise PluginContractError(
                f"The plugin {record.where} does not match the hook specs: {error}.", plugin=record.name
            ) from error
        record.hooks = MappingProxyType(self._implementations(record))
        for feature in self.listed(record, "list_features", Feature):
            self.features.add(feature, record.name)
        if "list_kinds" in record.hooks:
            from ..contract.kinds import Kind

            record.kinds = tuple(self.listed(record, "list_kinds", Kind))
            self._kinds = None

    def _implementations(self, record: PluginRecord) -> dict[str, Callable[..., Any]]:
        found: dict[str, Callable[..., Any]] = {}
        for caller in self._manager.get_hookcallers(record.plugin) or ():
            impl = next(item for item in caller.get_hookimpls() if item.plugin is record.plugin)
            problem = None
            if not caller.has_spec() and not impl.optionalhook:
                problem = "there is no such hook in this version"
            elif impl.hookwrapper or impl.wrapper:
                problem = "hook wrappers are not supported"
            elif impl.kwargnames:
                problem = f"its arguments {', '.join(impl.kwargnames)} have defaults and are never passed"
            if problem:
                raise PluginContractError(
                    f"The plugin {record.where} implements the hook {caller.name!r}, but {problem}.",
                    plugin=record.name,
                    hook=caller.name,
                    hint="The hook specs are in mlxengine.contract.hookspecs.",
                )
            found[caller.name] = _by_name(impl.function, impl.argnames)
        missing = [name for name in REQUIRED_HOOKS if name not in found]
        only_verbs = len(missing) == len(REQUIRED_HOOKS) and "list_commands" in found
        if missing and not only_verbs:
            raise PluginContractError(
                f"The plugin {record.where} lacks the hook {', '.join(missing)}.",
                plugin=record.name,
                hook=missing[0],
                hint="A plugin implements claim_model, load_model and generate; or verbs alone.",
            )
        return found

    # -- calling ------------------------------------------------------------------------------------

    def call(self, record: PluginRecord, hook: str, *, default: Any = None, **arguments: Any) -> Any:
        """Call one plugin's own implementation of a hook.

        Raises:
            PluginCrashedError: it raised something that is not one of our errors.
            PluginContractError: it raised one of ours where there is nothing to refuse.
        """
        function = record.hooks.get(hook)
        if function is None:
            return default
        with calling(record, hook, typed=hook in _REFUSING):
            return function(arguments)

    def listed(self, record: PluginRecord, hook: str, wanted: type[T], **arguments: Any) -> Sequence[T]:
        """What one plugin's own implementation of a hook lists.

        Raises:
            PluginCrashedError, PluginContractError: it raised, or lists something else.
        """
        function = record.hooks.get(hook)
        return () if function is None else border.listed(record, hook, lambda: function(arguments), wanted)

    def active(self) -> list[PluginRecord]:
        """The plugins that are neither set aside nor turned off."""
        return [record for record in self.records if record.error is None and not record.off]

    def owner(self, card: ModelCard, plugin: str | None = None, handle: type | None = None) -> Owner:
        """Who serves the model: the best claim, or the named plugin's.

        Where a class of handles is asked for and somebody offers a kind with such, only those offers count.

        Raises:
            NoPluginForModelError, AmbiguousModelError, PluginCrashedError, PluginContractError: nobody
                claims it, two do so equally well, or the only one that could have broke.
        """
        # What was set for the engine counts for an offer and its estimate as what was set for the model.
        own = card.configuration
        flags = {**self.features.chosen(), **dict(own.features)}
        card = evolve(card, configuration=evolve(own, features=tuple(sorted(flags.items()))))
        claims: list[tuple[PluginRecord, Claim]] = []
        faults: list[PluginError] = []
        for record in self.active():
            if plugin is not None and record.name != plugin:
                continue
            try:
                claim = border.claim(record, self.call(record, "claim_model", card=card))
            except PluginError as error:
                log.warning("%s", error)
                faults.append(error)
                continue
            if claim is not None:
                claims.append((record, claim))
        if not claims:
            if faults:
                raise faults[0]
            raise self._nobody(card, plugin)
        if handle is not None:
            claims = [item for item in claims if self.gives(item[1].kind, handle)] or claims
        best = max(claim.fit for _, claim in claims)
        top = [(record, claim) for record, claim in claims if claim.fit == best]
        if len(top) > 1:
            names = " and ".join(record.where for record, _ in top)
            raise AmbiguousModelError(
                f"{card.id} is claimed equally well by the plugins {names}.",
                hint=f"Choose one, for example load(…, plugin={top[0][0].name!r}).",
            )
        record, claim = top[0]
        others = tuple((item.name, offer) for item, offer in claims if item is not record)
        return Owner(record=record, claim=claim, others=others)

    def _nobody(self, card: ModelCard, plugin: str | None) -> NoPluginForModelError:
        installed = ", ".join(record.name for record in self.active()) or "none"
        aside = [record.where for record in self.records if record.error is not None]
        also = f" Set aside: {', '.join(aside)}; `mlxengine plugins` says why." if aside else ""
        off = [record.where for record in self.records if record.off]
        also += f" Turned off: {', '.join(off)}." if off else ""
        if plugin is not None and plugin not in installed.split(", "):
            return NoPluginForModelError(
                f"There is no plugin {plugin!r}; installed: {installed}.",
                hint=also.strip() or "`mlxengine plugins` lists them.",
            )
        kind = self.guess(card)
        served = any(kind.name in (item.name, *(own.name for own in item.kinds)) for item in self.active())
        if served:
            do = ", whose plugin does not know it or makes something else of such models: choose another."
        else:
            do = f': install "{kind.install}".' if kind.install else "."
        asked = f"the plugin {plugin!r}" if plugin else f"none of the installed plugins ({installed})"
        return NoPluginForModelError(
            f"{card.id} (architecture {card.architecture or 'unknown'}) is served by {asked}."
            if plugin is None
            else f"{card.id} (architecture {card.architecture or 'unknown'}) is declined by {asked}.",
            hint=f"It looks like kind {kind.name!r}{do}{also}",
        )

    # -- kinds --------------------------------------------------------------------------------------

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The kinds of model by name: core's own first, then those that the plugins list."""
        if self._kinds is None:
            from ..contract.kinds import named, own_kinds

            self._kinds = named(own_kinds()) | named(
                kind for record in self.active() for kind in record.kinds
            )
        return MappingProxyType(self._kinds)

    def kind(self, name: str) -> Kind:
        """The kind of this name; one that nobody lists has nothing of its own."""
        from ..contract.kinds import Kind

        return self.kinds.get(name) or Kind(name=name)

    def gives(self, kind: str, handle: type) -> bool:
        """Whether models of a kind are loaded as such a handle, for asyncio or not.

        Raises:
            PluginContractError: the kind names a class that is not there.
        """
        found = self.kind(kind)
        return any(issubclass(found.find(what), handle) for what in ("handle", "async_handle"))

    def guess(self, card: ModelCard) -> Kind:
        """Which kind a model that nobody serves looks like, for the hint that names what to install."""
        for kind in self.kinds.values():
            try:
                if kind.looks is not None and kind.find("looks")(card):
                    return kind
            except Exception as error:  # this is only for a hint
                log.warning("Whether %s looks like %s cannot be told: %r", card.id, kind.name, error)
        tagged = (kind for kind in self.kinds.values() if card.pipeline_tag in kind.pipelines)
        return next(tagged, next(iter(self.kinds.values())))

    def models(self) -> dict[str, list[ModelConfiguration]]:
        """The registry entries of all plugins by provider; a list that is broken is left out."""
        from ..contract.configuration import ModelConfiguration

        return {
            record.name: self._or_none(record, "list_models", ModelConfiguration) for record in self.active()
        }

    def find_model(self, name: str) -> ModelConfiguration | None:
        """The first plugin's entry of a model of this name; no other entry of a lazy list is built."""
        from .._registry.file import Entries
        from ..contract.configuration import ModelConfiguration

        for record in self.active():
            function = record.hooks.get("list_models")
            if function is None:
                continue
            known: ModelConfiguration | None = None
            try:
                with calling(record, "list_models"):
                    found = function({})
                    if isinstance(found, Entries):
                        known, found = found.get(name), ()
                for item in border.listed(record, "list_models", lambda: found, ModelConfiguration):  # noqa: B023
                    if item.id.partition("@")[0].casefold() == name.casefold():
                        known = known or item
            except PluginError as error:
                log.warning("list_models of the plugin %s is left out: %s", record.where, error)
            if known is not None:
                return known
        return None

    def commands(self) -> dict[str, list[Command]]:
        """The command-line verbs of all plugins by provider; a list that is broken is left out."""
        return {record.name: self._or_none(record, "list_commands", Command) for record in self.active()}

    def _or_none(self, record: PluginRecord, hook: str, wanted: type[T]) -> list[T]:
        try:
            return [*self.listed(record, hook, wanted)]
        except PluginError as error:
            log.warning("%s of the plugin %s is left out: %s", hook, record.where, error)
            return []


def _listed_twice(record: PluginRecord, records: Sequence[PluginRecord]) -> PluginContractError:
    names = " and ".join(record.where for record in records)
    return PluginContractError(
        f"The same kind of model is listed by {names}.",
        plugin=record.name,
        hook="list_kinds",
        hint="Uninstall all but one. A plugin that serves another's kind does not list it.",
    )


def _by_name(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    return lambda arguments: function(*[arguments[name] for name in names])


def _name_of(plugin: object) -> str:
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    return str(name).split(".")[-1].removesuffix("Plugin").lower() if name else "plugin"


def _distribution(point: EntryPoint) -> tuple[str | None, str | None]:
    if point.dist is None:
        return None, None
    said = point.dist.metadata  # its name and its version would each read the whole file
    return said["Name"], said["Version"]
