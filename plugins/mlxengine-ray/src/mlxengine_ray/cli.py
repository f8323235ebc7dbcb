"""``mlxengine batch``."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import fields
from mlxengine import EmbeddingHandle, ImageHandle, InferenceEngine, ModelCard, Progress, TextHandle
from mlxengine.cli.verbs import Output, ProgressLine, add_model, engine, load_named, positive
from mlxengine.contract.features import parse_flags
from mlxengine.contract.kinds import Option
from mlxengine.errors import GenerationError, InvalidParameterError, UnsupportedInputError
from mlxengine.pictures import verbs as pictures
from mlxengine.text import verbs as text

from ._job import FORMATS, Job
from ._lanes import Lane, LocalLane
from ._replicas import Wanted, replicas
from ._store import Store, Totals
from .tasks import TASKS, Draw, Generate, Task

_DRAWN = {attribute.name for attribute in fields(Draw)}
_BY_TASK: Mapping[str, Sequence[Option]] = {
    "embed": (
        Option(flag="--prompt-name", help="one of the model's own prompts, for example document"),
        Option(flag="--truncate-dim", type=int, help="keep the first dimensions only"),
    ),
    "generate": text.OPTIONS,
    "image": tuple(option for option in pictures.RUN.options if option.name in _DRAWN),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        type=Path,
        metavar="IN… OUT",
        help="JSONL, CSV or Parquet files, or folders of them or of pictures; and the folder for the results",
    )
    add_model(parser)
    add("--task", choices=sorted(TASKS), help="what to ask for; default: what the model is for")
    add("--field", metavar="COLUMN", help="the column with the text, prompt or query of a row")
    add(
        "--prompt",
        metavar="TEXT",
        help="embed: put before every text. generate: the question, in which {COLUMN} stands for a column",
    )
    add(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a column to have beside the results; repeatable",
    )
    add("--format", choices=FORMATS, default="jsonl", help="of the results (jsonl)")
    add("--part-rows", type=positive, default=1000, metavar="N", help="rows of a file of results (1000)")
    add(
        "--replicas",
        type=positive,
        default=1,
        metavar="N",
        help="processes with a model each, by Ray (1: without)",
    )
    add("--cluster", metavar="ADDRESS", help="a Ray cluster that runs; without it one is started for the job")
    added: set[str] = set()
    for task, options in _BY_TASK.items():
        group = parser.add_argument_group(f"for {task}")
        for option in options:
            if option.flag not in added:
                added.add(option.flag)
                group.add_argument(
                    option.flag,
                    type=_reader(option),
                    action="append" if option.repeated else "store",
                    metavar=option.metavar or option.name.upper(),
                    help=option.help,
                )


def _reader(option: Option) -> Callable[[str], Any]:
    def read(words: str) -> Any:
        try:
            return option.type(words)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Run a model over files.

    Raises:
        MLXEngineError: the job cannot be begun, or cannot go on; run again, it goes on where it was.
    """
    *inputs, target = arguments.paths
    if not inputs:
        raise InvalidParameterError(
            "A job needs inputs and a folder for its results.", hint="mlxengine batch IN… OUT"
        )
    if arguments.model is None:
        raise InvalidParameterError("A job needs a model.", hint="Name it with --model.")
    began = time.monotonic()
    with engine(arguments, out) as made:
        card = made.resolve(arguments.model)
        task = _task(arguments, made, card)
        job = Job.of(
            inputs,
            target,
            task,
            model={
                "id": card.id,
                "commit": card.commit,
                "plugin": arguments.plugin,
                "features": sorted(arguments.feature),
            },
            keep=tuple(arguments.keep),
            format=arguments.format,
            part_rows=arguments.part_rows,
        )
        with job.store() as store, contextlib.ExitStack() as stack:
            if store.begun:
                out.note(f"going on with what is in {target}")
            totals = _done(job, store, arguments, made, card, stack, out)
    _tell(target, totals, totals.rows - store.added, time.monotonic() - began, out)
    if totals.rows and totals.errors == totals.rows:
        raise GenerationError(
            f"All {totals.rows} rows ended with an error; the first one: {totals.first_error}",
            hint=f"Mend the inputs or the options, delete {target}, and run the job again.",
        )
    return 0


def _done(
    job: Job,
    store: Store,
    arguments: argparse.Namespace,
    made: InferenceEngine,
    card: ModelCard,
    stack: contextlib.ExitStack,
    out: Output,
) -> Totals:
    def lanes() -> Sequence[Lane]:
        if arguments.replicas > 1 or arguments.cluster is not None:
            wanted = _wanted(arguments, made, card, job.task)
            return stack.enter_context(replicas(wanted, arguments.replicas, arguments.cluster))
        model = load_named(arguments.model, made, arguments, out, job.task.handle)
        lane = LocalLane(model, job.task)

        def close(kind: type[BaseException] | None, *_: object) -> None:
            # Ctrl-C ends the process at once: what is done is on the disk, what is not needs no orderly end
            if kind is not KeyboardInterrupt:
                lane.close()
                model.close()

        stack.push(close)
        return [lane]

    with ProgressLine(out) as line:

        def report(done: int, total: int) -> None:
            line(Progress(stage=job.task.name, done=done, total=total, unit="bytes"))

        return job.run(store, lanes, report)


def _wanted(arguments: argparse.Namespace, made: InferenceEngine, card: ModelCard, task: Task) -> Wanted:
    flags: dict[str, object] = {}
    for words in arguments.feature:
        flags.update(parse_flags(words))
    path = Path(arguments.model).expanduser()
    return Wanted(
        model=str(path.resolve()) if path.exists() else arguments.model,
        task=task,
        plugin=arguments.plugin,
        features=flags,
        offline=True if arguments.offline else None,
        needs=made.fit(card),
        gpu=made.device.backend == "cuda",
    )


def _task(arguments: argparse.Namespace, made: InferenceEngine, card: ModelCard) -> Task:
    """The task that was named, or the one that the model is for, with its options.

    Raises:
        InvalidParameterError: options of another task were given.
        UnsupportedInputError: the model's kind has no task.
    """
    name = arguments.task or _usual(made, card)
    mine = {option.name: option for option in _BY_TASK.get(name, ())}
    given = {
        option.name
        for options in _BY_TASK.values()
        for option in options
        if getattr(arguments, option.name) not in (None, [])
    }
    if strange := given - mine.keys():
        flags = ", ".join(f"--{item.replace('_', '-')}" for item in sorted(strange))
        raise InvalidParameterError(f"The task {name} takes no {flags}.", hint="mlxengine batch --help")
    if name == "rerank" and "embeddings" in made.explain(card).claim.capabilities:
        raise UnsupportedInputError(
            f"{card.id} is not a cross-encoder.", hint="Choose one, such as BAAI/bge-reranker-base."
        )
    kind = TASKS[name]
    values: dict[str, Any] = {item: getattr(arguments, item) for item in mine}
    if kind is Generate:
        for option in mine.values():
            if values[option.name] is None:
                values[option.name] = option.default
        values = {"instructions": values["system"], "params": text.params(values)}
    if arguments.field is not None:
        values["column"] = arguments.field
    if arguments.prompt is not None:
        if "prompt" not in {item.name for item in fields(kind)}:
            raise InvalidParameterError(
                f"The task {name} takes no --prompt.", hint="Its rows have a column for it."
            )
        values["prompt"] = arguments.prompt
    return kind(**values)


def _usual(made: InferenceEngine, card: ModelCard) -> str:
    claim = made.explain(card).claim
    kind = made.kinds.get(claim.kind)
    handle = None if kind is None else kind.find("handle")
    if handle is not None and issubclass(handle, EmbeddingHandle):
        return "rerank" if "reranking" in claim.capabilities else "embed"
    if handle is not None and issubclass(handle, TextHandle):
        return "generate"
    if handle is not None and issubclass(handle, ImageHandle):
        return "image"
    raise UnsupportedInputError(
        f"{card.id} is of kind {claim.kind!r}, for which there is no task.",
        hint="Jobs embed, generate, rerank and make pictures.",
    )


def _tell(target: Path, totals: Totals, resumed: int, seconds: float, out: Output) -> None:
    value = {
        "path": target,
        "rows": totals.rows,
        "errors": totals.errors,
        "parts": totals.parts,
        "resumed": resumed,
        "seconds": round(seconds, 3),
    }
    wrong = f", {totals.errors} of them with an error" if totals.errors else ""
    out.emit(
        value,
        lambda: out.line(f"{totals.rows} rows in {target}{wrong}, {seconds:.1f} s"),
    )


__all__ = ["configure", "run"]
