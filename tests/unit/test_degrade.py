"""Where memory is short: models that are loaded with less, requests that are tried again, and who is told."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlxengine import (
    Claim,
    Feature,
    Finished,
    Fit,
    InferenceEngine,
    Kind,
    LLMEngineFeatures,
    Loaded,
    MemoryEstimate,
    ModelConfiguration,
    ModelState,
    Request,
    Stage,
    TextDelta,
    errors,
    hookimpl,
    openmetrics,
)
from mlxengine._memory import caretaker
from mlxengine.errors import out_of_memory

MB = 10**6
BITS: Feature[int | None] = Feature(
    name="talk.kv_bits",
    default=None,
    summary="",
    stage=Stage.EXPERIMENTAL,
    choices=(None, 8, 4),
    provides=LLMEngineFeatures.KV_QUANTIZATION,
)


@pytest.fixture(autouse=True)
def reservations(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXENGINE_RESERVATIONS", str(tmp_path / "reservations.json"))


class Talk:
    """A kind whose caches take 100 KB a token; a model's config says how it behaves."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, int | None, int | None]] = []
        self.caches: dict[str, int] = {}
        self.trims: list[tuple[str, int]] = []
        self.calls: list[str] = []
        self.fail: list[BaseException] = []
        self.entered = threading.Event()

    @hookimpl
    def list_features(self):
        return (BITS,)

    @hookimpl
    def list_kinds(self):
        workload, degrade = "mlxengine.text.workload:TextWorkload", "mlxengine.text.degrade:degrade"
        return [Kind(name="talk", workload=workload, degrade=degrade)]

    @hookimpl
    def claim_model(self, card):
        def estimate(workload):
            share = 1.0 if workload.kv_bits is None else workload.kv_bits / 16
            tokens = workload.context_length or 4096
            return MemoryEstimate(weights=card.config["megabytes"] * MB, cache=int(tokens * 100_000 * share))

        return Claim(kind="talk", fit=Fit.NATIVE, uses_mlx=False, estimate=estimate)

    @hookimpl
    def load_model(self, card, context):
        name, bits = context.path.name, context.features.get(BITS)
        self.loads.append((name, context.configuration.context_length, bits))
        if bits and card.config.get("own_caches"):
            raise errors.FeatureUnavailableError("This model has caches of its own.")

        def trim(most):
            self.trims.append((name, most))
            self.caches[name] = min(self.caches.get(name, 0), most)

        return Loaded(
            model=card.config,
            state=lambda: ModelState(caches=self.caches.get(name, 0)),
            trim=trim,
            info={"name": name},
        )

    @hookimpl
    def generate(self, model, request, context):
        self.calls.append(model["name"])
        if model.get("speaks_first"):
            yield TextDelta(text="a")
        if self.fail:
            self.entered.set()
            raise self.fail.pop(0)
        yield TextDelta(text="b")
        yield Finished()


@pytest.fixture
def plugin():
    return Talk()


@pytest.fixture
def make(tmp_path):
    def write(name: str, megabytes: int = 100, **behaviour: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"name": name, "megabytes": megabytes, **behaviour}))
        return folder

    return write


def engine_of(plugin: Talk, budget: str, **more: Any) -> InferenceEngine:
    return InferenceEngine(plugins=[("talk", plugin)], memory_budget=budget, **more)


def text(handle: Any) -> str:
    return "".join(item.text for item in handle.run(Request()).events if isinstance(item, TextDelta))


@pytest.mark.parametrize(
    ("budget", "context", "bits"),
    [
        ("600MB", None, None),  # 100 and 409.6
        ("350MB", 2048, None),  # 100 and 204.8
        ("250MB", 2048, 8),  # 100 and 102.4
        ("160MB", 1024, 8),
        ("130MB", 512, 8),
    ],
)
def test_a_model_is_loaded_with_as_much_as_fits(plugin, make, budget, context, bits):
    with engine_of(plugin, budget) as engine:
        model = engine.load(make("a"))
        assert plugin.loads == [("a", context, bits)]
        assert engine.memory().reserved <= engine.memory().budget
        assert text(model) == "b"
        assert engine.health().ok is (context is None)


def test_what_does_not_fit_at_all_is_refused_and_what_fits_nowhere_is_not_fetched(plugin, make):
    refused = pytest.raises(errors.InsufficientMemoryError, match="whole budget")
    with engine_of(plugin, "120MB") as engine, refused:
        engine.load(make("a"))
    assert plugin.loads == []


@pytest.mark.feature("core.degrade")
def test_without_the_flag_nothing_is_made_smaller(plugin, make):
    refused = pytest.raises(errors.InsufficientMemoryError)
    with engine_of(plugin, "350MB", features={"core.degrade": False}) as engine, refused:
        engine.load(make("a"))
    assert plugin.loads == []


def test_what_the_caller_fixed_stays_as_it_is(plugin, make):
    with engine_of(plugin, "250MB") as engine:
        engine.load(make("a"), features={"talk.kv_bits": None}).close()
        bounded = ModelConfiguration(id=str(make("b")), context_length=2048)
        with pytest.raises(errors.InsufficientMemoryError):
            engine.load(bounded, features={"talk.kv_bits": None})
        engine.load(bounded)
    assert plugin.loads == [("a", 1024, None), ("b", 2048, 8)]


def test_a_model_whose_caches_cannot_be_packed_gets_a_shorter_context_instead(plugin, make):
    with engine_of(plugin, "250MB") as engine:
        engine.load(make("a", own_caches=True))
        assert plugin.loads == [("a", 2048, 8), ("a", 1024, None)]
        assert "packed" not in engine.health().reason


def test_a_load_with_less_says_so_everywhere(plugin, make, caplog):
    with engine_of(plugin, "250MB") as engine, caplog.at_level(logging.WARNING, "mlxengine"):
        model = engine.load(make("a"))
        less = "2048 tokens of context and a key-value cache of 8 bits"
        reason = f"memory was short when it was loaded: it has {less}"
        assert model.info["degraded"] == reason
        assert reason in engine.health().reason
        assert engine.health().state == "degraded"
        assert engine.memory().models[0].degraded == reason
        assert reason in caplog.text
        told = model.explain(BITS)
        assert (told.value, told.source) == (8, "memory")
        line = next(line for line in openmetrics(engine).splitlines() if "model_degraded{" in line)
        assert line.endswith(" 1.0")


def test_a_model_gets_all_of_it_when_it_is_loaded_again_and_there_is_room(plugin, make):
    with engine_of(plugin, "900MB") as engine:
        big = engine.load(make("big", 300))
        with big.keep("a while"):
            small = engine.load(make("small"))
        assert plugin.loads == [("big", None, None), ("small", 1024, 8)]
        assert engine._pool.ledger.evict(small._live, "for the test")
        big.close()
        assert text(small) == "b"
        assert plugin.loads[-1] == ("small", None, None)
        assert small.info.get("degraded") is None
        assert engine.health().ok


def test_caches_go_before_an_idle_model_does_and_count_meanwhile(plugin, make):
    with engine_of(plugin, "1100MB") as engine:
        first = engine.load(make("a"))
        text(first)
        plugin.caches["a"] = 300 * MB
        report = engine.memory()
        assert report.reserved == 100 * MB + 409_600_000 + 300 * MB
        assert report.models[0].caches == report.caches == 300 * MB
        engine.load(make("b"))
        assert engine.memory().evictions == ()
        assert plugin.caches["a"] == 1100 * MB - 2 * 509_600_000
        assert engine.memory().reserved == 1100 * MB


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("[malloc] Unable to allocate 17179869184 bytes."), True),
        (
            RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum"),
            True,
        ),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:…)"), True),
        (RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"), True),
        (RuntimeError("[matmul] Last dimension of first input with shape (2,3) must match"), False),
        (errors.InsufficientMemoryError("The budget is spent."), False),
        (errors.CancelledError("out of memory"), False),
        (None, False),
    ],
)
def test_what_a_library_says_about_memory_is_recognised(error, memory):
    assert out_of_memory(error) is memory
    wrapped = errors.InsufficientMemoryError("It ran out.")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped) is memory


def test_a_machine_that_is_short_gets_caches_back_before_a_model(plugin, make, monkeypatch):
    with engine_of(plugin, "3GB") as engine:
        first, second = engine.load(make("a")), engine.load(make("b"))
        text(first), text(second)
        caretaker = engine._pool._caretaker
        caretaker._ease()  # while nothing is short
        plugin.caches["b"] = 5 * MB
        monkeypatch.setattr(caretaker, "_shortage", lambda: "it is short for a test")
        caretaker._ease()
        assert (plugin.trims, engine.memory().evictions) == ([("b", 0)], ())
        caretaker._ease()
        assert [item.id for item in engine.memory().evictions] == [first.id]


def test_when_the_machine_runs_short_caches_leave_then_idle_models_and_what_is_kept_stays(
    plugin, make, monkeypatch
):
    monkeypatch.setattr(caretaker, "_LOOK", 0.01)
    short = []
    with engine_of(plugin, "3GB") as engine:
        monkeypatch.setattr(
            engine._pool._caretaker, "_shortage", lambda: "it is short for a test" if short else None
        )
        first, second, kept = (engine.load(make(name)) for name in ("a", "b", "kept"))
        text(first), text(second)
        kept.pin()
        plugin.caches["a"] = 5 * MB
        short.append(True)
        deadline = time.monotonic() + 20
        while len(engine.memory().evictions) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        gone = engine.memory().evictions
        assert [item.id for item in gone] == [first.id, second.id]
        assert {item.reason for item in gone} == {"because it is short for a test"}
        assert plugin.trims == [("a", 0)]
        assert not next(item for item in engine.memory().models if item.id == kept.id).evicted
        short.clear()
        assert text(first) == "b"


def test_caches_that_would_not_make_enough_room_are_left_alone(plugin, make):
    with engine_of(plugin, "600MB", features={"core.degrade": False}) as engine:
        engine.load(make("a")).pin()
        plugin.caches["a"] = 50 * MB
        with pytest.raises(errors.InsufficientMemoryError):
            engine.load(make("b"))
        assert plugin.trims == []


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[malloc] Unable to allocate 9 bytes.")])
def test_a_request_that_runs_out_of_memory_is_tried_again_when_others_have_made_room(plugin, make, error):
    with engine_of(plugin, "2GB") as engine:
        idle, model = engine.load(make("idle")), engine.load(make("a"))
        text(idle)
        plugin.caches.update(idle=5 * MB, a=7 * MB)
        plugin.fail.append(error)
        assert text(model) == "b"
        assert plugin.calls == ["idle", "a", "a"]
        assert plugin.caches == {"idle": 0, "a": 0}
        assert [item.reason for item in engine.memory().evictions] == [
            f"because memory ran out under {model.id}"
        ]
        assert text(idle) == "b"


def test_it_is_tried_again_once_and_not_without_the_flag(plugin, make):
    with engine_of(plugin, "2GB") as engine:
        model = engine.load(make("a"))
        plugin.fail += [MemoryError(), MemoryError()]
        with pytest.raises(errors.InsufficientMemoryError):
            text(model)
        assert plugin.calls == ["a", "a"]
        off = engine.load(make("b"), features={"core.degrade": False})
        plugin.fail.append(MemoryError())
        with pytest.raises(errors.InsufficientMemoryError):
            text(off)
        assert plugin.calls == ["a", "a", "b"]
        assert engine.health().state == "unhealthy"


def test_a_request_that_has_spoken_is_not_tried_again(plugin, make):
    with engine_of(plugin, "2GB") as engine:
        model = engine.load(make("a", speaks_first=True))
        plugin.fail.append(MemoryError())
        with pytest.raises(errors.InsufficientMemoryError):
            list(model.stream(Request()))
        assert plugin.calls == ["a"]


def test_a_request_that_is_cancelled_while_room_is_made_does_not_run_again(plugin, make, monkeypatch):
    with engine_of(plugin, "2GB") as engine:
        model = engine.load(make("a"))
        relieve, go = engine._pool.ledger.relieve, threading.Event()
        asked = threading.Event()

        def slowly(live):
            asked.set()
            assert go.wait(10)
            return relieve(live)

        monkeypatch.setattr(engine._pool.ledger, "relieve", slowly)
        plugin.fail.append(MemoryError())
        stream = model.stream(Request())
        assert asked.wait(10)
        stream.cancel()
        go.set()
        with pytest.raises(errors.CancelledError):
            list(stream)
        assert plugin.calls == ["a"]
        assert model._live.running == 0
