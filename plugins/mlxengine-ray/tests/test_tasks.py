"""What each task makes of rows, and that what is wrong with a row is the outcome of that row."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from mlxengine import EmbeddingHandle, GenerateParams, ImageHandle, InferenceEngine, TextHandle
from mlxengine.errors import InvalidParameterError, MLXEngineError, PluginCrashedError, PromptTooLongError
from mlxengine.pictures.handle import read_recipe
from mlxengine_ray.tasks import Draw, Embed, Generate, Rerank
from PIL import Image
from refusing import Refusing

Setup = tuple[Refusing, InferenceEngine, Path]


def kinds(outcomes: list[Any]) -> list[str]:
    return [type(item).__name__ for item in outcomes]


def test_a_refused_text_is_its_row_s_error_and_its_neighbours_have_their_vectors(
    embedder: EmbeddingHandle,
) -> None:
    texts = ["one", "far too long", "two words", None, "a crash", "busy", "x" * 9]
    found = Embed().run(embedder, [{"text": text} for text in texts])
    assert [type(item) for item in found if isinstance(item, MLXEngineError)] == [
        PromptTooLongError,
        InvalidParameterError,
        PluginCrashedError,
    ]
    assert [found[place] for place in (0, 2, 5, 6)] == [
        {"vector": [3.0, 1.0]},
        {"vector": [9.0, 2.0]},
        {"vector": [4.0, 1.0]},
        {"vector": [9.0, 1.0]},
    ]


def test_texts_without_a_refusal_are_one_request(refusing: Setup, embedder: EmbeddingHandle) -> None:
    plugin = refusing[0]
    plugin.asked.clear()
    assert len(Embed().run(embedder, [{"text": f"t{n}"} for n in range(100)])) == 100
    assert len(plugin.asked) == 1


def test_a_column_that_is_missing_is_named_with_those_that_are_there(embedder: EmbeddingHandle) -> None:
    [error] = Embed(column="body").run(embedder, [{"text": "a", "id": 1}])
    assert isinstance(error, InvalidParameterError)
    assert "'body' is not there" in error.message
    assert "text, id" in error.message
    [error] = Embed().run(embedder, [{"text": None}])
    assert isinstance(error, InvalidParameterError)
    assert "'text' holds nothing" in error.message


def test_a_question_is_a_column_a_template_of_columns_or_a_conversation(talker: TextHandle) -> None:
    def answers(task: Generate, *rows: dict[str, Any]) -> list[str]:
        found = task.run(talker, rows)
        assert all(isinstance(item, dict) for item in found), found
        return [item["answer"] for item in found]  # type: ignore[index]

    assert answers(Generate(), {"prompt": "why"}) == ["1 messages, 0 pictures: why"]
    assert answers(Generate(prompt="Sum {body} in {n}"), {"body": "it", "n": "5"}) == [
        "1 messages, 0 pictures: Sum it in 5"
    ]
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert answers(Generate(), {"messages": talk}) == ["2 messages, 0 pictures: hi"]
    assert answers(Generate(prompt="What is it?"), {"image": "a.png"}) == [
        "1 messages, 1 pictures: What is it?"
    ]
    mixed = [{"prompt": "why"}, {"body": "it"}, {"messages": talk}, {"prompt": None, "messages": None}]
    assert answers(Generate(prompt="What is it?"), *mixed) == [
        "1 messages, 0 pictures: why",
        "1 messages, 0 pictures: What is it?",
        "2 messages, 0 pictures: hi",
        "1 messages, 0 pictures: What is it?",
    ]
    wrong = [{"messages": "hi"}, {"messages": [{"role": "robot", "content": "hi"}]}, {"prompt": 3}]
    assert kinds(Generate().run(talker, wrong)) == ["InvalidParameterError"] * 3


def test_pairs_and_lists_of_documents_are_scored(embedder: EmbeddingHandle) -> None:
    rows = [
        {"query": "a b", "document": "b c"},
        {"query": "a b", "documents": ["a b", "x", "long"]},
        {"query": "a b", "documents": ["a b", "x"]},
        {"query": "a", "documents": []},
        {"query": "a", "documents": "a"},
    ]
    found = Rerank().run(embedder, rows)
    assert found[0] == {"score": 1.0}
    assert isinstance(found[1], PromptTooLongError)
    assert found[2] == {"scores": [2.0, 0.0]}
    assert found[3] == {"scores": []}
    assert isinstance(found[4], InvalidParameterError)


def test_a_picture_is_a_png_with_its_recipe_and_a_row_s_seed_goes_first(
    painter: ImageHandle, tmp_path: Path
) -> None:
    found = Draw(seed=3).run(
        painter, [{"prompt": "a"}, {"prompt": "b", "seed": "0"}, {"prompt": "b", "seed": "x"}]
    )
    first, second, third = found
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert (first["seed"], second["seed"]) == (3, 0)
    assert Image.open(io.BytesIO(second["picture"])).getpixel((0, 0)) == (0, 0, 0)
    path = tmp_path / "b.png"
    path.write_bytes(second["picture"])
    assert read_recipe(path)["prompt"] == "b"
    assert isinstance(third, InvalidParameterError)


@pytest.mark.parametrize("seed", [float("inf"), float("nan"), 3.7, True, [1], "1.5"])
def test_a_seed_that_is_no_whole_number_is_its_row_s_error(painter: ImageHandle, seed: Any) -> None:
    wrong, sound = Draw().run(painter, [{"prompt": "a", "seed": seed}, {"prompt": "a", "seed": 4.0}])
    assert isinstance(wrong, InvalidParameterError)
    assert isinstance(sound, dict)
    assert sound["seed"] == 4


def test_what_a_picture_is_not_to_show_is_a_text(painter: ImageHandle) -> None:
    rows = [{"prompt": "a", "negative": value} for value in (5, ["b"], "", None, "b")]
    assert kinds(Draw().run(painter, rows)) == ["InvalidParameterError"] * 2 + ["dict"] * 3


@pytest.mark.parametrize(
    "task", [Embed(), Generate(params=GenerateParams(seed=0)), Rerank(), Draw(size=(8, 8))]
)
def test_a_task_can_be_sent_to_another_process(task: Any) -> None:
    assert pickle.loads(pickle.dumps(task)) == task
