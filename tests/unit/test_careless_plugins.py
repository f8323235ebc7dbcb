"""Every fault that a careless author is known to make: the engine names it, nobody else is disturbed, and
the conformance kit finds it where it can. The table in docs/reference/testing.md is made from `FAULTS`.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import frozen
from mlxengine import InferenceEngine, Request, diagnose, errors
from mlxengine.cli import main
from mlxengine.testing import Specimen, check_plugin

sys.path.append(str(Path(__file__).parent / "planted"))
import careless
import planted
from neighbour import Neighbour, Twin, TwinOfItsKind
from planted import CountRequest

ASK = CountRequest(upto=3)


class Scene:
    """An engine with the careless plugin and its neighbour, a model of each, and what was logged."""

    def __init__(self, fault: Fault, folder: Path, monkeypatch: Any, caplog: Any, capsys: Any) -> None:
        self.fault, self.folder = fault, folder
        self.monkeypatch, self.caplog, self.capsys = monkeypatch, caplog, capsys
        self.engine: InferenceEngine | None = None
        self.mine = self._model("count")
        self.theirs = self._model("neighbour")

    def _model(self, architecture: str) -> Path:
        folder = self.folder / architecture
        folder.mkdir()
        config = {"model_type": architecture, "bytes": 5 * 10**8}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "words.json").write_text(json.dumps(["one ", "two ", "three "]))
        return folder

    def open(self, **options: Any) -> InferenceEngine:
        plugins = [("count", self.fault.make()), ("neighbour", Neighbour()), *self.fault.others]
        self.engine = InferenceEngine(plugins=plugins, **options)
        return self.engine

    def installed(self, *requires: str) -> InferenceEngine:
        """The same, found as an installed distribution."""
        for name, value in {"count": self.fault.value, "neighbour": "neighbour:PLANTED"}.items():
            info = self.folder / "site" / f"{name}_plugin-1.0.dist-info"
            info.mkdir(parents=True)
            needs = "".join(f"Requires-Dist: {item}\n" for item in requires if name == "count")
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n{needs}"
            )
            (info / "entry_points.txt").write_text(f"[mlxengine]\n{name} = {value}\n")
        self.monkeypatch.syspath_prepend(self.folder / "site")
        self.monkeypatch.setenv("PLANTED", self.fault.planted)
        if ":" not in self.fault.planted:
            self.monkeypatch.setattr(careless, "PLANTED", self.fault.make())
        self.engine = InferenceEngine()
        return self.engine

    def neighbour_works(self) -> bool:
        engine = self.engine
        if engine is None or engine.closed:
            engine = InferenceEngine(plugins=[("neighbour", Neighbour())])
        with engine.load(self.theirs, plugin="neighbour" if self.fault.chosen else None) as handle:
            return handle.plugin == "neighbour" and bool(handle.run(Request()).finished)


@frozen(kw_only=True)
class Fault:
    """One row of the table.

    Args:
        planted: the plugin that does it, in ``planted/``.
        does: what its author did, for people.
        act: what a user does; gives the error, or the words, in which the engine tells of it.
        error, hook: the error's type and its ``hook``; ``None`` where the engine tells without one.
        words: what the error, or the words, say.
        happens: what comes of it, for people; what the error says by itself is not repeated.
        clause: the clause of the kit that finds it.
        why_not: why the kit cannot.
        chosen: whether the neighbour's model has to be loaded with ``plugin=``.
        others: more plugins that it takes.
        limits: fields of the specimen that the kit needs to find it soon.
    """

    planted: str
    does: str
    act: Callable[[Scene], object]
    error: type[errors.MLXEngineError] | None = None
    hook: str | None = None
    words: str = ""
    happens: str = ""
    clause: str | None = None
    why_not: str = ""
    chosen: bool = False
    others: tuple[Any, ...] = ()
    limits: dict[str, float] = attrs.field(factory=dict)

    @property
    def value(self) -> str:
        """The entry point's."""
        module, _, name = self.planted.partition(":")
        if name:
            return self.planted
        return "planted:PLANTED" if hasattr(planted, module) else "careless:PLANTED"

    def make(self) -> Any:
        return getattr(planted if hasattr(planted, self.planted) else careless, self.planted)()

    @property
    def row(self) -> str:
        """The row of the table in the documentation."""
        told = f"`{self.error.__name__}`" if self.error else ""
        told += f" (`{self.hook}`)" if self.hook else ""
        happens = ": ".join(filter(None, (told, self.happens)))
        return f"| {self.does} | {happens} | {f'`{self.clause}`' if self.clause else self.why_not} |"


def caught(call: Callable[[], object]) -> errors.MLXEngineError:
    with pytest.raises(errors.MLXEngineError) as found:
        call()
    return found.value


def set_aside(scene: Scene) -> object:
    return next(item for item in scene.open().plugins if item.name == "count").error


def found_broken(scene: Scene) -> object:
    return next(item for item in scene.installed().plugins if item.name == "count").error


def for_a_newer_version(scene: Scene) -> object:
    return next(item for item in scene.installed("mlxengine>=9").plugins if item.name == "count").error


def found_late(scene: Scene) -> str:
    began = time.perf_counter()
    scene.installed().load(scene.mine).close()
    return f"{time.perf_counter() - began >= 0.7}"


def load(scene: Scene) -> object:
    engine = scene.open(memory_budget="1GB")
    told = caught(lambda: engine.load(scene.mine))
    assert engine.memory().reserved == 0
    return told


def ask(scene: Scene) -> object:
    return caught(lambda: scene.open().load(scene.mine).run(ASK))


def answered(scene: Scene) -> str:
    """The events come; what is wrong with them is the caller's to see."""
    return " ".join(type(event).__name__ for event in scene.open().load(scene.mine).run(ASK).events)


def owner(scene: Scene) -> str:
    return scene.open().explain(scene.theirs).record.name


def ambiguous(scene: Scene) -> object:
    return caught(lambda: scene.open().load(scene.theirs))


def logged(scene: Scene, act: Callable[[], object]) -> str:
    with scene.caplog.at_level(logging.WARNING):
        act()
    return str(scene.caplog.text)


def freed(scene: Scene) -> str:
    engine = scene.open()
    told = logged(scene, engine.load(scene.mine).close)
    assert engine.memory().models == ()
    return told


def cancelled(scene: Scene) -> str:
    stream = scene.open().load(scene.mine).stream(ASK)
    next(stream)
    return logged(scene, lambda: (stream.close(), scene.neighbour_works()))


def given_up(scene: Scene) -> object:
    """A request that never ends is cancelled by whoever waits for it; others are served meanwhile."""
    engine = scene.open()
    stream = engine.load(scene.mine).stream(ASK)
    while not engine.status().tasks:
        time.sleep(0.001)
    assert scene.neighbour_works()
    stream.cancel()
    return caught(lambda: list(stream))


def never_loaded(scene: Scene) -> object:
    engine = scene.open()
    other = engine.load(scene.theirs)
    told: list[object] = []
    loading = threading.Thread(target=lambda: told.append(caught(lambda: engine.load(scene.mine))))
    loading.start()
    while not engine.status().tasks:
        time.sleep(0.001)
    assert other.run(Request()).finished
    engine.close()
    loading.join(10)
    return told[0]


def never_closed(scene: Scene) -> object:
    engine = scene.open(close_timeout=0.3)
    stream = engine.load(scene.mine).stream(ASK)
    next(stream)
    while engine.status().running_seconds < 0.05:
        time.sleep(0.001)
    began = time.monotonic()
    try:
        return caught(engine.close)
    finally:
        assert time.monotonic() - began < 3
        careless.NeverReturns.gate.set()


def waits_in(scene: Scene, act: Callable[[InferenceEngine], object]) -> str:
    """Whose step keeps the others waiting, as the engine says while it does."""
    engine = scene.open()
    thread = threading.Thread(target=act, args=(engine,))
    thread.start()
    while (status := engine.status()).running_seconds < 0.2:
        time.sleep(0.001)
        assert thread.is_alive()
    thread.join(10)
    return f"running {status.running}"


def read_slowly(scene: Scene) -> str:
    careless.SaysTooMuchAtOnce.made = 0
    stream = scene.open().load(scene.mine).stream(ASK)
    next(stream)
    while careless.SaysTooMuchAtOnce.made < 2:
        time.sleep(0.001)
    time.sleep(0.2)
    made = careless.SaysTooMuchAtOnce.made
    list(stream)
    return f"{made} of {careless.SaysTooMuchAtOnce.made} were made"


def after_an_eviction(scene: Scene) -> object:
    engine = scene.open(idle_ttl=0.05)
    handle = engine.load(scene.mine)
    while not engine.memory().evictions:
        time.sleep(0.01)
    return caught(lambda: handle.run(ASK))


def report(scene: Scene) -> str:
    engine = scene.open()
    engine.load(scene.mine)
    return str(engine.memory().models[0].degraded)


def evicted(scene: Scene) -> str:
    engine = scene.open(memory_budget="1GB")
    engine.load(scene.mine)
    assert scene.neighbour_works()
    return str(engine.memory().evictions)


def left_out(scene: Scene) -> str:
    return logged(scene, lambda: scene.open().registry)


def listed(scene: Scene) -> str:
    scene.installed()
    main(["--help", "--json"])
    verbs = json.loads(scene.capsys.readouterr().out)["verbs"]
    return str([item["summary"] for item in verbs if item["name"] == "run"])


def called(scene: Scene) -> str:
    scene.installed()
    code = main(["count", "sheep"])
    return f"code {code}: {scene.capsys.readouterr().err}"


def self_tested(scene: Scene) -> str:
    scene.installed()
    [check] = [item for item in diagnose(self_test=True).checks if item.name.startswith("count")]
    return f"{check.status} {check.detail}"


def probed(scene: Scene) -> str:
    return str(scene.open().features.explain("count.aloud").reason)


CRASHED, BROKEN, UNLOADABLE = errors.PluginCrashedError, errors.PluginContractError, errors.PluginLoadError
SHORT = {"seconds": 1.0}
FAULTS = (
    # found and listed
    Fault(
        planted="careless:gone",
        does="an entry point to something that is not there",
        act=found_broken,
        error=UNLOADABLE,
        words="gone",
        happens="set aside",
        clause="contract/imports-nothing-heavy",
    ),
    Fault(
        planted="slow_import:PLANTED",
        does="an import that takes long",
        act=found_late,
        words="True",
        happens="whoever makes an engine waits for it, once in a process",
        clause="contract/imports-nothing-heavy",
    ),
    Fault(
        planted="exits:PLANTED",
        does="`sys.exit` on import",
        act=found_broken,
        error=UNLOADABLE,
        words="SystemExit: this library needs a licence",
        happens="set aside",
        clause="contract/imports-nothing-heavy",
    ),
    Fault(
        planted="careless:gone",
        does="requires another version of mlxengine",
        act=for_a_newer_version,
        error=UNLOADABLE,
        words="needs mlxengine>=9",
        happens="set aside, and not imported",
        why_not="it runs with the version that is installed",
    ),
    Fault(
        planted="WrongSignature",
        does="a hook with an argument that there is not",
        act=set_aside,
        error=BROKEN,
        words="colour",
        happens="set aside",
        clause="contract/hook-signatures",
    ),
    Fault(
        planted="ForeignFeatureName",
        does="a feature under another plugin's name",
        act=set_aside,
        error=BROKEN,
        hook="list_features",
        words="llm.aloud",
        happens="set aside",
        clause="contract/feature-names",
    ),
    Fault(
        planted="ExitsInFeatures",
        does="`sys.exit` in `list_features`",
        act=set_aside,
        error=CRASHED,
        hook="list_features",
        words="SystemExit: no licence",
        happens="set aside",
        clause="contract/feature-names",
    ),
    Fault(
        planted="ExitsInModels",
        does="`sys.exit` in `list_models`",
        act=left_out,
        words="list_models of the plugin 'count' is left out",
        happens="its entries are left out, and a warning is logged",
        clause="contract/registry-entries",
    ),
    Fault(
        planted="ListsAKindOfOthers",
        does="lists a kind that core lists",
        act=set_aside,
        error=BROKEN,
        hook="list_kinds",
        words="'count' and 'core'",
        happens="set aside",
        clause="contract/kinds-resolve",
    ),
    Fault(
        planted="ListsItsKind",
        does="two plugins list one kind",
        act=set_aside,
        error=BROKEN,
        hook="list_kinds",
        words="'count' and 'twin'",
        happens="both are set aside",
        others=(("twin", TwinOfItsKind()),),
        why_not="it does not know the other plugin",
    ),
    Fault(
        planted="HidesAVerb",
        does="a verb with the name of a built-in one",
        act=listed,
        words="['answer one prompt, or make one picture or vectors']",
        happens="the built-in one stays",
        clause="contract/commands-resolve",
    ),
    Fault(
        planted="ExitsInAVerb",
        does='`sys.exit("text")` in a verb',
        act=called,
        words="code 1: cannot count ['sheep']",
        happens="the text on stderr, exit code 1",
        why_not="it runs no verbs",
    ),
    Fault(
        planted="ProbeRaises",
        does="a feature's probe that raises",
        act=probed,
        words="its probe failed with OSError: no such device",
        happens="the feature is not available, with that as the reason",
        clause="capability/features-explain-themselves",
    ),
    Fault(
        planted="ExitsInSelfTest",
        does="`sys.exit(0)` in `self_test`",
        act=self_tested,
        words="failed The plugin 'count' (count-plugin) failed in self_test: SystemExit: 0",
        happens="a failed check in `mlxengine doctor`",
        clause="capability/self-test-passes",
    ),
    # claims
    Fault(
        planted="ExitsInClaim",
        does="`sys.exit` in `claim_model`",
        act=load,
        error=CRASHED,
        hook="claim_model",
        words="SystemExit: 3",
        happens="its claim does not count",
        clause="contract/declines-foreign-models",
    ),
    Fault(
        planted="ClaimsEverything",
        does="claims every model as a fallback",
        act=owner,
        words="neighbour",
        happens="whoever claims better serves the model",
        clause="contract/declines-foreign-models",
    ),
    Fault(
        planted="ClaimsAllAsItsOwn",
        does="claims every model as its own",
        act=ambiguous,
        error=errors.AmbiguousModelError,
        words="'count' and 'neighbour'",
        happens="both named; `plugin=` chooses, `MLXENGINE_PLUGINS=-name` turns one off",
        chosen=True,
        clause="contract/declines-foreign-models",
    ),
    Fault(
        planted="Good",
        does="two plugins claim a model equally well",
        act=lambda scene: caught(lambda: scene.open().load(scene.mine)),
        error=errors.AmbiguousModelError,
        words="'count' and 'twin'",
        happens="both named; `plugin=` chooses",
        others=(("twin", Twin()),),
        why_not="it does not know the other plugin",
    ),
    Fault(
        planted="ChangesItsMind",
        does="another claim for the same card",
        act=lambda scene: scene.open().load(scene.mine).plugin,
        words="count",
        happens="the first claim holds for as long as the model is loaded",
        clause="contract/claim-is-pure",
    ),
    Fault(
        planted="ThinksLong",
        does="a slow claim",
        act=lambda scene: scene.open().load(scene.mine).plugin,
        words="count",
        happens="every load of any kind waits for it",
        clause="contract/claim-is-quick",
    ),
    Fault(
        planted="ChangesTheCard",
        does="changes the card that it is shown",
        act=load,
        error=CRASHED,
        hook="claim_model",
        words="TypeError",
        happens="cards cannot be changed; its claim does not count",
        clause="contract/declines-foreign-models",
    ),
    Fault(
        planted="ClaimsBeyondNative",
        does="`fit=10`",
        act=load,
        error=BROKEN,
        hook="claim_model",
        words="fit is 10, not a Fit",
        happens="its claim does not count",
        clause="contract/claims-its-own",
    ),
    Fault(
        planted="ClaimsANumberAsKind",
        does="`kind=5`",
        act=load,
        error=BROKEN,
        hook="claim_model",
        words="kind is 5, not a name",
        happens="its claim does not count",
        clause="contract/claims-its-own",
    ),
    Fault(
        planted="ClaimsAProblemInWords",
        does='`problem="bad"`',
        act=load,
        error=BROKEN,
        hook="claim_model",
        words="problem is 'bad', not one of mlxengine's errors or None",
        happens="its claim does not count",
        clause="contract/claims-its-own",
    ),
    Fault(
        planted="HonoursItsOwn",
        does="`honours` names a feature of its own",
        act=lambda scene: scene.open().load(scene.mine).plugin,
        words="count",
        happens="nothing",
        clause="contract/honours-others-by-name",
    ),
    Fault(
        planted="EstimatesLessThanNothing",
        does="an estimate below zero",
        act=load,
        error=BROKEN,
        hook="estimate",
        words="weights is -1073741824, not bytes from 0",
        happens="the load fails, and nothing is booked",
        clause="contract/estimate-is-sound",
    ),
    Fault(
        planted="EstimateRaises",
        does="an estimate that raises",
        act=load,
        error=CRASHED,
        hook="estimate",
        words="AttributeError",
        happens="the load fails, and nothing is booked",
        clause="contract/estimate-is-sound",
    ),
    # loads
    Fault(
        planted="ExitsInLoad",
        does="`sys.exit` in `load_model`",
        act=load,
        error=CRASHED,
        hook="load_model",
        words="SystemExit: no device",
        happens="the load fails",
        clause="behaviour/claimed-files-suffice",
    ),
    Fault(
        planted="LoadsNothing",
        does="`load_model` that returns `None`",
        act=load,
        error=BROKEN,
        hook="load_model",
        words="returned NoneType, not a Loaded",
        happens="the load fails",
        clause="behaviour/claimed-files-suffice",
    ),
    Fault(
        planted="TellsNothing",
        does="`info=None`",
        act=load,
        error=BROKEN,
        hook="load_model",
        words="info is None, not a mapping",
        happens="the load fails",
        clause="behaviour/claimed-files-suffice",
    ),
    Fault(
        planted="WarmsInOneSlice",
        does="weights that are warmed in one long slice",
        act=lambda scene: waits_in(scene, lambda engine: engine.load(scene.mine)),
        words="running count",
        happens="others wait for it; `status()` names the plugin meanwhile",
        clause="behaviour/warm-slices-are-short",
        limits={"step_seconds": 0.2},
    ),
    Fault(
        planted="WarmsForEver",
        does="a `warm` that never ends",
        act=never_loaded,
        error=errors.CancelledError,
        happens="others are served meanwhile, but not loaded; giving up the load, or closing, ends it",
        clause="behaviour/claimed-files-suffice",
        limits=SHORT,
    ),
    Fault(
        planted="StateOfNone",
        does="`state()` that gives `None`",
        act=report,
        words="state of 'count' returned NoneType, not a ModelState",
        happens="it counts as nothing, and `memory()` and `health()` say so",
        clause="behaviour/state-is-told",
    ),
    Fault(
        planted="NeverLetsGo",
        does="a `trim` that lets go of nothing",
        act=evicted,
        words="count",
        happens="the whole model is evicted where others need room",
        clause="behaviour/state-is-told",
    ),
    Fault(
        planted="SetUpRaises",
        does="a `setup` that raises",
        act=after_an_eviction,
        error=CRASHED,
        hook="setup",
        words="ZeroDivisionError",
        happens="requests are refused once the model was evicted: what was set up is not known",
        why_not="it sets nothing up",
    ),
    Fault(
        planted="CloseRaises",
        does="a `close` that raises",
        act=freed,
        words="failed in close: ValueError: closed twice",
        happens="the model is let go of, and a warning is logged",
        clause="behaviour/close-frees-memory",
    ),
    Fault(
        planted="LeavesAThread",
        does="a thread of its own that goes on after `close`",
        act=lambda scene: scene.open().load(scene.mine).close() or "closed",
        words="closed",
        happens="it is not waited for",
        clause="behaviour/close-frees-memory",
    ),
    # requests
    Fault(
        planted="PanicsInAStep",
        does="a step that raises what is no `Exception`",
        act=ask,
        error=CRASHED,
        hook="generate",
        words="Panic: index out of bounds",
        happens="that request ends",
        clause="behaviour/requests-end",
    ),
    Fault(
        planted="RaisesKeyErrors",
        does="a foreign exception for what cannot be served",
        act=lambda scene: caught(lambda: scene.open().load(scene.mine).run(CountRequest(upto=9))),
        error=CRASHED,
        hook="generate",
        words="KeyError: 9",
        happens="that request ends",
        clause="behaviour/errors-are-typed",
    ),
    Fault(
        planted="BlocksInAStep",
        does="a step that takes long",
        act=lambda scene: waits_in(scene, lambda engine: engine.load(scene.mine).run(ASK)),
        words="running count",
        happens="others wait for it; `status()` names the plugin meanwhile",
        clause="behaviour/steps-are-short",
        limits={"step_seconds": 0.2},
    ),
    Fault(
        planted="CountsForEver",
        does="a request that says something for ever",
        act=given_up,
        error=errors.CancelledError,
        happens="others are served meanwhile, and a cancel ends it",
        clause="behaviour/requests-end",
        limits=SHORT,
    ),
    Fault(
        planted="IsSilentForEver",
        does="a request that never ends and says nothing",
        act=given_up,
        error=errors.CancelledError,
        happens="others are served meanwhile, and a cancel ends it",
        clause="behaviour/requests-end",
        limits=SHORT,
    ),
    Fault(
        planted="NeverReturns",
        does="a step that never returns",
        act=never_closed,
        error=BROKEN,
        hook="generate",
        words="generate of 'count' has not returned for",
        happens="others wait; `close()` and leaving the `with` block come back after `close_timeout`",
        clause="behaviour/requests-end",
        limits=SHORT,
    ),
    Fault(
        planted="YieldsText",
        does="yields what is no event",
        act=ask,
        error=BROKEN,
        hook="generate",
        words="yielded str, not an Event",
        happens="that request ends",
        clause="behaviour/yields-only-events",
    ),
    Fault(
        planted="NeverFinishes",
        does="ends without a `Finished`",
        act=ask,
        error=BROKEN,
        hook="generate",
        words="ended without a Finished event",
        happens="that request ends",
        clause="behaviour/one-finished-and-last",
    ),
    Fault(
        planted="FinishesTwice",
        does="goes on after `Finished`",
        act=answered,
        words="TextDelta TextDelta TextDelta",
        happens="what comes after it is not asked for",
        clause="behaviour/one-finished-and-last",
    ),
    Fault(
        planted="HoldsLazyArrays",
        does="events that hold lazy arrays",
        act=answered,
        words="Lazy Lazy Lazy",
        happens="they reach the caller, on whose thread they may not be evaluated",
        clause="behaviour/events-hold-host-values",
    ),
    Fault(
        planted="SaysTooMuchAtOnce",
        does="huge events",
        act=read_slowly,
        words="2 of 3 were made",
        happens="the request waits for its reader once 16 MiB wait",
        clause="behaviour/events-are-small",
    ),
    Fault(
        planted="IgnoresClose",
        does="swallows `GeneratorExit`",
        act=cancelled,
        words="failed in generate: RuntimeError: generator ignored GeneratorExit",
        happens="the request is over all the same, and a warning is logged",
        clause="behaviour/cancel-within-a-step",
    ),
)
TABLE = (
    "| what its author did | what comes of it | the kit's clause that finds it, or why none does |",
    "|-|-|-|",
    *(fault.row for fault in FAULTS),
)
IDS = [fault.does for fault in FAULTS]


@pytest.fixture
def scene(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Scene]:
    made = Scene(request.param, tmp_path, monkeypatch, caplog, capsys)
    yield made
    if made.engine is not None:
        made.engine.close()


@pytest.mark.parametrize("scene", FAULTS, ids=IDS, indirect=True)
def test_a_careless_plugin_is_named_and_disturbs_nobody(scene: Scene) -> None:
    fault = scene.fault
    told = fault.act(scene)
    assert fault.words in str(told)
    if fault.error is None:
        assert isinstance(told, str)
    else:
        assert type(told) is fault.error
        if isinstance(told, errors.PluginError):
            assert (told.plugin, told.hook) == ("count", fault.hook or told.hook)
    assert scene.neighbour_works()


@pytest.mark.parametrize("fault", [item for item in FAULTS if item.clause], ids=lambda item: item.does)
def test_the_kit_finds_what_a_careless_author_did(
    fault: Fault, specimen: Specimen, plant: Callable[[str], str]
) -> None:
    value = plant(fault.planted)
    found = attrs.evolve(specimen, **fault.limits)
    [outcome] = check_plugin("count", found, value=value, only=[str(fault.clause)])
    assert outcome.failure is not None
    assert outcome.clause.why in outcome.failure


def test_every_fault_is_found_by_the_kit_or_says_why_not() -> None:
    assert len(FAULTS) >= 25
    assert [fault.does for fault in FAULTS if bool(fault.clause) == bool(fault.why_not)] == []
