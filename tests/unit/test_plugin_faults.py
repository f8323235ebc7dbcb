"""What a plugin's code raises or returns, in any hook, is its own typed error and nobody else's trouble."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time

import pytest
from mlxengine import (
    Claim,
    Command,
    Feature,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    Request,
    TextDelta,
    diagnosis,
    errors,
    hookimpl,
)
from mlxengine._engine.host import Host
from mlxengine.contract.device import Device
from mlxengine.contract.hookspecs import MemoryEstimate, ModelState

GiB = 2**30


class Panic(BaseException):
    """What a native library's binding raises when the library gave up."""


FAULTS = [
    SystemExit(0),
    SystemExit("text"),
    KeyboardInterrupt(),
    GeneratorExit(),
    Panic("index"),
    ValueError("x"),
]
NAMES = [type(fault).__name__ + str(fault) for fault in FAULTS]


class Plugin:
    """Serves folders with {"<name>": true}; where ``wrong`` names a hook, it does that there."""

    def __init__(self, name="good", **wrong):
        self.name = name
        self.wrong = wrong
        self.closed = 0

    def _maybe(self, what, value):
        if what not in self.wrong:
            return value
        wrong = self.wrong[what]
        if isinstance(wrong, BaseException):
            raise wrong
        return wrong

    @hookimpl
    def list_features(self):
        return self._maybe(
            "list_features",
            [
                Feature(
                    name=f"{self.name}.x", default=True, summary="x", probe=lambda: self._maybe("probe", None)
                )
            ],
        )

    @hookimpl
    def list_models(self):
        return self._maybe("list_models", [])

    @hookimpl
    def list_commands(self):
        return self._maybe("list_commands", [Command(name=self.name, summary="s", target="m:f")])

    @hookimpl
    def self_test(self, context):
        return self._maybe("self_test", [])

    @hookimpl
    def claim_model(self, card):
        claim = self._maybe("claim_model", None)
        if claim is not None or self.name not in card.config:
            return claim
        values = {
            "kind": self.name,
            "fit": Fit.NATIVE,
            "uses_mlx": False,
            "estimate": lambda workload: self._maybe("estimate", MemoryEstimate(weights=GiB)),
        }
        return Claim(**{**values, **self.wrong.get("claim", {})})

    @hookimpl
    def load_model(self, card, context):
        def warm():
            yield self._maybe("warm", None)

        def close():
            self.closed += 1
            self._maybe("close", None)

        values = {
            "model": self,
            "warm": warm(),
            "close": close,
            "state": lambda: self._maybe("state", ModelState()),
            "trim": lambda most: self._maybe("trim", None),
        }
        return self._maybe("load_model", Loaded(**{**values, **self.wrong.get("loaded", {})}))

    @hookimpl
    def generate(self, model, request, context):
        return self._maybe("generate", self._speak())

    def _speak(self):
        try:
            yield TextDelta(text="a")
            self._maybe("step", None)
            yield Finished()
        finally:
            self._maybe("end", None)


@pytest.fixture
def make(tmp_path):
    def made(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({name: True}))
        return folder

    return made


def engine_of(*plugins, **options):
    return InferenceEngine(plugins=[(plugin.name, plugin) for plugin in plugins], **options)


def works(engine, make):
    """Another plugin's model loads and answers."""
    with engine.load(make("good")) as handle:
        return [event.text for event in handle.run(Request()).events if isinstance(event, TextDelta)] == ["a"]


def named(error, hook):
    assert isinstance(error, errors.PluginCrashedError | errors.PluginContractError)
    assert (error.plugin, error.hook) == ("bad", hook)
    return error


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
@pytest.mark.parametrize(
    ("where", "hook"),
    [
        ("claim_model", "claim_model"),
        ("estimate", "estimate"),
        ("load_model", "load_model"),
        ("warm", "load_model"),
    ],
)
def test_what_is_raised_while_a_model_loads_is_the_plugins_error_and_others_load(make, where, hook, fault):
    with engine_of(Plugin("bad", **{where: fault}), Plugin()) as engine:
        with pytest.raises(errors.PluginCrashedError) as caught:
            engine.load(make("bad"))
        assert named(caught.value, hook).__cause__ is fault
        assert works(engine, make)


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
@pytest.mark.parametrize("where", ["claim_model", "estimate"])
def test_what_a_claim_raises_on_the_callers_own_thread_is_typed_too(make, where, fault):
    with engine_of(Plugin("bad", **{where: fault})) as engine:
        with pytest.raises(errors.PluginCrashedError) as caught:
            engine.fit(make("bad"))
        named(caught.value, where)


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
@pytest.mark.parametrize("where", ["generate", "step"])
def test_what_is_raised_in_a_request_ends_that_request(make, where, fault):
    with engine_of(Plugin("bad", **{where: fault}), Plugin()) as engine, engine.load(make("bad")) as handle:
        with pytest.raises(errors.PluginCrashedError) as caught:
            handle.run(Request())
        named(caught.value, "generate")
        assert works(engine, make)


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_what_an_iterators_close_raises_disturbs_nobody(make, fault):
    with engine_of(Plugin("bad", end=fault), Plugin()) as engine, engine.load(make("bad")) as handle:
        stream = handle.stream(Request())
        next(stream)
        stream.close()
        assert works(engine, make)
        assert engine.status().died is None


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_what_close_raises_at_idle_eviction_does_not_end_the_caretaker(make, fault):
    bad = Plugin("bad", close=fault)
    with engine_of(bad, idle_ttl=0.05) as engine:
        handle = engine.load(make("bad"))
        for times in (1, 2):
            deadline = time.monotonic() + 5
            while bad.closed < times and time.monotonic() < deadline:
                time.sleep(0.01)
            assert bad.closed == times
            handle.run(Request())


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_what_list_features_raises_sets_the_plugin_aside(make, fault):
    with engine_of(Plugin("bad", list_features=fault), Plugin()) as engine:
        named(engine.plugins[0].error, "list_features")
        assert works(engine, make)


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_lists_and_probes_that_raise_are_left_out(fault, tmp_path):
    bad = Plugin("bad", list_models=fault, list_commands=fault, probe=fault, self_test=fault)
    host = Host([("bad", bad), ("good", Plugin())])
    assert host.models() == {"bad": [], "good": []}
    assert [item.name for item in host.commands()["good"]] == ["good"]
    assert host.commands()["bad"] == []
    assert type(fault).__name__ in host.features.why_not("bad.x")
    [check] = diagnosis._self_tests(host, Device.detect())
    assert check.status == "failed"
    assert "bad" in check.detail


def test_lists_that_are_generators_are_read_inside_the_same_wall():
    def listing():
        raise Panic("late")
        yield

    bad = Plugin("bad", list_features=listing(), list_models=listing(), list_commands=listing())
    host = Host([("bad", bad)])
    named(host.records[0].error, "list_features")


CTRL_C = """
import sys, time
sys.path.insert(0, {tests!r})
from tests.unit.test_plugin_faults import Plugin, engine_of
class Slow(Plugin):
    def _maybe(self, what, value):
        if what == {where!r}:
            print("ready", flush=True)
            for _ in range(600):
                time.sleep(0.1)
        return super()._maybe(what, value)
try:
    with engine_of(Slow("bad")) as engine:
        engine.fit({folder!r})
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("where", ["claim_model", "estimate", "list_features"])
def test_a_real_ctrl_c_interrupts_a_hook(make, where, request):
    code = CTRL_C.format(tests=str(request.config.rootpath), where=where, folder=str(make("bad")))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=request.config.rootpath
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "interrupted\n"


@pytest.mark.parametrize(
    "claim",
    [
        {"fit": 3},
        {"kind": ""},
        {"problem": ValueError("not one of ours")},
        {"estimate": 7},
        {"uses_mlx": None},
        {"reason": None},
        {"capabilities": [5]},
        {"files": [None]},
    ],
    ids=str,
)
def test_a_claim_with_a_wrong_field_does_not_count_and_is_named(make, claim):
    bad = Plugin("bad", claim=claim)
    with engine_of(bad, Plugin()) as engine:
        with pytest.raises(errors.PluginError) as caught:
            engine.load(make("bad"))
        named(caught.value, "claim_model")
        assert next(iter(claim)) in str(caught.value) or caught.value.__cause__ is not None
        assert works(engine, make)


@pytest.mark.parametrize(
    "estimate",
    [
        None,
        5,
        MemoryEstimate(weights=1.5),
        MemoryEstimate(weights=1, cache=None),
    ],
    ids=str,
)
def test_an_estimate_that_is_none_is_an_error_of_the_plugin_and_nothing_is_booked(make, estimate):
    with engine_of(Plugin("bad", estimate=estimate), Plugin(), memory_budget="8GB") as engine:
        with pytest.raises(errors.PluginContractError) as caught:
            engine.load(make("bad"))
        named(caught.value, "estimate")
        assert engine.memory().reserved == 0
        assert works(engine, make)


@pytest.mark.parametrize("loaded", [{"warm": 5}, {"close": 5}, {"state": None}, {"trim": "x"}], ids=str)
def test_a_loaded_value_with_a_wrong_field_fails_the_load(make, loaded):
    with engine_of(Plugin("bad", loaded=loaded), Plugin(), memory_budget="8GB") as engine:
        with pytest.raises(errors.PluginContractError, match=next(iter(loaded))) as caught:
            engine.load(make("bad"))
        named(caught.value, "load_model")
        assert engine.memory().reserved == 0
        assert works(engine, make)


@pytest.mark.parametrize("state", [5, ModelState(caches=-5), ModelState(requests="x"), *FAULTS], ids=repr)
def test_a_state_that_cannot_be_told_is_said_and_stops_no_other_load(make, state):
    before = threading.active_count()
    with engine_of(Plugin("bad", state=state), Plugin(), memory_budget="4GB") as engine:
        engine.load(make("bad"))
        [told] = engine.memory().models
        assert "'bad'" in told.degraded
        assert "state" in told.degraded
        assert works(engine, make)
        assert engine.memory().reserved == GiB
    assert threading.active_count() <= before


def test_a_trim_that_raises_does_not_stop_the_load_that_wanted_room(make, caplog):
    bad = Plugin("bad", trim=SystemExit(3), state=ModelState(caches=GiB))
    with engine_of(bad, Plugin(), memory_budget=int(2.5 * GiB)) as engine:
        engine.load(make("bad"))
        with caplog.at_level(logging.WARNING):
            assert works(engine, make)  # the idle model went, since its caches would not
        assert "trim" in caplog.text
