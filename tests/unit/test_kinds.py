"""Kinds of model: a stranger's is a whole citizen, and core names none outside their own rooms."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlxengine
import pytest
from attrs import evolve, frozen
from mlxengine import (
    Answer,
    Asking,
    AsyncInferenceEngine,
    AsyncModelHandle,
    Claim,
    Event,
    Finished,
    Fit,
    InferenceEngine,
    Kind,
    Lesser,
    Loaded,
    Measuring,
    MemoryEstimate,
    Mock,
    ModelConfiguration,
    ModelHandle,
    Option,
    Request,
    TextDelta,
    TextHandle,
    TextRequest,
    TextWorkload,
    TokenUsage,
    ToolCall,
    Usage,
    Workload,
    hookimpl,
)
from mlxengine.cli import main
from mlxengine.errors import (
    BackendUnavailableError,
    InvalidParameterError,
    ModelNotFoundError,
    NoPluginForModelError,
    PluginContractError,
)

CORE = Path(mlxengine.__file__).parent
ROOMS = ("text", "vectors", "pictures", "integrations")  # a framework's vectors are one kind's business
NAMES = re.compile(r"(?<![\w-])(llm|vlm|embed|diffusion)(?!\w)")


def test_no_line_of_core_outside_the_kinds_own_rooms_names_a_kind() -> None:
    found = [
        f"{path.relative_to(CORE)}:{number}: {line.strip()}"
        for path in sorted(CORE.rglob("*.py"))
        if path.relative_to(CORE).parts[0] not in ROOMS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if NAMES.search(line)
    ]
    assert found == []


def test_the_search_for_names_finds_them() -> None:
    lines = ('kind == "llm"', "mlxengine[vlm]", "`embed`", "llm.kv_bits", "of (llm, vlm)")
    assert all(NAMES.search(line) for line in lines)
    assert not any(NAMES.search(line) for line in ("mlx-vlm", "LLMEngine", "embeddings", "mlxengine_llm"))


# -- a stranger's kind -------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Series(Workload):
    series: int = 1


@frozen(kw_only=True)
class Steps(Usage):
    steps: int = 0


@frozen(kw_only=True)
class CountRequest(Request):
    upto: int = 3


@frozen(kw_only=True)
class Number(Event):
    value: int


class CountHandle(ModelHandle):
    def count(self, upto: int) -> list[int]:
        return [
            event.value for event in self.run(CountRequest(upto=upto)).events if isinstance(event, Number)
        ]


class AsyncCountHandle(AsyncModelHandle):
    async def count(self, upto: int) -> list[int]:
        events = (await self.run(CountRequest(upto=upto))).events
        return [event.value for event in events if isinstance(event, Number)]


class Run(Asking):
    options = (Option(flag="--size", type=int, default=3), Option(flag="--twice", repeated=True, default=()))

    def request(self, words: Any, options: Any) -> Request:
        if words == ["no"]:
            raise InvalidParameterError("It does not count to no.")
        return CountRequest(upto=options["size"] + len(options["twice"]))

    def show(self, event: Event) -> str:
        return f"{event.value} " if isinstance(event, Number) else ""

    def answer(self, events: Any, options: Any) -> Answer:
        del options
        return Answer(value={"count": len(events) - 1}, text="done", stats="quick")


class Bench(Measuring):
    options = (Option(flag="--size", type=int, default=3),)

    def measure(self, handle: Any, options: Any) -> dict[str, float]:
        return {"numbers": float(len(handle.count(options["size"])))}


class CountMock(Mock):
    def generate(self, request: Request) -> Iterator[Event] | None:
        return (
            iter([Number(value=7, mock=True), Finished(mock=True)])
            if isinstance(request, CountRequest)
            else None
        )


def less(wanted: Any) -> Iterator[Lesser]:
    yield Lesser(words="", workload=evolve(wanted.workload, series=8))
    yield Lesser(words="two series at once", workload=evolve(wanted.workload, series=2))


HERE = __name__
COUNT = Kind(
    name="count",
    handle=f"{HERE}:CountHandle",
    async_handle=f"{HERE}:AsyncCountHandle",
    workload=f"{HERE}:Series",
    usage=f"{HERE}:Steps",
    run=f"{HERE}:RUN",
    bench=f"{HERE}:BENCH",
    mock=f"{HERE}:CountMock",
    degrade=f"{HERE}:less",
    pipelines=["counting"],
    install="mlxengine-count",
)
RUN, BENCH = Run(), Bench()


class Plugin:
    """Serves the folders whose config.json names it, as the kind that they say."""

    def __init__(self, name: str = "count", kinds: tuple[Kind, ...] = (COUNT,)) -> None:
        self.name, self.kinds, self.loads = name, kinds, 0

    @hookimpl
    def list_kinds(self):
        return self.kinds

    @hookimpl
    def claim_model(self, card):
        def estimate(workload):
            return MemoryEstimate(weights=100, cache=1000 * getattr(workload, "series", 0))

        if card.architecture != self.name:
            return None
        kind = card.config.get("kind", "count")
        return Claim(kind=kind, fit=Fit.NATIVE, uses_mlx=False, estimate=estimate)

    @hookimpl
    def load_model(self, card, context):
        del card, context
        self.loads += 1
        return Loaded(model=object())

    @hookimpl
    def generate(self, model, request, context):
        del model, context
        if isinstance(request, CountRequest):
            numbers = [Number(value=value) for value in range(request.upto)]
            return iter([*numbers, Finished(usage=Steps(steps=request.upto))])
        return self.echo(request) if isinstance(request, TextRequest) else None

    def echo(self, request):
        last = request.messages[-1]
        said = last.text or last.parts[0].content
        if request.tools and last.role == "user":
            yield ToolCall(id="1", name="clock", arguments={})
        else:
            yield TextDelta(text=f"echo {said}", token_ids=(1,))
        yield Finished(usage=TokenUsage(prompt_tokens=1, completion_tokens=1))


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "a", **config: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "count", **config}))
        return folder

    return write


@pytest.fixture
def engine() -> Iterator[InferenceEngine]:
    with InferenceEngine(plugins=[("count", Plugin())]) as found:
        yield found


def test_load_gives_the_handle_of_a_strangers_kind(engine: InferenceEngine, model) -> None:
    handle = engine.load(model())
    assert isinstance(handle, CountHandle)
    assert handle.count(3) == [0, 1, 2]
    assert engine.load_as(CountHandle, model("b")).count(1) == [0]
    assert engine.load_as(ModelHandle, model("c")).kind == "count"


async def _later(folder: Path) -> list[int]:
    async with AsyncInferenceEngine(plugins=[("count", Plugin())]) as engine:
        assert isinstance(await engine.load(folder), AsyncCountHandle)
        return await (await engine.load_as(AsyncCountHandle, folder)).count(2)


def test_so_it_does_for_asyncio(model) -> None:
    import asyncio

    assert asyncio.run(_later(model())) == [0, 1]


def test_a_model_of_a_kind_with_another_handle_is_refused_before_it_is_loaded(model) -> None:
    plugin = Plugin()
    with InferenceEngine(plugins=[("count", plugin)]) as engine:
        with pytest.raises(InvalidParameterError, match="kind 'count', which has no TextHandle"):
            engine.load_text(model())
        assert plugin.loads == 0


def test_a_kind_that_nobody_lists_has_the_plain_handle(model) -> None:
    with InferenceEngine(plugins=[("count", Plugin(kinds=()))]) as engine:
        assert type(engine.load(model())) is ModelHandle


@pytest.mark.parametrize("target", ["no_such_module:Handle", f"{HERE}:NoSuchHandle", "nonsense"])
def test_a_handle_that_is_not_there_is_a_typed_error_and_the_model_is_let_go(model, target: str) -> None:
    kind = evolve(COUNT, handle=target)
    with InferenceEngine(plugins=[("count", Plugin(kinds=(kind,)))]) as engine:
        with pytest.raises(PluginContractError, match=f"'count' names '{target}' as its handle"):
            engine.load(model())
        assert engine.models == ()


def test_two_plugins_that_list_one_kind_are_set_aside_both_named(model) -> None:
    plugins = [("first", Plugin()), ("second", Plugin("other")), ("third", Plugin("third", kinds=()))]
    with InferenceEngine(plugins=plugins) as engine:
        first, second, third = engine.plugins
        assert (first.plugin, second.plugin) == (plugins[0][1], plugins[1][1])
        for record in (first, second):
            assert record.error is not None
            assert "'first' and 'second'" in str(record.error)
            assert record.error.plugin == record.name
        assert third.error is None
        assert "count" not in engine.kinds
        with pytest.raises(NoPluginForModelError, match="Set aside: 'first', 'second'"):
            engine.load(model())


def test_one_that_comes_later_is_refused_and_the_first_serves_on(engine: InferenceEngine, model) -> None:
    with pytest.raises(PluginContractError, match="'count' and 'late'"):
        engine.register(Plugin("late"), "late")
    assert engine.load_as(CountHandle, model()).count(1) == [0]


def test_a_kind_of_cores_own_is_not_listed_again() -> None:
    with InferenceEngine(plugins=[("thief", Plugin(kinds=(Kind(name="llm"),)))]) as engine:
        assert "'thief' and 'core' (mlxengine)" in str(engine.plugins[0].error)
        assert engine.kinds["llm"].handle.endswith("TextHandle")


def test_what_is_no_sequence_of_kinds_sets_the_plugin_aside() -> None:
    class Wrong(Plugin):
        @hookimpl
        def list_kinds(self):
            return ["count"]

    with InferenceEngine(plugins=[("wrong", Wrong())]) as engine:
        assert isinstance(engine.plugins[0].error, PluginContractError)


# -- memory and usage in the kind's own terms --------------------------------------------------------------


def test_a_workload_is_of_the_models_kind(engine: InferenceEngine, model) -> None:
    assert engine.fit(model("a"), Series(series=5)).needed == 5100
    assert engine.fit(model("b")).needed == 1100
    with pytest.raises(InvalidParameterError, match="is a Series, found TextWorkload"):
        engine.fit(model("c"), TextWorkload())


def test_recommend_asks_the_plugin_about_a_model_that_is_here(engine: InferenceEngine, model) -> None:
    here = str(model())
    device = evolve(engine.device, backend="metal", working_set=10**9)
    engine.registry.register(ModelConfiguration(id=here, kind="count", memory_bytes=5))
    found = engine.registry.recommend("count", device, reckon=engine.reckon)
    assert (found.model.id, found.needed_bytes) == (here, engine.fit(here).needed)
    engine.registry.register(ModelConfiguration(id="not/here", kind="count", memory_bytes=10**10))
    with pytest.raises(ModelNotFoundError, match="needs about"):
        engine.registry.recommend("count", evolve(device, working_set=1000), reckon=engine.reckon)


def test_less_is_what_the_kind_says(model) -> None:
    plugin = Plugin()
    with InferenceEngine(plugins=[("count", plugin)], memory_budget=3000) as engine:
        assert "two series at once" in engine.load(model()).info["degraded"]
    with InferenceEngine(plugins=[("count", plugin)], memory_budget=9000) as engine:
        assert "degraded" not in engine.load(model("b")).info


def test_usage_is_counted_in_the_kinds_units(engine: InferenceEngine, model) -> None:
    engine.load_as(CountHandle, model()).count(4)
    assert [dict(found.usage) for found in engine.metrics()] == [{"steps": 4}]


# -- the mock back end -------------------------------------------------------------------------------------


def test_the_mock_back_end_stands_in_for_a_kind_that_says_how() -> None:
    with InferenceEngine(backend="mock", plugins=[("count", Plugin())]) as engine:
        assert engine.load_as(CountHandle, "any/count").count(5) == [7]


def test_it_refuses_one_that_does_not() -> None:
    plugin = Plugin(kinds=(evolve(COUNT, mock=None),))
    with (
        InferenceEngine(backend="mock", plugins=[("count", plugin)]) as engine,
        pytest.raises(BackendUnavailableError, match="cannot stand in for models of kind 'count'"),
    ):
        engine.load("any/count")


# -- a second back end for a kind of core's ----------------------------------------------------------------


def clock() -> str:
    """What time it is."""
    return "noon"


def test_a_plugin_serves_a_kind_that_another_one_listed(model) -> None:
    with InferenceEngine(plugins=[("echo", Plugin(kinds=()))]) as engine:
        chat = engine.load_text(model(kind="llm"))
        assert isinstance(chat, TextHandle)
        assert chat.generate("hi").text == "echo hi"
        session = chat.session(tools=[clock], tool_rounds=1)
        assert session.respond("what time?").text == "echo noon"
        assert len(session.messages) == 4


# -- the command line --------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This module is an installed plugin beside the others."""
    info = tmp_path / "site" / "mlxengine_count-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlxengine-count\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mlxengine]\ncount = {HERE}:PLUGIN\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(info.parent)])
    monkeypatch.setenv("MLXENGINE_RESERVATIONS", str(tmp_path / "reservations.json"))


PLUGIN = Plugin()


@pytest.mark.usefixtures("installed")
def test_verbs_know_a_strangers_kind(model, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(model())

    def said(*words: str) -> str:
        assert main([*words]) == 0, capsys.readouterr()
        return capsys.readouterr().out

    assert said("run", "-m", folder, "x") == "0 1 2 \ndone\n"
    found = json.loads(
        said("run", "-m", folder, "x", "--size", "1", "--twice", "a", "--twice", "b", "--json")
    )
    assert found["count"] == 3
    figures = json.loads(said("bench", "-m", folder, "--size", "2", "--repeats", "1", "--json"))["figures"]
    assert figures["numbers"]["mean"] == 2
    assert json.loads(said("fit", folder, "--json"))["fit"]["needed"] == 1100
    assert "brings count" in said("doctor")
    assert "count" in said("search", "--help")
    assert "count" in said("recommend", "--help")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("no",), "InvalidParameterError"),
        (("x", "--size", "2x2"), "UsageError"),
        (("x", "--temperature", "1"), "UsageError"),
    ],
)
def test_what_cannot_be_asked_is_said_before_a_model_is_loaded(model, words, kind, capsys) -> None:
    before = PLUGIN.loads
    assert main(["run", "-m", str(model()), *words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == kind
    assert PLUGIN.loads == before


@pytest.mark.usefixtures("installed")
def test_one_cannot_chat_with_a_kind_of_another_handle_and_is_told_what_one_can(model, capsys) -> None:
    assert main(["chat", "-m", str(model()), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["type"], error["hint"]) == ("InvalidParameterError", "Use `mlxengine run`.")


@pytest.mark.usefixtures("installed")
def test_chat_run_and_bench_work_with_a_second_back_end(model, capsys, monkeypatch) -> None:
    import io

    folder = str(model(kind="llm"))
    assert main(["run", "-m", folder, "hi", "there"]) == 0
    assert capsys.readouterr().out == "echo hi there\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("good day\n"))
    assert main(["chat", "-m", folder]) == 0
    assert capsys.readouterr().out == "echo good day\n"
    assert main(["bench", "-m", folder, "--repeats", "1", "--batch", "2", "--json"]) == 0
    assert "batch of 2, tokens/s" in json.loads(capsys.readouterr().out)["figures"]
