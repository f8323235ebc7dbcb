"""The engine, its handles and its plugins, on kinds that need no model library."""

import asyncio
import gc
import json
import threading
import time

import pytest
from mlxengine import (
    AsyncInferenceEngine,
    Claim,
    Feature,
    Finished,
    Fit,
    InferenceEngine,
    LLMEngine,
    Loaded,
    ModelConfiguration,
    Request,
    TextDelta,
    errors,
    hookimpl,
)


class Words:
    """Serves a folder with {"words": [...]}: a kind that core does not know."""

    fit = Fit.NATIVE

    def __init__(self):
        self.loads = self.closes = 0
        self.warmed = []
        self.shapes = []

    @hookimpl
    def list_features(self):
        return [Feature(name="words.loud", default=False, summary="Shout.")]

    @hookimpl
    def claim_model(self, card):
        if "words" not in card.config:
            return None
        problem = card.config.get("problem")
        return Claim(
            kind="words",
            fit=self.fit,
            uses_mlx=False,
            capabilities=["spoken"],
            problem=errors.UnsupportedArchitectureError(problem) if problem else None,
        )

    @hookimpl
    def load_model(self, card, context):
        self.loads += 1
        if card.config.get("fail"):
            raise ValueError("broken weights")

        def warm():
            for step in range(3):
                time.sleep(0.005)
                self.warmed.append((step, threading.current_thread().name))
                yield

        def close():
            self.closes += 1

        return Loaded(
            model=list(card.config["words"]),
            warm=warm(),
            close=close,
            info={"words": 3},
            warm_up=self.warm_up if card.config.get("shapes") else None,
        )

    def warm_up(self):
        try:
            for shape in range(40):
                time.sleep(0.002)
                self.shapes.append(shape)
                yield
        finally:
            self.shapes.append("over")

    @hookimpl
    def generate(self, model, request, context):
        if type(request) is not Request:
            return None
        loud = context.features.get(self.list_features()[0])
        return self._speak(model, loud)

    def _speak(self, model, loud):
        for word in model:
            time.sleep(0.002)
            yield TextDelta(text=word.upper() if loud else word)
        yield Finished()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"words": ["a", "b", "c"]}))
    return made


@pytest.fixture
def words():
    return Words()


@pytest.fixture
def engine(words):
    with InferenceEngine(plugins=[("words", words)]) as made:
        yield made


def said(events):
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_a_kind_that_core_does_not_know_gets_the_plain_handle_and_runs(engine, folder):
    handle = engine.load(folder)
    assert (handle.kind, handle.plugin, handle.capabilities) == ("words", "words", {"spoken"})
    assert handle.info == {"words": 3}
    assert said(handle.run(Request()).events) == "abc"
    assert said(handle.stream(Request())) == "abc"
    assert isinstance(engine, LLMEngine)


def test_a_context_length_that_a_plugin_lists_is_a_fact_and_that_of_a_person_a_wish(folder):
    asked = []

    class Listing(Words):
        @hookimpl
        def list_models(self):
            return [ModelConfiguration(id=str(folder), kind="words", context_length=7, size="1B")]

        @hookimpl
        def load_model(self, card, context):
            asked.append((context.configuration.size, context.configuration.context_length))
            return super().load_model(card, context)

    with InferenceEngine(plugins=[("words", Listing())]) as engine:
        engine.load(str(folder)).close()
        engine.registry.register(ModelConfiguration(id=str(folder), kind="words", context_length=7))
        engine.load(str(folder)).close()
    assert asked == [("1B", None), (None, 7)]


def test_the_weights_are_evaluated_on_the_schedulers_thread_before_the_handle_is_there(engine, words, folder):
    engine.load(folder)
    assert words.warmed == [(step, "mlxengine-scheduler") for step in range(3)]


SHAPES = {"words": ["a", "b", "c"], "shapes": True}


def test_a_model_is_warmed_up_when_that_is_asked_for_and_only_then(engine, words, folder):
    engine.load(folder, warm_up=True)  # it has nothing to warm up
    (folder / "config.json").write_text(json.dumps(SHAPES))
    engine.load(ModelConfiguration(id=str(folder), default_prompt="x")).close()
    assert words.shapes == []
    first = engine.load(ModelConfiguration(id=str(folder), default_prompt="x"))
    assert engine.load(first.card.configuration, warm_up=True).card is first.card
    assert words.shapes == [*range(40), "over"], "one that was loaded already, too"
    assert said(first.stream(Request())) == "abc"
    assert [item.requests for item in engine.metrics()] == [{"done": 1}], "it counts as no request"


def test_requests_go_on_while_a_model_is_warmed_up(engine, words, folder, tmp_path):
    other = engine.load(folder)
    cold = tmp_path / "cold"
    cold.mkdir()
    (cold / "config.json").write_text(json.dumps(SHAPES))
    thread = threading.Thread(target=lambda: engine.load(cold, warm_up=True))
    thread.start()
    while not words.shapes:
        time.sleep(0.001)
    assert said(other.stream(Request())) == "abc"
    assert "over" not in words.shapes
    thread.join()
    assert words.shapes[-1] == "over"


def test_a_failure_while_warming_up_is_the_loads_and_frees_the_model(words, folder):
    (folder / "config.json").write_text(json.dumps(SHAPES))

    def fail():
        yield
        raise ValueError("no such kernel")

    words.warm_up = fail
    with InferenceEngine(plugins=[("words", words)]) as engine:
        with pytest.raises(errors.PluginCrashedError, match="no such kernel"):
            engine.load(folder, warm_up=True)
        assert words.closes == 1


def test_cancelling_a_load_ends_its_warming_up(words, folder):
    (folder / "config.json").write_text(json.dumps(SHAPES))

    async def main():
        async with AsyncInferenceEngine(plugins=[("words", words)]) as engine:
            task = asyncio.create_task(engine.load(folder, warm_up=True))
            while not words.shapes:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while "over" not in words.shapes:
                await asyncio.sleep(0.001)
            assert words.shapes[-2] != 39, "it was not run to its end"
            words.shapes.clear()
            await engine.load(folder, warm_up=True)
            assert words.shapes == [*range(40), "over"]

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_model_is_shared_until_its_last_holder_lets_go(engine, words, folder):
    first, second = engine.load(folder), engine.load(folder)
    assert words.loads == 1
    first.close()
    first.close()
    assert words.closes == 0
    assert said(second.stream(Request())) == "abc"
    second.close()
    assert words.closes == 1
    assert engine.models == ()
    engine.load(folder)
    assert words.loads == 2


def test_threads_that_load_at_once_share_one_load(engine, words, folder):
    handles = []
    threads = [threading.Thread(target=lambda: handles.append(engine.load(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(handles), words.loads) == (8, 1)
    for handle in handles:
        handle.close()
    assert words.closes == 1


def test_two_models_with_other_features_are_two_models(engine, words, folder):
    quiet, loud = engine.load(folder), engine.load(folder, features={"words.loud": True})
    assert said(quiet.stream(Request())) == "abc"
    assert said(loud.stream(Request())) == "ABC"
    assert said(quiet.stream(Request(features=(("words.loud", True),)))) == "ABC"
    assert loud.explain("words.loud").source == "load"


def test_a_stream_can_be_read_once(engine, folder):
    stream = engine.load(folder).stream(Request())
    assert said(stream) == "abc"
    with pytest.raises(errors.StreamConsumedError):
        said(stream)


def test_dropping_a_stream_cancels_its_request(engine, folder):
    (folder / "config.json").write_text(json.dumps({"words": ["x"] * 100_000}))
    stream = engine.load(folder).stream(Request())
    assert next(stream).text == "x"
    assert engine.status().tasks == 1
    del stream
    gc.collect()
    deadline = time.monotonic() + 5
    while engine.status().tasks and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.status().tasks == 0


@pytest.mark.parametrize("name", ["close", "engine"])
def test_closing_ends_running_requests_with_a_typed_error(engine, folder, name):
    (folder / "config.json").write_text(json.dumps({"words": ["x"] * 100_000}))
    handle = engine.load(folder)
    stream = handle.stream(Request())
    next(stream)
    threading.Timer(0.05, handle.close if name == "close" else engine.close).start()
    with pytest.raises(errors.CancelledError):
        list(iter(stream))
    with pytest.raises(errors.ModelClosedError if name == "close" else errors.EngineClosedError):
        handle.stream(Request())


def test_a_closed_engine_refuses_everything_and_leaves_no_thread(words, folder):
    others = set(threading.enumerate())
    engine = InferenceEngine(plugins=[("words", words)])
    engine.load(folder)
    engine.close()
    engine.close()
    assert words.closes == 1
    with pytest.raises(errors.EngineClosedError):
        engine.load(folder)
    left = set(threading.enumerate()) - others
    assert not [item.name for item in left if item.name.startswith("mlxengine")]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama"}, errors.NoPluginForModelError),
        ({"words": [], "fail": True}, errors.PluginCrashedError),
        ({"words": [], "problem": "no such layer"}, errors.UnsupportedArchitectureError),
    ],
)
def test_what_cannot_be_loaded_says_so_and_the_engine_goes_on(engine, words, folder, config, expected):
    bad = folder.parent / "bad"
    bad.mkdir()
    (bad / "config.json").write_text(json.dumps(config))
    with pytest.raises(expected):
        engine.load(bad)
    assert said(engine.load(folder).stream(Request())) == "abc"
    if expected is errors.NoPluginForModelError:
        with pytest.raises(expected, match=r"mlxengine\[llm\]"):
            engine.load(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine, folder: engine.load(17),
        lambda engine, folder: engine.load(folder, verify="maybe"),
        lambda engine, folder: engine.load_text(folder),
        lambda engine, folder: engine.load(folder).stream("text"),
        lambda engine, folder: InferenceEngine(queue_size=0),
    ],
)
def test_a_wrong_argument_is_an_invalid_parameter(engine, folder, call):
    with pytest.raises(errors.InvalidParameterError):
        call(engine, folder)


def test_a_request_type_that_the_plugin_does_not_know_is_unsupported(engine, folder):
    class Other(Request):
        pass

    with pytest.raises(errors.UnsupportedInputError, match="Other"):
        engine.load(folder).run(Other())


def test_features_that_nobody_provides_are_refused_with_the_nearest_name(words):
    with pytest.raises(errors.UnknownFeatureError, match=r"words\.loud"):
        InferenceEngine(plugins=[("words", words)], features={"words.lout": True})


def test_a_tie_is_ambiguous_and_naming_a_plugin_decides_it(folder):
    with InferenceEngine(plugins=[("one", Other()), ("two", Other())]) as engine:
        with pytest.raises(errors.AmbiguousModelError, match=r"'one' and 'two'"):
            engine.load(folder)
        assert engine.load(folder, plugin="two").plugin == "two"
        with pytest.raises(errors.NoPluginForModelError, match="three"):
            engine.load(folder, plugin="three")


def test_where_the_best_plugin_refuses_a_model_the_error_names_another_that_offers_it(folder):
    class Refusing(Other):
        @hookimpl
        def claim_model(self, card):
            problem = errors.UnsupportedArchitectureError("The library has no such model.", hint="Update it.")
            return Claim(kind="words", fit=Fit.NATIVE, uses_mlx=False, problem=problem)

    class Lesser(Other):
        @hookimpl
        def claim_model(self, card):
            return Claim(kind="words", fit=Fit.FALLBACK, uses_mlx=False, reason="capital letters alone")

    with InferenceEngine(plugins=[("best", Refusing()), ("lesser", Lesser())]) as engine:
        with pytest.raises(errors.UnsupportedArchitectureError) as caught:
            engine.load(folder)
        assert caught.value.hint == (
            "Update it. The plugin 'lesser' offers it too (capital letters alone): "
            "load(…, plugin='lesser'), or --plugin lesser."
        )
        assert engine.load(folder, plugin="lesser").plugin == "lesser"


def test_a_kind_that_is_asked_for_decides_between_two_that_claim_equally_well(folder):
    class Vectors(Other):
        @hookimpl
        def claim_model(self, card):
            return Claim(kind="embed", fit=Fit.NATIVE, uses_mlx=False)

    with InferenceEngine(plugins=[("one", Other()), ("two", Vectors())]) as engine:
        with pytest.raises(errors.AmbiguousModelError):
            engine.load(folder)
        assert engine.load_embeddings(folder).plugin == "two"


class Other(Words):
    @hookimpl
    def list_features(self):
        return []


def test_a_plugin_that_registers_later_never_takes_over_a_live_model(engine, words, folder):
    handle = engine.load(folder)
    late = Other()
    engine.register(late, "late")
    assert said(handle.stream(Request())) == "abc"
    handle.close()
    assert (words.closes, late.loads) == (1, 0)


def test_asyncio_reads_the_same_engine_without_blocking_its_loop(words, folder):
    async def main():
        async with AsyncInferenceEngine(plugins=[("words", words)]) as engine:
            handle = await engine.load(folder)
            texts = await asyncio.gather(*[collect(handle) for _ in range(4)])
            result = await handle.run(Request())
            return texts, said(result.events)

    async def collect(handle):
        return "".join(
            [event.text async for event in handle.stream(Request()) if isinstance(event, TextDelta)]
        )

    assert asyncio.run(main()) == (["abc"] * 4, "abc")


def test_cancelling_the_reading_task_cancels_the_request(words, folder):
    (folder / "config.json").write_text(json.dumps({"words": ["x"] * 100_000}))

    async def main():
        async with AsyncInferenceEngine(plugins=[("words", words)]) as engine:
            handle = await engine.load(ModelConfiguration(id=str(folder)))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(handle.run(Request()), 0.1)
            for _ in range(100):
                if engine.sync.status().tasks == 0:
                    return True
                await asyncio.sleep(0.02)
            return False

    assert asyncio.run(main())


def test_an_engine_that_nobody_holds_ends_its_threads(words, folder):
    engine = InferenceEngine(plugins=[("words", words)])
    engine.load(folder).run(Request())
    del engine
    gc.collect()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not [item for item in threading.enumerate() if item.name == "mlxengine-scheduler"]:
            return
        time.sleep(0.02)
    raise AssertionError([item.name for item in threading.enumerate()])
