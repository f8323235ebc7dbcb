"""Feature flags and capabilities: what there is, what is on, where that was decided, and why not.

A *feature flag* is a choice of the user's (``audio.threshold``); a *capability* is a fact about a loaded
model (``vision``). Flags are resolved in this order: call, load, engine, environment, configuration
file, default. A flag is available only after its probe passed on this machine.
"""

from __future__ import annotations

import enum
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from attrs import field, frozen

from ..errors import (
    FeatureUnavailableError,
    InvalidParameterError,
    PluginContractError,
    UnknownFeatureError,
    is_ctrl_c,
)
from ._convert import anything, texts
from ._well_known import LLMEngineFeatures as LLMEngineFeatures

T = TypeVar("T")
Probe = Callable[[], str | None]
Pairs = Iterable[tuple[str, object]]
_log = logging.getLogger("mlxengine.features")
_NAME = r"[a-z][a-z0-9_-]*\.[a-z][a-z0-9_]*"
_WORDS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False, "none": None}


class Stage(enum.StrEnum):
    """``STABLE`` is on by default where its probe passes; ``EXPERIMENTAL`` has to be asked for."""

    STABLE = "stable"
    EXPERIMENTAL = "experimental"


class Level(enum.StrEnum):
    """Where a value comes from, strongest first; ``MEMORY``: a load that had to do with less."""

    MEMORY = "memory"
    CALL = "call"
    LOAD = "load"
    ENGINE = "engine"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@frozen(kw_only=True)
class Feature(Generic[T]):
    """A feature flag; the object itself is the typed key to its value.

    Args:
        name: ``"<entry-point name>.<snake_case>"``, for example ``"audio.threshold"``.
        default: the value where nobody says otherwise; its type is the flag's type. For a stable
            boolean that is ``True``; an experimental one is ``False``.
        summary: one line for people.
        stage: stable or experimental.
        since: first version that has it.
        applies_to: kinds of model that it concerns; empty is all of the plugin's.
        provides: the well-known feature that it is an instance of.
        choices: the only values allowed; empty allows any of the type.
        probe: returns ``None`` if the feature works on this machine, else the reason why not. It must
            be quick; it may import.
    """

    name: str
    default: T
    summary: str
    stage: Stage = Stage.STABLE
    since: str = "0.1"
    applies_to: tuple[str, ...] = field(default=(), converter=texts)
    provides: LLMEngineFeatures | None = None
    choices: tuple[T, ...] = field(default=(), converter=anything)
    probe: Probe | None = None

    def coerce(self, value: object) -> T:
        """The value as this flag's type; a text is parsed (``"on"``, ``"4"``, ``"none"``).

        Raises:
            InvalidParameterError: it cannot be.
        """
        sample = self.default if self.default is not None else next(iter(self.choices), None)
        if isinstance(value, str) and not isinstance(sample, str):
            value = self._parse(value, sample)
        wanted = type(sample)
        number = isinstance(value, int) and not isinstance(value, bool) and wanted is float
        fits = number or (value is None and (self.default is None or None in self.choices))
        if not fits and sample is not None and type(value) is not wanted:
            raise InvalidParameterError(
                f"{self.name} takes {wanted.__name__}, found {value!r}.", hint=self.summary
            )
        if self.choices and value not in self.choices:
            raise InvalidParameterError(
                f"{self.name}={value!r} is not one of {', '.join(map(str, self.choices))}."
            )
        return cast(T, float(cast(float, value)) if number else value)

    def _parse(self, text: str, sample: object) -> object:
        word = text.strip().lower()
        if word in _WORDS and (isinstance(sample, bool) or _WORDS[word] is None or self.default is None):
            return _WORDS[word]
        if isinstance(sample, bool) and word in ("0", "1"):
            return word == "1"
        try:
            return float(word) if isinstance(sample, float) else int(word)
        except ValueError:
            return text

    @property
    def off(self) -> T:
        """The value that means "not in use": ``False`` for a boolean, else ``None`` or the default."""
        return cast(T, False) if isinstance(self.default, bool) else self.default


@frozen(kw_only=True)
class Explanation:
    """Everything there is to say about one flag."""

    name: str
    value: object
    source: Level
    provider: str
    stage: Stage
    available: bool
    reason: str
    summary: str


@frozen
class Layer:
    """Values that one level sets."""

    level: Level
    values: Mapping[str, object]


class FeatureRegistry:
    """All features that the installed plugins provide, with the values that the outer levels set."""

    def __init__(self, layers: Sequence[Layer] = ()) -> None:
        self._features: dict[str, tuple[Feature[Any], str]] = {}
        self._probed: dict[str, str | None] = {}
        self._layers = tuple(layers)
        from ._core_features import FEATURES

        for feature in FEATURES:
            self.add(feature, "core")

    def add(self, feature: Feature[Any], provider: str) -> None:
        """Register a feature of the plugin ``provider``.

        Raises:
            PluginContractError: the name does not begin with the provider's, or is taken.
        """
        problem = None
        if not isinstance(feature, Feature):
            problem = f"list_features must return Feature objects, found {type(feature).__name__}"
        elif not re.fullmatch(_NAME, feature.name) or not feature.name.startswith(f"{provider}."):
            problem = f"the feature name {feature.name!r} must be '{provider}.<snake_case>'"
        elif feature.name in self._features:
            problem = f"the feature {feature.name!r} is listed twice"
        if problem:
            raise PluginContractError(
                f"Plugin {provider!r}: {problem}.", plugin=provider, hook="list_features"
            )
        self._features[feature.name] = (feature, provider)

    def remove(self, provider: str) -> None:
        """Forget the features of a plugin that was set aside."""
        self._features = {name: item for name, item in self._features.items() if item[1] != provider}

    def __iter__(self) -> Any:
        return iter(sorted((item[0] for item in self._features.values()), key=lambda item: item.name))

    def find(self, name: str | Feature[Any]) -> Feature[Any]:
        """The feature of that name.

        Raises:
            UnknownFeatureError: there is none; the nearest names are suggested.
        """
        key = name.name if isinstance(name, Feature) else str(name)
        if key in self._features:
            return self._features[key][0]
        import difflib

        near = difflib.get_close_matches(key, self._features, 3, 0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`mlxengine features` lists those there are."
        raise UnknownFeatureError(f"No installed plugin provides the feature {key!r}.", hint=hint)

    def providers(self, well_known: LLMEngineFeatures | str) -> tuple[Feature[Any], ...]:
        """The features that provide a well-known one.

        Raises:
            UnknownFeatureError: there is no well-known feature of that name.
        """
        if well_known not in tuple(LLMEngineFeatures):
            import difflib

            near = difflib.get_close_matches(str(well_known), LLMEngineFeatures, 3)
            raise UnknownFeatureError(
                f"There is no well-known feature {well_known!r}.",
                hint=f"Did you mean {' or '.join(near)}?" if near else None,
            )
        wanted = LLMEngineFeatures(well_known)
        return tuple(item for item in self if item.provides is wanted)

    def why_not(self, name: str | Feature[Any]) -> str | None:
        """``None`` if the feature works on this machine, else the reason (probed once)."""
        feature = self.find(name)
        if feature.name not in self._probed:
            self._probed[feature.name] = _run_probe(feature)
        return self._probed[feature.name]

    def view(self, *layers: Layer) -> Features:
        """The flags as a load or a call sees them: its own layers over the registry's.

        Raises:
            UnknownFeatureError, InvalidParameterError, FeatureUnavailableError: a layer names a feature
                that does not exist, gives it a bad value, or asks for what this machine does not have.
        """
        for layer in layers:
            self.check(layer)
        return Features(self, (*layers, *self._layers))

    def chosen(self) -> dict[str, object]:
        """The values that the registry's layers set, as they were written."""
        return {name: value for layer in reversed(self._layers) for name, value in layer.values.items()}

    def check(self, *layers: Layer) -> None:
        """Raise what is wrong with layers' names and values, or with asking for them here.

        Raises:
            UnknownFeatureError, InvalidParameterError, FeatureUnavailableError: as in `view`. A name in
                the configuration file whose plugin is not installed is left alone: the file serves
                several installations.
        """
        for layer in layers or self._layers:
            for name, value in layer.values.items():
                if layer.level is Level.FILE and not self._provided(name.partition(".")[0]):
                    _log.info("%s in the configuration file: its plugin is not installed", name)
                    continue
                feature = self.find(name)
                if feature.coerce(value) != feature.off and (reason := self.why_not(feature)):
                    raise FeatureUnavailableError(
                        f"{name} was asked for ({layer.level.value}) but is not available here: {reason}.",
                        hint=f"`mlxengine features {name}` says more.",
                    )

    def _provided(self, provider: str) -> bool:
        return any(name == provider for _, name in self._features.values())

    def explain(self, name: str | Feature[Any], *layers: Layer) -> Explanation:
        """Value, source, provider, stage, availability and reason of one flag."""
        return Features(self, (*layers, *self._layers)).explain(name)

    def provider(self, name: str) -> str:
        """The plugin that provides the feature."""
        return self._features[self.find(name).name][1]

    def foreign(self, name: str, plugin: str, honours: Collection[str]) -> str | None:
        """Why a flag means nothing for a model of a plugin, which honours these of others; or ``None``."""
        provider = self.provider(name)
        if provider in (plugin, "core") or name in honours:
            return None
        return f"it is a flag of the plugin {provider!r}, which {plugin!r} does not honour"

    def refuse_foreign(self, flags: Mapping[str, object], plugin: str, honours: Collection[str]) -> None:
        """Raise for a flag that was set for a model of a plugin which would ignore it.

        Raises:
            FeatureUnavailableError: it is another plugin's, not off, and this one does not honour it.
            UnknownFeatureError: nobody has it.
            InvalidParameterError: a value is none of its flag's.
        """
        for name, value in flags.items():
            feature = self.find(name)
            if feature.coerce(value) != feature.off and (why := self.foreign(name, plugin, honours)):
                raise FeatureUnavailableError(
                    f"{name} cannot be set for this model: {why}.",
                    hint="Leave it out, or let the flag's own plugin serve the model (plugin=…).",
                )


@frozen
class Features:
    """The flags as one load or one call sees them; the keys are `Feature` objects or names."""

    registry: FeatureRegistry = field(repr=False)
    layers: tuple[Layer, ...]

    def get(self, feature: Feature[T]) -> T:
        """The value in force: the strongest layer's, else the default where the probe passed."""
        return cast(T, self._decide(feature)[0])

    def require(self, feature: Feature[T]) -> T:
        """The same, for what a caller asked for by another way than the flag.

        Raises:
            FeatureUnavailableError: the feature is off or not available.
        """
        explanation = self.explain(feature)
        if not explanation.available or explanation.value is False:
            raise FeatureUnavailableError(
                f"This needs {explanation.name}, which is not in use: {explanation.reason}.",
                hint=f"Turn it on with features={{{explanation.name!r}: True}}."
                if explanation.available
                else None,
            )
        return cast(T, explanation.value)

    def explain(self, name: str | Feature[Any]) -> Explanation:
        """Value, source, provider, stage, availability and reason of one flag."""
        feature = self.registry.find(name)
        value, level, reason = self._decide(feature)
        unavailable = self.registry.why_not(feature)
        return Explanation(
            name=feature.name,
            value=value,
            source=level,
            provider=self.registry.provider(feature.name),
            stage=feature.stage,
            available=unavailable is None,
            reason=unavailable or reason,
            summary=feature.summary,
        )

    def over(self, *layers: Layer) -> Features:
        """The same view with stronger layers on top, checked."""
        return Features(self.registry, self.registry.view(*layers).layers[: len(layers)] + self.layers)

    def _decide(self, feature: Feature[Any]) -> tuple[object, Level, str]:
        for layer in self.layers:
            if feature.name in layer.values:
                value = feature.coerce(layer.values[feature.name])
                return value, layer.level, f"set to {value!r} by {layer.level.value}"
        unavailable = self.registry.why_not(feature)
        value = feature.off if unavailable else feature.default
        reason = f"not available: {unavailable}" if unavailable else f"default of a {feature.stage} feature"
        return value, Level.DEFAULT, reason


def parse_flags(text: str) -> dict[str, object]:
    """Read ``"audio.threshold=4,-audio.echo,audio.noise"``, as ``MLXENGINE_FEATURES`` holds it.

    Raises:
        InvalidParameterError: an item is not ``name``, ``-name`` or ``name=value``.
    """
    found: dict[str, object] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        key = name.strip().lstrip("+-")
        if not re.fullmatch(_NAME, key) or (equals and (not value.strip() or name[0] in "+-")):
            raise InvalidParameterError(
                f"{item!r} is not a feature flag.",
                hint="Write plugin.name, -plugin.name or plugin.name=value.",
            )
        found[key] = value.strip() if equals else not name.startswith("-")
    return found


def _run_probe(feature: Feature[Any]) -> str | None:
    if feature.probe is None:
        return None
    try:
        reason = feature.probe()
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        return f"its probe failed with {type(error).__name__}: {error}"
    if reason is None or isinstance(reason, str):
        return reason
    return f"its probe answered {reason!r}, neither None nor the reason why not"


__all__ = [
    "Explanation",
    "Feature",
    "FeatureRegistry",
    "Features",
    "LLMEngineFeatures",
    "Layer",
    "Level",
    "Stage",
    "parse_flags",
]
