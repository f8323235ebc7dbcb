"""The verbs ``embed`` and ``similarity`` of the ``mlxengine`` command."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mlxengine import EmbeddingHandle, ImagePart, Progress
from mlxengine.cli.verbs import Output, ProgressLine, add_model, engine, load_named
from mlxengine.contract.events import Array
from mlxengine.errors import InvalidParameterError, ModelNotFoundError

from ._precision import NEEDS_RANGES, PRECISIONS
from ._writers import part_of, writer_for

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def configure_embed(parser: argparse.ArgumentParser) -> None:
    """The options of ``mlxengine embed``."""
    add_model(parser, DEFAULT_MODEL)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help='texts, or "-" for lines of standard input')
    _add_image(parser)
    parser.add_argument("--file", type=Path, help="texts from a file: .jsonl, or one text a line")
    parser.add_argument("--field", default="text", help="the field of a .jsonl object (default: text)")
    parser.add_argument("--out", type=Path, help="where to write: .npy, .jsonl or .parquet")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", help="put before every text")
    prompts.add_argument("--prompt-name", help="one of the model's own prompts, for example query")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--truncate-dim", type=int, help="keep the first dimensions only")
    parser.add_argument("--normalize", action=argparse.BooleanOptionalAction, help="scale to unit length")
    parser.add_argument("--batch-tokens", type=int, help="most padded tokens in one step")


def embed(arguments: argparse.Namespace, out: Output) -> int:
    """Turn texts into vectors: one a line on standard output, or into a file."""
    texts, total = _texts(arguments)
    writer = writer_for(arguments.out)
    with _loaded(arguments, out) as model:
        # An 8-bit step is a share of each dimension's range, which only all vectors together tell.
        source = list(texts) if arguments.precision in NEEDS_RANGES else texts
        started = time.monotonic()
        kept: list[str] = []

        def report(done: int, _total: int | None) -> None:
            line(Progress(stage="embed", done=done, total=total, unit="texts"))

        with ProgressLine(out) as line:
            if model.info.get("output") == "sparse":
                _print_terms(model, source, arguments, report, out)
                return 0
            vectors = _vectors(model, source, kept, arguments, report)
            if writer is None:
                _print_vectors(model, vectors, arguments, out)
                return 0
            try:
                count = writer(arguments.out, vectors, iter_texts(kept))
            except BaseException:
                part_of(arguments.out).unlink(missing_ok=True)
                raise
        seconds = time.monotonic() - started
        value = {"path": arguments.out, "vectors": count, "seconds": round(seconds, 3)}
        if out.json:
            out.value(value)
        else:
            out.note(f"{count} vectors in {arguments.out}, {seconds:.1f} s")
    return 0


def configure_similarity(parser: argparse.ArgumentParser) -> None:
    """The options of ``mlxengine similarity``."""
    add_model(parser, DEFAULT_MODEL)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; with pictures, two or more")
    _add_image(parser)


def similarity(arguments: argparse.Namespace, out: Output) -> int:
    """How similar texts are, by the model's own similarity function."""
    inputs = [*arguments.texts, *map(ImagePart, arguments.image)]
    if len(inputs) < 2:
        raise InvalidParameterError("similarity needs two texts or more, or pictures.")
    with _loaded(arguments, out) as model:
        table = model.similarity(inputs).numpy().tolist()
        name = str(model.info.get("similarity"))
    names = list(map(_name, inputs))
    value = {"model": arguments.model, "function": name, "texts": names, "table": table}
    two = len(names) == 2
    out.emit(value, lambda: out.line(f"{table[0][1]:.4f}" if two else format_table(names, table)))
    return 0


def format_table(texts: list[str], table: list[list[float]], width: int = 48) -> str:
    """A similarity matrix with its texts, numbered, one row a text."""
    short = [text if len(text) <= width else f"{text[: width - 1]}…" for text in texts]
    longest = max(map(len, short))
    head = " " * (longest + 5) + "".join(f"{i:>7}" for i in range(1, len(texts) + 1))
    rows = [
        f"{i:>3}  {text:<{longest}}" + "".join(f"{value:7.2f}" for value in row)
        for i, (text, row) in enumerate(zip(short, table, strict=True), 1)
    ]
    return "\n".join([head, *rows])


def _add_image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture, for models that see; may be given again, and stands after the texts",
    )


def _name(item: str | ImagePart) -> str:
    """A text, or a picture's file."""
    return item if isinstance(item, str) else str(item.source)


def iter_texts(kept: list[str]) -> Iterator[str]:
    """The texts whose vectors were taken, each once, as they are taken: nothing is held on to."""
    while True:
        yield kept.pop(0)


@contextlib.contextmanager
def _loaded(arguments: argparse.Namespace, out: Output) -> Iterator[EmbeddingHandle]:
    """The engine and the model of a command line, closed together."""
    with (
        engine(arguments, out) as made,
        load_named(arguments.model, made, arguments, out, EmbeddingHandle) as model,
    ):
        yield model


def _texts(arguments: argparse.Namespace) -> tuple[Iterable[str | ImagePart], int | None]:
    """The texts, and how many if that is known; a file is read as it is needed."""
    if arguments.file is not None:
        if arguments.texts or arguments.image:
            raise InvalidParameterError("Give texts and pictures, or --file, not both.")
        if not arguments.file.is_file():
            raise ModelNotFoundError(f"There is no file {arguments.file}.")
        if arguments.out is not None and arguments.out.exists() and arguments.out.samefile(arguments.file):
            raise InvalidParameterError(
                f"The vectors would replace their texts in {arguments.file}.", hint="Give --out another name."
            )
        with arguments.file.open("rb") as lines:
            total = sum(1 for line in lines if line.strip())
        return _lines_of(arguments.file, arguments.field), total
    pictures = list(map(ImagePart, arguments.image))
    if pictures and arguments.texts != ["-"]:
        return [*arguments.texts, *pictures], len(arguments.texts) + len(pictures)
    if arguments.texts == ["-"] or (not arguments.texts and not sys.stdin.isatty()):
        lines = (line.rstrip("\r\n") for line in _decoded(sys.stdin, "standard input"))
        return chain(lines, pictures), None
    if not arguments.texts:
        raise InvalidParameterError("There is no text.", hint='Give one: mlxengine embed "a cat".')
    return list(arguments.texts), len(arguments.texts)


def _decoded(lines: Iterable[str], name: str) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise InvalidParameterError(
            f"{name} is not UTF-8: {error}.", hint="Convert it first, for example with iconv."
        ) from error


def _lines_of(path: Path, name: str) -> Iterator[str]:
    as_json = path.suffix.lower() in (".jsonl", ".ndjson")
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(_decoded(lines, str(path)), 1):
            if not line.strip():
                continue
            if not as_json:
                yield line.rstrip("\r\n")
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise InvalidParameterError(f"Line {number} of {path} is not JSON: {error}") from error
            text = value.get(name) if isinstance(value, dict) else value
            if not isinstance(text, str):
                raise InvalidParameterError(
                    f"Line {number} of {path} has no text in the field {name!r}.",
                    hint="Name it with --field.",
                )
            yield text


def _vectors(
    model: EmbeddingHandle,
    texts: Iterable[str | ImagePart],
    kept: list[str],
    arguments: argparse.Namespace,
    progress: Callable[[int, int | None], None],
) -> Iterator[Array]:
    options: dict[str, Any] = {
        "prompt": arguments.prompt,
        "prompt_name": arguments.prompt_name,
        "precision": arguments.precision,
        "truncate_dim": arguments.truncate_dim,
        "normalize": arguments.normalize,
        "batch_tokens": arguments.batch_tokens,
        "progress": progress,
    }
    if arguments.precision in NEEDS_RANGES:
        listed = list(texts)
        kept += map(_name, listed)
        found = model.embed(listed, **options)
        rows = found.numpy()
        return (Array(data=row.tobytes(), shape=row.shape, dtype=row.dtype.name) for row in rows)

    def noted() -> Iterator[str | ImagePart]:
        for text in texts:
            kept.append(_name(text))
            yield text

    streamed: Iterator[Array] = model.embed(noted(), **options)
    return streamed


def _print_terms(
    model: EmbeddingHandle,
    texts: Iterable[str | ImagePart],
    arguments: argparse.Namespace,
    progress: Callable[[int, int | None], None],
    out: Output,
) -> None:
    """The terms of each text with their weights, heaviest first: one JSON object a line."""
    if arguments.out is not None:
        raise InvalidParameterError(
            f"{arguments.model} makes sparse vectors, which --out does not write.",
            hint="Leave it out and redirect standard output: one JSON object a line.",
        )
    options: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("prompt", "prompt_name", "precision", "truncate_dim", "normalize", "batch_tokens")
    }
    rows = model.embed(iter(texts), output="sparse", progress=progress, **options)
    if not out.json:
        for row in rows:
            out.line(json.dumps(dict(row.top()), ensure_ascii=False))
        return
    out.value({"model": arguments.model, "vectors": [dict(row.top()) for row in rows]})


def _print_vectors(
    model: EmbeddingHandle, vectors: Iterator[Array], arguments: argparse.Namespace, out: Output
) -> None:
    if not out.json:
        for vector in vectors:
            out.line(json.dumps(vector.numpy().tolist()))
        return
    rows = [vector.numpy().tolist() for vector in vectors]
    dimension = len(rows[0]) if rows else model.dimension
    out.value({"model": arguments.model, "dimension": dimension, "vectors": rows})


__all__ = ["configure_embed", "configure_similarity", "embed", "format_table", "similarity"]
