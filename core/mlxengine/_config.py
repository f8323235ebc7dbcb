"""Settings that come from outside the program: the environment and the configuration file.

The file is ``mlxengine.toml`` in the user's configuration folder, or what ``MLXENGINE_CONFIG`` names::

    model = "org/name"                # what `mlxengine run` and `chat` use
    [features]
    audio.threshold = 4
    [hub]
    cache_dir = "~/models"
    [plugins]
    audio = "mlxengine-audio"         # which distribution provides a name that several claim
    noise = false                     # this plugin is turned off
    [plugin.audio]                    # what the plugin itself reads, by `plugin_settings`
    device = "front"
    [mcp.time]                        # a server of tools, for `mlxengine chat --mcp time`
    command = "uvx"
    args = ["mcp-server-time"]
    [[models]]
    id = "org/name"
    size = "135M"
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from attrs import field, fields, frozen

from .contract.configuration import ModelConfiguration, ModelRef, Provenance
from .contract.features import Layer, Level, parse_flags
from .errors import ConfigurationError, InvalidParameterError, MLXEngineError
from .readonly import freeze

VARIABLE = "MLXENGINE_CONFIG"
FEATURES_VARIABLE = "MLXENGINE_FEATURES"
PLUGINS_VARIABLE = "MLXENGINE_PLUGINS"
T = TypeVar("T")


@frozen(kw_only=True)
class HubSettings:
    """How the hub is reached; ``None`` is huggingface_hub's own default.

    ``ask_above`` is the size (``"10GB"``) of a download above which the command line asks first.
    """

    endpoint: str | None = field(default=None, repr=False)
    cache_dir: Path | None = None
    offline: bool | None = None
    ask_above: str | None = None


@frozen(kw_only=True)
class ToolServerSettings:
    """How an MCP server is started; `mlxengine.text.mcp.mcp_tools` says what each means."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(factory=dict, converter=freeze, repr=False)
    cwd: Path | None = None
    start_timeout: float = 60.0
    timeout: float = 60.0


@frozen(kw_only=True)
class Settings:
    """The configuration file's content; everything is empty where there is none.

    Args:
        path: the file that was read.
        model: the model of the verbs that are given none.
        features: feature flags by name.
        models: entries for the registry.
        hub: how the hub is reached.
        distributions: which distribution provides an entry-point name that several claim.
        off: names of plugins that are turned off, by the file or by ``MLXENGINE_PLUGINS``.
        tables: the plugins' own tables, by the plugin's name.
        tool_servers: MCP servers, by the names that the file gives them.
    """

    path: Path | None = None
    model: str | None = None
    features: Mapping[str, object] = field(factory=dict, converter=freeze)
    models: tuple[ModelConfiguration, ...] = ()
    hub: HubSettings = HubSettings()
    distributions: Mapping[str, str] = field(factory=dict, converter=freeze)
    off: frozenset[str] = frozenset()
    tables: Mapping[str, Mapping[str, Any]] = field(factory=dict, converter=freeze)
    tool_servers: Mapping[str, ToolServerSettings] = field(factory=dict, converter=freeze)


def default_path() -> Path:
    """Where the configuration file is looked for if ``MLXENGINE_CONFIG`` names none."""
    home = os.environ.get("XDG_CONFIG_HOME")
    if home:
        folder = Path(home)
    elif sys.platform == "darwin":
        folder = Path("~/Library/Application Support").expanduser()
    else:
        folder = Path("~/.config").expanduser()
    return folder / "mlxengine" / "mlxengine.toml"


def load_settings() -> Settings:
    """Read the configuration file.

    Raises:
        ConfigurationError: the file that was named does not exist, the file cannot be read, is not TOML,
            or holds a key or value that is not known; the message names the file and the place.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named).expanduser() if named else default_path()
    try:
        raw = path.read_bytes()
    except (OSError, RuntimeError) as error:
        if isinstance(error, FileNotFoundError) and not named:
            return Settings(off=_off(frozenset()))
        raise _unreadable(path, error, named) from error
    import tomllib

    try:
        data = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The configuration file {path} is not TOML: {error}.",
            hint="See docs/reference/configuration-file.md.",
        ) from error
    return _Reader(path).settings(data)


def plugin_settings(plugin: str, made: type[T]) -> T:
    """A plugin's own table ``[plugin.NAME]`` of the configuration file, in the plugin's own form.

    Args:
        plugin: the plugin's name, as its entry point has it.
        made: an attrs class with keyword arguments; the table's keys are their names. Without a table, and
            for keys that it does not have, its defaults hold. Its validators raise `InvalidParameterError`.

    Raises:
        ConfigurationError: a key is not an argument of the class, or a value is refused; the message names
            the file and the place.
    """
    settings = load_settings()
    table = settings.tables.get(plugin, {})
    reader, place = _Reader(settings.path or default_path()), f"plugin.{plugin}"
    reader.known(table, [item.alias for item in cast(Any, made).__attrs_attrs__], f"{place}.")
    try:
        return made(**table)
    except (MLXEngineError, TypeError, ValueError) as error:
        raise reader.wrong(f"{place}: {str(error).rstrip('.')}", getattr(error, "hint", None)) from error


def _off(file: frozenset[str]) -> frozenset[str]:
    """The plugins that are turned off: ``-name`` in the environment does so, ``name`` takes it back."""
    words = os.environ.get(PLUGINS_VARIABLE, "").replace(",", " ").split()
    for word in words:
        if not re.fullmatch(r"-?[A-Za-z0-9][\w.-]*", word):
            raise InvalidParameterError(
                f"{PLUGINS_VARIABLE} holds {word!r}, which is no plugin's name.",
                hint='Write "-audio" to turn the plugin audio off, "audio" to use it against the file.',
            )
    off = {word[1:] for word in words if word.startswith("-")}
    return frozenset((file - {word for word in words if not word.startswith("-")}) | off)


def _unreadable(path: Path, error: Exception, named: str | None) -> ConfigurationError:
    reason = getattr(error, "strerror", None) or error
    return ConfigurationError(
        f"The configuration file {path} cannot be read: {reason}.",
        hint=f"Correct {VARIABLE}, or unset it." if named else "Correct its permissions.",
    )


def feature_layers(settings: Settings | None = None) -> tuple[Layer, ...]:
    """The feature flags of the environment and of the configuration file, strongest first.

    Raises:
        InvalidParameterError: ``MLXENGINE_FEATURES`` cannot be read.
        ConfigurationError: the configuration file cannot be.
    """
    found = load_settings() if settings is None else settings
    return (
        Layer(Level.ENVIRONMENT, parse_flags(os.environ.get(FEATURES_VARIABLE, ""))),
        Layer(Level.FILE, found.features),
    )


class _Reader:
    """Checks the decoded file against what it may hold."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def settings(self, data: Mapping[str, Any]) -> Settings:
        self.known(data, ("model", "features", "hub", "plugins", "plugin", "mcp", "models"), "")
        models = self._value(data, "models", list, "") or []
        hub = self._table(data, "hub")
        self.known(hub, ("endpoint", "cache_dir", "offline", "ask_above"), "hub.")
        cache = self._value(hub, "cache_dir", str, "hub.")
        plugins = self._table(data, "plugins")
        chosen = {
            name: False if item is False else self._value(plugins, name, str, "plugins.")
            for name, item in plugins.items()
        }
        return Settings(
            path=self._path,
            model=self._model(data),
            features=self._flags(self._table(data, "features"), "features."),
            models=self._models(models),
            hub=HubSettings(
                endpoint=self._value(hub, "endpoint", str, "hub."),
                cache_dir=Path(cache).expanduser() if cache else None,
                offline=self._value(hub, "offline", bool, "hub."),
                ask_above=self._value(hub, "ask_above", str, "hub."),
            ),
            distributions={name: item for name, item in chosen.items() if item is not False},
            off=_off(frozenset(name for name, item in chosen.items() if item is False)),
            tables=self._tables(data, "plugin"),
            tool_servers={name: self._server(name, item) for name, item in self._tables(data, "mcp").items()},
        )

    def _tables(self, data: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
        found = self._table(data, key)
        return {name: self._value(found, name, dict, f"{key}.") for name in found}

    def _server(self, name: str, item: Mapping[str, Any]) -> ToolServerSettings:
        place = f"mcp.{name}."
        kinds = {
            "command": str,
            "args": list,
            "env": dict,
            "cwd": str,
            "start_timeout": float,
            "timeout": float,
        }
        self.known(item, kinds, place)
        values = {key: self._value(item, key, kinds[key], place) for key in item}
        if "command" not in values:
            raise self.wrong(f"mcp.{name} has no command", 'Write command = "program", args = ["…"].')
        for key, texts in (("args", values.get("args", [])), ("env", [*values.get("env", {}).values()])):
            if not all(isinstance(text, str) for text in texts):
                raise self.wrong(f"{place}{key} must hold texts only")
        if "cwd" in values:
            values["cwd"] = Path(values["cwd"]).expanduser()
        return ToolServerSettings(**values | {"args": tuple(values.get("args", ()))})

    def _model(self, data: Mapping[str, Any]) -> str | None:
        model: str | None = self._value(data, "model", str, "")
        if model is not None:
            self._checked("model", lambda: ModelRef.parse(str(model)))
        return model

    def _models(self, items: list[Any]) -> tuple[ModelConfiguration, ...]:
        found: dict[str, ModelConfiguration] = {}
        for number, item in enumerate(items, 1):
            place = f"models[{number}]"
            if not isinstance(item, dict):
                raise self.wrong(f"{place} must be a table, found {item!r}")
            entry = self._entry(item, f"{place}.")
            key = entry.id.casefold()
            if key in found:
                raise self.wrong(f"{place}: the model {entry.id!r} is listed twice", "Remove one of them.")
            found[key] = entry
        return tuple(found.values())

    def _entry(self, item: dict[str, Any], place: str) -> ModelConfiguration:
        kinds = {attribute.name: _KINDS.get(attribute.name, str) for attribute in fields(ModelConfiguration)}
        self.known(item, kinds, place)
        if "id" not in item:
            raise self.wrong(f"{place.rstrip('.')} has no id", 'Write id = "org/name".')
        values = {name: self._value(item, name, kinds[name], place) for name in item}
        if "extra_eos_tokens" in values:
            values["extra_eos_tokens"] = tuple(map(str, values["extra_eos_tokens"]))
        if "features" in values:
            values["features"] = tuple(sorted(self._flags(values["features"], f"{place}features.").items()))
        if "sources" in values:
            values["sources"] = tuple(self._provenance(one, f"{place}sources.") for one in values["sources"])
        if "provenance" in values:
            values["provenance"] = self._provenance(values["provenance"], f"{place}provenance.")

        def make() -> ModelConfiguration:
            entry = ModelConfiguration(**values)
            ModelRef.parse(entry.id, entry.revision)
            return entry

        return self._checked(place.rstrip("."), make)

    def _provenance(self, table: dict[str, Any], place: str) -> Provenance:
        if not isinstance(table, dict):
            raise self.wrong(f"{place.rstrip('.')} must hold tables")
        self.known(table, ("checked", "source", "fields", "how"), place)
        for name in ("checked", "source"):
            if not isinstance(table.get(name), str):
                raise self.wrong(f"{place}{name} must be a text")
        chosen = self._value(table, "fields", list, place) or []
        how = self._value(table, "how", str, place) or "documented"
        return Provenance(
            checked=table["checked"], source=table["source"], fields=tuple(map(str, chosen)), how=how
        )

    def _flags(self, table: Mapping[str, Any], place: str) -> dict[str, object]:
        """Flags written as ``audio.gain = 4``, ``"audio.gain" = 4`` or in a table ``[features.audio]``."""
        found: dict[str, object] = {}
        for name, value in table.items():
            inner = (
                {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else None
            )
            for key, item in (inner if inner is not None else {name: value}).items():
                if isinstance(item, dict | list):
                    raise self.wrong(f"{place}{key} must be a number, a text or true or false")
                if key in found:
                    raise self.wrong(f"{place}{key} is set twice")
                found[key] = item
        return found

    def _table(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        found: dict[str, Any] | None = self._value(data, name, dict, "")
        return found or {}

    def _value(self, data: Mapping[str, Any], name: str, kind: type, place: str) -> Any:
        value = data.get(name)
        if value is None:
            return None
        fits = isinstance(value, int | float if kind is float else kind)
        if not fits or (kind in (int, float) and isinstance(value, bool)):
            found = (
                type(value).__name__ if isinstance(value, list | dict) else repr(value)
            )  # it may hold a secret
            raise self.wrong(f"{place}{name} must be {_WORDS[kind]}, found {found}")
        return value

    def known(self, data: Mapping[str, Any], known: Collection[str], place: str) -> None:
        """Refuse a key that is not known, and name the nearest that is."""
        for key in data:
            if key in known:
                continue
            if "token" in key and place in ("", "hub."):
                hint = "Keep secrets out of this file: use HF_TOKEN, or log in with `hf auth login`."
            else:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"Did you mean {place}{near[0]}?" if near else f"Known keys: {', '.join(known)}."
            raise self.wrong(f"{place}{key} is not a known key", hint)

    def _checked(self, place: str, make: Callable[[], T]) -> T:
        try:
            return make()
        except ConfigurationError as error:
            raise self.wrong(f"{place}: {error.message.rstrip('.')}", error.hint) from error

    def wrong(self, problem: str, hint: str | None = None) -> ConfigurationError:
        """The error that names the file."""
        return ConfigurationError(f"In the configuration file {self._path}: {problem}.", hint=hint)


_KINDS: dict[str, type] = {
    "context_length": int,
    "memory_bytes": int,
    "parameter_count": int,
    "sources": list,
    "trust_remote_code": bool,
    "extra_eos_tokens": list,
    "tasks": list,
    "features": dict,
    "provenance": dict,
}
_WORDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
