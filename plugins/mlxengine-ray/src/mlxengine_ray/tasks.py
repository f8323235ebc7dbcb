"""What a job asks of a model for each row: vectors, an answer, scores or a picture.

A task is a frozen value without state, so it can be sent to other processes and compared with that of an
earlier run. `Task.run` takes a loaded model and some rows, and gives one outcome a row.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from attrs import field, frozen
from mlxengine import (
    EmbeddingHandle,
    GenerateParams,
    ImageHandle,
    ImagePart,
    Message,
    ModelHandle,
    TextHandle,
    TextPart,
)
from mlxengine.errors import InvalidParameterError, UnsupportedInputError

from ._outcomes import Outcome, Values, each

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@frozen(kw_only=True)
class Task:
    """Base of every task.

    ``results`` are the columns that it adds, each with what it holds: ``"text"``, ``"number"``, ``"count"``,
    ``"numbers"`` or ``"picture"`` (the bytes of a PNG). ``unit`` is how many rows one request has, and
    ``at_once`` how many requests a model has at once.
    """

    name: ClassVar[str]
    handle: ClassVar[type[ModelHandle]]
    results: ClassVar[Mapping[str, str]]
    unit: ClassVar[int] = 1
    at_once: ClassVar[int] = 1

    @property
    def needs(self) -> frozenset[str]:
        """Columns without which no row can be done."""
        raise NotImplementedError

    @property
    def reads(self) -> frozenset[str]:
        """All columns that it looks at."""
        raise NotImplementedError

    @property
    def picture(self) -> str:
        """The column whose texts are paths of pictures."""
        return "image"

    def run(self, handle: Any, rows: Sequence[Values]) -> list[Outcome]:
        """One outcome for each of the rows, in order. What is wrong with one row is the outcome of that row.

        Raises:
            MLXEngineError: the model is gone, or what else no other row would survive.
        """
        raise NotImplementedError


@frozen(kw_only=True)
class Embed(Task):
    """A vector for the text of each row.

    Args:
        column: where the text is.
        prompt, prompt_name, normalize, truncate_dim: as `mlxengine.EmbeddingHandle.embed` has them.
    """

    name: ClassVar[str] = "embed"
    handle: ClassVar[type[ModelHandle]] = EmbeddingHandle
    results: ClassVar[Mapping[str, str]] = {"vector": "numbers"}
    unit: ClassVar[int] = 256
    at_once: ClassVar[int] = 2

    column: str = "text"
    prompt: str | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    truncate_dim: int | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.column})

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    def run(self, handle: EmbeddingHandle, rows: Sequence[Values]) -> list[Outcome]:
        return each(rows, lambda row: _text(row, self.column), lambda texts: self._vectors(handle, texts))

    def _vectors(self, handle: EmbeddingHandle, texts: Sequence[str]) -> list[dict[str, Any]]:
        vectors = handle.embed(
            texts,
            prompt=self.prompt,
            prompt_name=self.prompt_name,
            normalize=self.normalize,
            truncate_dim=self.truncate_dim,
        )
        size = vectors.shape[1]
        numbers = memoryview(vectors.data).cast("B").cast("f").tolist()
        return [{"vector": numbers[place * size : (place + 1) * size]} for place in range(len(texts))]


@frozen(kw_only=True)
class Generate(Task):
    """An answer to the question of each row.

    Args:
        column: where the question is; a row with a column ``messages`` (objects of ``role`` and ``content``)
            instead is a conversation. A column ``image`` is a picture that is asked about.
        prompt: the question where rows have none, or a text around theirs: ``{name}`` stands for a column.
        instructions: a system message before it.
        params: how to generate.
    """

    name: ClassVar[str] = "generate"
    handle: ClassVar[type[ModelHandle]] = TextHandle
    results: ClassVar[Mapping[str, str]] = {
        "answer": "text",
        "reasoning": "text",
        "finish_reason": "text",
        "prompt_tokens": "count",
        "completion_tokens": "count",
    }
    at_once: ClassVar[int] = 32

    column: str = "prompt"
    prompt: str | None = None
    instructions: str | None = None
    params: GenerateParams = field(factory=GenerateParams)

    @property
    def _placeholders(self) -> frozenset[str]:
        return frozenset(_PLACEHOLDER.findall(self.prompt or ""))

    @property
    def needs(self) -> frozenset[str]:
        return self._placeholders

    @property
    def reads(self) -> frozenset[str]:
        return self._placeholders | {self.column, "messages", self.picture}

    def run(self, handle: TextHandle, rows: Sequence[Values]) -> list[Outcome]:
        return each(rows, self._messages, lambda asked: [self._answer(handle, item) for item in asked])

    def _messages(self, row: Values) -> list[Message]:
        if row.get("messages") is not None and not self._placeholders:
            return _conversation(row["messages"])
        text = self._question(row)
        if row.get(self.picture) is None:
            return [Message.user(text)]
        return [Message.user([ImagePart(row[self.picture]), TextPart(text)])]

    def _question(self, row: Values) -> str:
        if self.prompt is None or (not self._placeholders and row.get(self.column) is not None):
            return _text(row, self.column)
        return _PLACEHOLDER.sub(lambda match: _text(row, match[1]), self.prompt)

    def _answer(self, handle: TextHandle, messages: list[Message]) -> dict[str, Any]:
        reply = handle.generate(messages, self.params, instructions=self.instructions)
        return {
            "answer": reply.text,
            "reasoning": reply.reasoning or None,
            "finish_reason": reply.finish_reason.value,
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
        }


@frozen(kw_only=True)
class Rerank(Task):
    """How relevant the documents of each row are to its query.

    A row has a text in the column ``document`` and gets a ``score``, or texts in ``documents`` and gets
    ``scores``, in their order.

    Args:
        column: where the query is.
    """

    name: ClassVar[str] = "rerank"
    handle: ClassVar[type[ModelHandle]] = EmbeddingHandle
    results: ClassVar[Mapping[str, str]] = {"score": "number", "scores": "numbers"}
    unit: ClassVar[int] = 64
    at_once: ClassVar[int] = 2

    column: str = "query"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.column})

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.column, "document", "documents"})

    def run(self, handle: EmbeddingHandle, rows: Sequence[Values]) -> list[Outcome]:
        return each(rows, self._pairs, lambda pairs: _scores(handle, pairs))

    def _pairs(self, row: Values) -> tuple[bool, list[tuple[str, str]]]:
        """Whether there are several documents, and each with the query."""
        query, documents = _text(row, self.column), row.get("documents")
        if documents is None:
            return False, [(query, _text(row, "document"))]
        if not isinstance(documents, list | tuple) or not all(isinstance(item, str) for item in documents):
            raise InvalidParameterError("The column 'documents' must hold a list of texts.")
        return True, [(query, item) for item in documents]


def _scores(
    handle: EmbeddingHandle, rows: Sequence[tuple[bool, list[tuple[str, str]]]]
) -> list[dict[str, Any]]:
    found = handle.predict([pair for _, pairs in rows for pair in pairs])
    if len(found.shape) != 1:
        raise UnsupportedInputError(
            f"{handle.id} gives {found.shape[1]} scores for a pair, so it is no reranker.",
            hint="Name a cross-encoder with one label.",
        )
    numbers = memoryview(found.data).cast("B").cast("f").tolist()
    results: list[dict[str, Any]] = []
    place = 0
    for several, pairs in rows:
        mine = numbers[place : place + len(pairs)]
        place += len(pairs)
        results.append({"scores": mine} if several else {"score": mine[0]})
    return results


@frozen(kw_only=True)
class Draw(Task):
    """A picture for the prompt of each row; its columns ``negative`` and ``seed`` go before the task's own.

    Args:
        column: where the prompt is.
        negative, size, steps, guidance, seed: as `mlxengine.ImageRequest` has them.
    """

    name: ClassVar[str] = "image"
    handle: ClassVar[type[ModelHandle]] = ImageHandle
    results: ClassVar[Mapping[str, str]] = {"picture": "picture", "seed": "count"}

    column: str = "prompt"
    negative: str | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.column})

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.column, "negative", "seed"})

    def run(self, handle: ImageHandle, rows: Sequence[Values]) -> list[Outcome]:
        return each(
            rows,
            lambda row: (_text(row, self.column), row),
            lambda asked: [self._drawn(handle, *item) for item in asked],
        )

    def _drawn(self, handle: ImageHandle, prompt: str, row: Values) -> dict[str, Any]:
        picture = handle.image(
            prompt,
            negative=self.negative if row.get("negative") in (None, "") else _text(row, "negative"),
            size=self.size,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed if row.get("seed") in (None, "") else _whole(row["seed"], "seed"),
        )
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # a picture is written with its recipe by its own method
            data = picture.save(Path(folder) / "picture.png").read_bytes()
        return {"picture": data, "seed": picture.recipe.get("seed")}


TASKS: Mapping[str, type[Task]] = {task.name: task for task in (Embed, Generate, Rerank, Draw)}
"""The tasks by the names that the command line has for them."""


def _text(row: Values, column: str) -> str:
    value = row.get(column)
    if isinstance(value, str):
        return value
    there = ", ".join(row) or "none"
    if value is not None:
        problem = f"holds a {type(value).__name__}, not a text"
    else:
        problem = "holds nothing" if column in row else "is not there"
    raise InvalidParameterError(f"The column {column!r} {problem}; the row's columns: {there}.")


def _whole(value: Any, column: str) -> int:
    try:
        number = int(value)
        if isinstance(value, bool) or (not isinstance(value, str) and number != value):
            raise ValueError(value)
        return number
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidParameterError(f"The column {column!r} holds no whole number: {value!r}.") from error


def _conversation(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise InvalidParameterError("The column 'messages' must hold a list of messages.")
    found = []
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(item.get("content"), str):
            raise InvalidParameterError(
                "A message must be an object with role and content, both texts.",
                hint='Write {"role": "user", "content": "…"}; a picture goes into the column image.',
            )
        found.append(Message(role=item.get("role"), parts=[item["content"]]))
    return found


__all__ = ["TASKS", "Draw", "Embed", "Generate", "Rerank", "Task"]
