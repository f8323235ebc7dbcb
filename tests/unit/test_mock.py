"""The mock back end runs only where it is named, and marks everything that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlxengine import (
    AsyncInferenceEngine,
    EmbedRequest,
    GenerateParams,
    ImageRequest,
    InferenceEngine,
    Message,
    TextHandle,
    TextRequest,
)
from mlxengine.errors import InvalidParameterError, ResolutionError, UnsupportedInputError


@pytest.fixture
def engine() -> Iterator[InferenceEngine]:
    with InferenceEngine(backend="mock", plugins=[]) as found:
        yield found


@pytest.mark.parametrize(
    ("model", "request_"),
    [
        ("any/name", TextRequest(prompt="hello")),
        ("any/embed", EmbedRequest(texts=("a",))),
        ("any/diffusion", ImageRequest(prompt="x", size=(16, 8), steps=1)),
    ],
)
def test_every_event_is_marked(engine: InferenceEngine, model: str, request_: object) -> None:
    events = list(engine.load(model).stream(request_))
    assert events
    assert all(event.mock for event in events)


def test_a_text_says_so_itself_and_deltas_join_to_it(engine: InferenceEngine) -> None:
    reply = engine.load_text("any/name").generate("one two")
    assert reply.text == "[mock] This is no model. You said: one two"
    assert reply.mock
    short = engine.load_text("any/name").generate("one two", GenerateParams(max_tokens=2))
    assert (short.text, short.finish_reason) == ("[mock] This", "length")


def test_a_picture_s_recipe_says_so(engine: InferenceEngine) -> None:
    assert engine.load_images("any/diffusion").image("x").recipe["mock"] is True


def test_it_looks_nothing_up_and_needs_no_network(engine: InferenceEngine) -> None:
    assert engine.resolve("no/such-model").tags == ("mock",)


@pytest.mark.feature("core.mock")
def test_the_flag_names_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXENGINE_FEATURES", "core.mock")
    with InferenceEngine(plugins=[]) as engine:
        assert engine.load_text("any/name").generate("x").mock


def test_it_never_steps_in_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLXENGINE_FEATURES", raising=False)
    with (
        InferenceEngine(plugins=[], offline=True, cache_dir=tmp_path) as engine,
        pytest.raises(ResolutionError),
    ):
        engine.load("no/such-model")


def test_a_back_end_that_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match=r"mlx.*mock"):
        InferenceEngine(backend="cuda", plugins=[])


def test_a_request_of_another_kind_is_refused(engine: InferenceEngine) -> None:
    with pytest.raises(UnsupportedInputError, match="ImageRequest"):
        engine.load("any/name").run(ImageRequest(prompt="x"))


@pytest.mark.parametrize(
    ("use", "known"),
    [
        (lambda _chat: InferenceEngine(memory_bugdet="8GB"), "memory_budget"),
        (lambda _chat: AsyncInferenceEngine(memory_bugdet="8GB"), "memory_budget"),
        (lambda chat: chat._engine.load("org/name", plugn="llm"), "plugin"),
        (lambda chat: chat._engine.load_text("org/name", plugn="llm"), "plugin"),
        (lambda chat: chat._engine.switch("org/name", plugn="llm"), "plugin"),
        (lambda chat: chat.generate("Hi", max_tokens=8), "params, instructions"),
        (lambda chat: chat.stream("Hi", tool=[]), "tools"),
        (lambda chat: chat.session(tool_round=1), "tool_rounds"),
    ],
)
def test_a_parameter_that_does_not_exist_is_refused_and_the_error_names_those_that_do(
    engine: InferenceEngine, use: Callable[[TextHandle], object], known: str
) -> None:
    chat = engine.load_text("any/name")
    with pytest.raises(InvalidParameterError, match=f"Unknown parameter.*Known: .*{known}"):
        use(chat)
    assert len(engine.models) == 1


def test_the_mock_counts_what_it_bills(engine: InferenceEngine) -> None:
    model = engine.load_text("any/name")
    for prompt in ("three short words", [Message.system("Be brief."), Message.user("Hi there")]):
        assert model.count(prompt) == model.generate(prompt).usage.prompt_tokens
    assert model.render("Hi there") == "Hi there"
    assert len(model.tokenize("Hi there")) == 2
