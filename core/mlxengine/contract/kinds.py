"""A kind of model as one value: what `load` returns for it, and what verbs, search and memory ask of it.

Whoever brings a kind lists it with the hook ``list_kinds``; the rooms of core's own list theirs by the same
value. Everything that is code is named as ``"module:object"`` and imported when it is first needed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen

from ..errors import PluginContractError
from ._convert import anything, texts

if TYPE_CHECKING:
    from .configuration import ModelConfiguration
    from .events import Event
    from .features import Features
    from .hookspecs import Workload
    from .requests import Request

OWN = ("mlxengine.text.kind:KINDS", "mlxengine.vectors.kind:KINDS", "mlxengine.pictures.kind:KINDS")
"""Where core's own kinds stand. The first one is what a verb takes where nobody names a kind."""


@frozen(kw_only=True)
class Option:
    """An option of the command line that a kind adds to a verb.

    Args:
        flag: ``"--horizon"``. Kinds may share one: each reads its text by its own ``type``.
        name: what it is called in the mapping of options; the flag's name if left out.
        type: reads the text; raises ``ValueError`` for what it cannot read.
        default: the value where the option is not given; ``()`` for one that is ``repeated``.
        metavar: what the help calls the value.
        repeated: whether it may be given several times; its value is a tuple then.
        short: a second flag of one letter, ``"-o"``.
    """

    flag: str
    help: str = ""
    name: str = field()
    type: Callable[[str], Any] = str
    default: Any = None
    metavar: str | None = None
    repeated: bool = False
    short: str | None = None

    @name.default
    def _named(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")


@frozen(kw_only=True)
class Answer:
    """What ``mlxengine run`` says of a request that is over.

    Args:
        value: with ``--json``; plain values.
        text: for people, after what was shown while it ran.
        stats: one line for ``--stats``.
    """

    value: Mapping[str, Any]
    text: str = ""
    stats: str = ""


class Asking:
    """How ``mlxengine run`` asks a model of a kind. `Kind.run` names an object of a subclass.

    ``options`` are what the verb takes for this kind. ``first`` is what ``mlxengine setup`` asks for a first
    answer (``None``: nothing).
    """

    options: Sequence[Option] = ()
    first: str | None = None

    def request(self, words: Sequence[str], options: Mapping[str, Any]) -> Request:
        """The request; called before the model is loaded.

        Args:
            words: the words of the command line, or a text that came by a pipe, or the model's default
                prompt, as one.
            options: the values by `Option.name`, each there.

        Raises:
            ConfigurationError: the words or options make no request.
        """
        raise NotImplementedError

    def show(self, event: Event) -> str:
        """What people read at once when an event comes; empty for nothing."""
        del event
        return ""

    def answer(self, events: Sequence[Event], options: Mapping[str, Any]) -> Answer:
        """What is said at the end; ``events`` are all but `Progress`, the `Finished` is the last one.

        Raises:
            ConfigurationError: what the options ask for cannot be done (a file that cannot be written).
        """
        raise NotImplementedError


class Measuring:
    """How ``mlxengine bench`` measures a model of a kind. `Kind.bench` names an object of a subclass."""

    options: Sequence[Option] = ()

    def measure(self, handle: Any, options: Mapping[str, Any]) -> Mapping[str, float]:
        """Run once on a loaded model and give figures by name; ``"peak memory, bytes"`` is shown apart."""
        raise NotImplementedError


class Mock:
    """What the mock back end makes for a kind. `Kind.mock` names a subclass; ``info`` is the handle's."""

    info: ClassVar[Mapping[str, Any]] = {}

    def generate(self, request: Request) -> Iterator[Event | None] | None:
        """The events of a request, each with ``mock=True``; ``None`` for one that the kind does not have."""
        raise NotImplementedError


@frozen(kw_only=True)
class Lesser:
    """A way to load a model that takes less memory than what was asked for.

    Args:
        words: what it is loaded with, for people: ``"2048 tokens of context"``.
        workload: what its memory is estimated for.
        changes: fields of the configuration that the plugin is given, with their values.
        features: flags that are set for it.
        refusable: whether the plugin may refuse these flags for this model with `FeatureUnavailableError`
            when it loads; the next way without them is taken then.
    """

    words: str
    workload: Workload
    changes: Mapping[str, Any] = field(factory=dict)
    features: Mapping[str, Any] = field(factory=dict)
    refusable: bool = False


@frozen(kw_only=True)
class Wanted:
    """What a model was asked to be loaded with, for `Kind.degrade`.

    Args:
        configuration: the model's.
        features: the flags in force.
        plugin: the name of the plugin that serves it.
        workload: of the kind, with the back end and the free memory; the kind adds what it reckons with.
        refused: whether the plugin refused flags of a `Lesser` way for this model; only others help then.
    """

    configuration: ModelConfiguration
    features: Features
    plugin: str
    workload: Any
    refused: bool = False


@frozen(kw_only=True)
class Task:
    """What some models of a kind are good for, by what their registry entry says.

    Args:
        name: for example ``"code"``.
        words: a regular expression over whole words of the entry's name and summary.
        notes: a regular expression over its notes on the chat template.
        unless: another task that rules this one out.
    """

    name: str
    words: str | None = None
    notes: str | None = None
    unless: str | None = None

    def of(self, item: ModelConfiguration) -> bool:
        """Whether an entry says so, ``unless`` apart."""
        text = f"{item.id.partition('@')[0]} {item.summary}".lower()
        if self.words is not None and re.search(rf"(?<![a-z0-9])(?:{self.words})(?![a-z0-9])", text):
            return True
        notes = (item.template_notes or "").lower()
        return bool(self.notes is not None and notes and re.search(self.notes, notes))


@frozen(kw_only=True)
class Kind:
    """A kind of model.

    Args:
        name: lower-case; what `Claim.kind` says.
        summary: a few words for people.
        handle, async_handle: the classes that ``load`` returns, subclasses of `ModelHandle` and
            `AsyncModelHandle`.
        workload: a subclass of `Workload` with what a model's memory depends on.
        usage: the subclass of `Usage` that counts in the kind's own units.
        run: an `Asking`; without one ``mlxengine run`` refuses such models before they are loaded.
        bench: a `Measuring`.
        mock: a subclass of `Mock`; without one the mock back end refuses the kind.
        degrade: a function from `Wanted` to the `Lesser` ways to load, best first; the first one, without
            words, is what was asked for.
        looks: a function from a `ModelCard` to whether it looks like one of the kind, for the hint that
            names ``install``.
        pipelines: the hub's pipeline tags that ``mlxengine search`` looks for.
        tasks: what ``mlxengine recommend --task`` knows.
        install: what pip is told to get a plugin for it.
        libraries: distributions whose versions ``mlxengine doctor`` names.
    """

    name: str
    summary: str = ""
    handle: str = "mlxengine.handle:ModelHandle"
    async_handle: str = "mlxengine.handle:AsyncModelHandle"
    workload: str = "mlxengine.contract.hookspecs:Workload"
    usage: str = "mlxengine.contract.events:Usage"
    run: str | None = None
    bench: str | None = None
    mock: str | None = None
    degrade: str | None = None
    looks: str | None = None
    pipelines: tuple[str, ...] = field(default=(), converter=texts)
    tasks: tuple[Task, ...] = field(default=(), converter=anything)
    install: str | None = None
    libraries: tuple[str, ...] = field(default=(), converter=texts)

    def find(self, what: str) -> Any:
        """Import what one of the fields names; ``None`` where the field is.

        Raises:
            PluginContractError: there is no such module or object.
        """
        target = getattr(self, what)
        if target is None:
            return None
        module, _, name = target.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:
            raise PluginContractError(
                f"The kind {self.name!r} names {target!r} as its {what}, which cannot be imported: {error}.",
                plugin=self.name,
                hook="list_kinds",
                hint="Report it to the author of the plugin that lists the kind.",
            ) from error


def own_kinds() -> tuple[Kind, ...]:
    """The kinds whose vocabulary is core's own."""
    rooms = (target.partition(":") for target in OWN)
    return tuple(kind for room, _, name in rooms for kind in getattr(importlib.import_module(room), name))


def named(kinds: Iterable[Kind]) -> dict[str, Kind]:
    """Kinds by name."""
    return {kind.name: kind for kind in kinds}


def positive(text: str) -> int:
    """A whole number from 1, for `Option.type`."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number from 1")
    return int(text)


def pixels(text: str) -> tuple[int, int]:
    """``"512x512"`` as (width, height), for `Option.type`."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"{text!r} is not a size: write it as 512x512")
    return int(width), int(height)


__all__ = [
    "Answer",
    "Asking",
    "Kind",
    "Lesser",
    "Measuring",
    "Mock",
    "Option",
    "Task",
    "Wanted",
    "own_kinds",
    "pixels",
    "positive",
]
