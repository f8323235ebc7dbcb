"""The plugin under test, with its specimen, driven step by step as the scheduler would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import suppress
from fnmatch import fnmatch
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import attrs
from attrs import frozen

from .._hub import resolve
from ..contract.configuration import ModelCard, ModelConfiguration
from ..contract.device import Device
from ..contract.events import Event, Waiting
from ..contract.features import FeatureRegistry, Layer, Level
from ..contract.hookspecs import ENTRY_POINT_GROUP, Claim, LoadContext, Loaded, RunContext
from ..contract.requests import Request
from ..errors import PluginLoadError
from ._clauses import Broken, demand
from ._hooks import Hooks
from ._lane import Lane, Worker
from ._strangers import foreign_cards
from .specimen import Specimen

T = TypeVar("T")
_SECONDS = 60.0
_MOST_STEPS = 100_000


@frozen
class Run:
    """What one request did: its events in order, and how long each step took, in seconds."""

    events: tuple[Any, ...]
    steps: tuple[float, ...]


class Subject:
    """One plugin and its specimen. Use as a context manager: models that are still loaded are closed.

    Args:
        name: the plugin's entry-point name.
        value: the entry point's value (``"package.module"`` or ``"package.module:object"``); ``None``
            looks it up among the installed distributions.
        specimen: a model to try it on; without one only the contract part can be checked.
    """

    def __init__(self, name: str, value: str | None = None, specimen: Specimen | None = None) -> None:
        self.name = name
        self.value = value or _installed(name)
        self._specimen = specimen
        self._open: list[Loaded] = []
        self._lanes: list[Lane] = []
        self._made: dict[str, Any] = {}
        self.warmed: list[float] = []
        self.seconds = _SECONDS if specimen is None else specimen.seconds
        self._asking = Worker("conformance-ask", self.seconds)

    def __enter__(self) -> Subject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loaded in list(self._open):
            with suppress(Exception, SystemExit):  # a clause has said so
                self.close(loaded)
        for lane in self._lanes:
            lane.close()
        self._asking.close()
        self._scratch.cleanup()

    @cached_property
    def plugin(self) -> object:
        return self._asking.run(EntryPoint(name=self.name, value=self.value, group=ENTRY_POINT_GROUP).load)

    @cached_property
    def hooks(self) -> Hooks:
        return Hooks(self.name, self.plugin, self._asking.run)

    @property
    def specimen(self) -> Specimen:
        if self._specimen is None:
            raise Broken("no specimen was given, so there is no model to look at")
        return self._specimen

    @cached_property
    def card(self) -> ModelCard:
        return self.card_of(self.specimen.path)

    def card_of(self, path: Path) -> ModelCard:
        """The card of a folder that holds the specimen, or what is left of it."""
        configuration = self.specimen.configuration or ModelConfiguration(id=str(path))
        return resolve(attrs.evolve(configuration, id=str(path)))

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """Cards to ask claim_model about: strangers', and the specimen's if there is one."""
        return foreign_cards() if self._specimen is None else (*foreign_cards(), self.card)

    @cached_property
    def claim(self) -> Claim:
        claim = self.hooks.claim(self.card)
        if claim is None:
            raise Broken(f"claim_model declined the specimen {self.specimen.path}")
        return claim

    @cached_property
    def lane(self) -> Lane:
        self._lanes.append(Lane(uses_mlx=self.claim.uses_mlx, seconds=self.seconds))
        return self._lanes[-1]

    @cached_property
    def features(self) -> FeatureRegistry:
        return self.hooks.host.features

    @property
    def loaded(self) -> Loaded:
        """The specimen, loaded once for all clauses that only use it."""
        return self._once("loaded", lambda: self.load(self.claimed_files()))

    @property
    def solo(self) -> tuple[Run, ...]:
        """Every example run alone."""
        return self._once("solo", self.each_alone)

    def each_alone(self) -> tuple[Run, ...]:
        """The same once more."""
        return tuple(self.run(self.loaded.model, [item.request])[0] for item in self.specimen.examples)

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """What is made once, or the error that this ended with: nobody waits for it a second time."""
        if name not in self._made:
            try:
                self._made[name] = make()
            except BaseException as error:
                self._made[name] = error
        found = self._made[name]
        if isinstance(found, BaseException):
            raise found
        return cast(T, found)

    @cached_property
    def probed(self) -> dict[str, Any]:
        """What importing the plugin and asking its pure hooks did in a fresh process."""
        return self.probe()

    def probe(self) -> dict[str, Any]:
        """The same, in one more fresh process."""
        asked = {
            "name": self.name,
            "value": self.value,
            "paths": [path or os.getcwd() for path in sys.path],  # noqa: PTH109 - what an empty entry means
            "specimen": None if self._specimen is None else _told(self.card.configuration),
        }
        command = [sys.executable, "-m", "mlxengine.testing._probe"]
        limit = self.seconds
        try:
            done = subprocess.run(
                command, input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=limit
            )
        except subprocess.TimeoutExpired:
            raise Broken(f"asking it in a fresh process has not come to an end within {limit:g} s") from None
        if done.returncode or not done.stdout.strip():
            said = f"code {done.returncode}: {done.stderr[-2000:]}"
            raise Broken(
                f"the plugin could not be imported, or asked, in a fresh process, which ended with {said}"
            )
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report

    def claimed_files(self) -> Path:
        """A folder with links to the files that the claim names and nothing else."""
        source, target = self.specimen.path, Path(self._scratch.name) / f"claimed-{len(self._open)}"
        if source.is_file():
            return source
        for name in self.card.names():
            if any(fnmatch(name, pattern) for pattern in self.claim.files):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                if not (target / name).exists():
                    shutil.copyfile(source / name, target / name)
        demand(target.exists(), f"the claim's patterns {self.claim.files} match no file of the specimen")
        return target

    @cached_property
    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="mlxengine-conformance-")

    def load(self, path: Path, card: ModelCard | None = None) -> Loaded:
        """Load as the engine does: the hook on the loader's thread, the warming on the owner's."""
        card = card or self.card
        context = LoadContext(
            path=path,
            configuration=card.configuration,
            features=self.features.view(_flags(card)),
            device=Device.detect(),
        )
        loaded = self.lane.load(lambda: self.hooks.load(card, context))
        self._open.append(loaded)
        warm = self.lane.step(lambda: iter(loaded.warm))
        self.warmed = self._until_its_end([warm])[1][0]
        return loaded

    def close(self, loaded: Loaded) -> None:
        """Free the model, on the thread that owns it."""
        self._open = [other for other in self._open if other is not loaded]
        if loaded.close is not None:
            self.lane.step(loaded.close)

    def start(self, model: object, request: Request) -> Iterator[Event | None]:
        """The iterator of one request.

        Raises:
            Broken: the plugin declines the request.
        """
        flags = self.features.view(Layer(Level.CALL, dict(request.features)), _flags(self.card))
        context = RunContext(features=flags)
        found = self.lane.step(lambda: self.hooks.generate(model, request, context))
        if found is None:
            raise Broken(f"generate returned None for {type(request).__name__}, which an example holds")
        return found

    def step(self, iterator: Iterator[Any]) -> tuple[Any, float]:
        """One step: what it yielded (``self`` at the end) and the seconds that it took."""
        begun = time.perf_counter()
        found = self.lane.step(lambda: next(iterator, self))
        took = time.perf_counter() - begun
        if isinstance(found, Waiting):
            wait([found.until], timeout=0.1)
            found = None
        return found, took

    def run(self, model: object, requests: Sequence[Request]) -> list[Run]:
        """Run requests side by side, one step of each in turn."""
        events, steps = self._until_its_end([self.start(model, request) for request in requests])
        return [Run(tuple(said), tuple(took)) for said, took in zip(events, steps, strict=True)]

    def _until_its_end(self, iterators: Sequence[Iterator[Any]]) -> tuple[list[list[Any]], list[list[float]]]:
        """What iterators yield and the seconds of their steps, one step of each in turn.

        Raises:
            Broken: they do not end.
        """
        events: list[list[Any]] = [[] for _ in iterators]
        steps: list[list[float]] = [[] for _ in iterators]
        active = list(enumerate(iterators))
        limit = self.seconds
        deadline = time.monotonic() + limit
        while active:
            for item in list(active):
                found, seconds = self.step(item[1])
                steps[item[0]].append(seconds)
                if found is self:
                    active.remove(item)
                elif found is not None:
                    events[item[0]].append(found)
                taken = len(steps[item[0]])
                if taken > _MOST_STEPS or time.monotonic() > deadline:
                    raise Broken(f"it has not come to an end after {taken:,} steps (limit {limit:g} s)")
        return events, steps


def _flags(card: ModelCard) -> Layer:
    """Those of the load."""
    return Layer(Level.LOAD, dict(card.configuration.features))


def _told(configuration: ModelConfiguration) -> dict[str, Any]:
    """A configuration as JSON, but for what nobody claims by."""
    return attrs.asdict(configuration, filter=lambda item, _: item.name not in ("provenance", "sources"))


def _installed(name: str) -> str:
    found = {item.value for item in entry_points(group=ENTRY_POINT_GROUP, name=name)}
    if len(found) != 1:
        raise PluginLoadError(
            f"The plugin {name!r} is provided by {len(found)} installed distributions, not by one.",
            plugin=name,
            hint="Install it, or give the entry point's value.",
        )
    return found.pop()


__all__ = ["Run", "Subject"]
