"""The clauses about a loaded model: they run the specimen's examples."""

from __future__ import annotations

import gc
import shutil
import statistics
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from ..contract.events import Event, Finished
from ..contract.requests import Request
from ..contract.tokens import TokenUsage
from ..engine import InferenceEngine
from ..errors import MLXEngineError
from ..handle import ModelHandle
from ..text.outputs import Prepared, TextDelta
from ..text.requests import PrepareRequest, TextRequest
from ._clauses import Broken, Part, clause, demand
from ._compare import answer, difference, foreign_values
from ._lane import Worker
from ._subject import Run, Subject

_THREAD_SECONDS = 2.0


def same(subject: Subject, left: Run, right: Run) -> str | None:
    """The first difference between what two runs said; ``None`` where there is none."""
    return difference(answer(left.events), answer(right.events), subject.specimen.tolerance)


@clause(
    Part.BEHAVIOUR,
    "the claimed files are enough to load the model",
    why="the engine downloads those and nothing else.",
)
def claimed_files_suffice(subject: Subject) -> None:
    demand(subject.loaded.model is not None, "load_model returned a model of None")


@clause(
    Part.BEHAVIOUR,
    "the iterator yields events, or None where a step has nothing to say",
    why="the scheduler hands on what it gets; anything else reaches the user's loop.",
)
def yields_only_events(subject: Subject) -> None:
    for number, run in enumerate(subject.solo):
        for event in run.events:
            demand(
                isinstance(event, Event), f"example {number} yielded a {type(event).__name__}: {event!r:.80}"
            )


@clause(
    Part.BEHAVIOUR,
    "every request ends with exactly one Finished, and nothing comes after it",
    why="callers wait for it; a second one, or text behind it, is lost or counted twice.",
)
def one_finished_and_last(subject: Subject) -> None:
    for number, run in enumerate(subject.solo):
        kinds = [type(event).__name__ for event in run.events]
        ends = sum(isinstance(event, Finished) for event in run.events)
        last = bool(run.events) and isinstance(run.events[-1], Finished)
        demand(ends == 1 and last, f"example {number} yielded {ends} Finished; its last events: {kinds[-3:]}")


@clause(
    Part.BEHAVIOUR,
    "events hold host memory and plain values, never lazy arrays",
    why="events go to other threads, where evaluating an array of the scheduler's stream fails, and a "
    "lazy array keeps the graph behind it in memory.",
)
def events_hold_host_values(subject: Subject) -> None:
    for number, run in enumerate(subject.solo):
        for event in run.events:
            found = next(foreign_values(event, f"example {number}: {type(event).__name__}"), None)
            demand(found is None, str(found))


@clause(
    Part.BEHAVIOUR,
    "the text deltas join to the answer, and their tokens add up to the usage",
    why="streaming and one-shot must tell users the same, and what is counted is what is billed.",
)
def deltas_add_up(subject: Subject) -> None:
    for number, (example, run) in enumerate(zip(subject.specimen.examples, subject.solo, strict=True)):
        deltas = [event for event in run.events if isinstance(event, TextDelta)]
        text = "".join(event.text for event in deltas)
        wanted = text if example.text is None else example.text
        demand(text == wanted, f"example {number} said {text!r}, expected {wanted!r}")
        tokens = sum(len(event.token_ids) for event in deltas)
        usage = run.events[-1].usage
        counted = usage.completion_tokens if isinstance(usage, TokenUsage) else 0
        demand(
            not tokens or tokens <= counted, f"example {number} gave {tokens} tokens but counted {counted}"
        )


@clause(
    Part.BEHAVIOUR,
    "a text request that can be prepared has as many tokens as its answer says",
    why="agents ask beforehand how full the context is; a count that is not the bill's misleads them.",
)
def prepared_counts_agree(subject: Subject) -> None:
    for number, (example, run) in enumerate(zip(subject.specimen.examples, subject.solo, strict=True)):
        if not isinstance(example.request, TextRequest):
            continue
        request = PrepareRequest(request=example.request)
        try:
            close = getattr(subject.start(subject.loaded.model, request), "close", None)
        except Broken:
            return  # the plugin prepares nothing
        if close is not None:
            subject.lane.step(close)
        [prepared] = subject.run(subject.loaded.model, [request])
        told = [len(event.token_ids) for event in prepared.events if isinstance(event, Prepared)]
        usage = run.events[-1].usage
        billed = usage.prompt_tokens if isinstance(usage, TokenUsage) else 0
        demand(told == [billed], f"example {number} was prepared with {told} tokens and billed with {billed}")


@clause(
    Part.BEHAVIOUR,
    "the same request gives the same answer again",
    why="a seed that does not reproduce, or state that leaks from one request into the next, makes every "
    "bug report useless.",
)
def same_request_same_answer(subject: Subject) -> None:
    for number, (example, before) in enumerate(zip(subject.specimen.examples, subject.solo, strict=True)):
        [again] = subject.run(subject.loaded.model, [example.request])
        found = same(subject, before, again)
        demand(found is None, f"example {number}, run twice: {found}")


@clause(
    Part.BEHAVIOUR,
    "requests that are served side by side get the answers that they get alone",
    why="the scheduler interleaves everybody's steps; shared state gives one user another's answer.",
)
def interleaving_changes_nothing(subject: Subject) -> None:
    examples = subject.specimen.examples
    demand(len(examples) > 1, "the specimen has one example; two are needed to interleave")
    together = subject.run(subject.loaded.model, [example.request for example in examples])
    for number, (alone, beside) in enumerate(zip(subject.solo, together, strict=True)):
        found = same(subject, alone, beside)
        demand(found is None, f"example {number}, beside the others: {found}")


@clause(
    Part.BEHAVIOUR,
    "the engine gives the answers that the bare steps give, from files that it found by itself",
    why="that is how users meet it: resolved, loaded on another thread, warmed, on the shared scheduler.",
)
def engine_gives_the_same(subject: Subject) -> None:
    alone, limit = subject.solo, subject.seconds * (1 + len(subject.specimen.examples))
    worker = Worker("conformance-engine", limit)
    worker.run(lambda: _through_the_engine(subject, alone))
    worker.close()


def _through_the_engine(subject: Subject, alone: Sequence[Run]) -> None:
    plugins = [(subject.name, subject.plugin)]
    with InferenceEngine(plugins=plugins) as engine, engine.load(subject.card.configuration) as handle:
        demand(handle.plugin == subject.name, f"the engine lets {handle.plugin!r} serve the specimen")
        for number, example in enumerate(subject.specimen.examples):
            result = ModelHandle.run(handle, example.request)
            found = same(subject, alone[number], Run((*result.events, result.finished), ()))
            demand(found is None, f"example {number}, through the engine: {found}")


@clause(
    Part.BEHAVIOUR,
    "close() ends a request within one step, for good, and disturbs nobody",
    why="that is how requests are cancelled; one that goes on holds the device for nobody.",
)
def cancel_within_a_step(subject: Subject) -> None:
    model, examples = subject.loaded.model, subject.specimen.examples
    for number, example in enumerate(examples):
        steps = subject.solo[number].steps
        limit = 3 * max(steps) + 0.1
        for advance in (0, 1, len(steps) // 2):
            _cancel(
                subject, model, example.request, advance, limit, f"example {number} after {advance} steps"
            )
        [again] = subject.run(model, [example.request])
        found = same(subject, subject.solo[number], again)
        demand(found is None, f"example {number}, after a cancelled run: {found}")


def _cancel(
    subject: Subject, model: object, request: Request, advance: int, limit: float, where: str
) -> None:
    iterator = subject.start(model, request)
    for _ in range(advance):
        subject.step(iterator)
    close = getattr(iterator, "close", None)
    if close is None:
        raise Broken(f"generate returned a {type(iterator).__name__}, which has no close()")
    begun = time.perf_counter()
    try:
        subject.lane.step(close)
    except RuntimeError as error:
        raise Broken(f"{where}: close() said {error}") from error
    took = time.perf_counter() - begun
    demand(took <= limit, f"{where}: close() took {took:.2f} s, the longest step three times less")
    found, _ = subject.step(iterator)
    demand(found is subject, f"{where}: a closed iterator went on with {found!r:.80}")


@clause(
    Part.BEHAVIOUR,
    "closing a model raises nothing, frees its memory and ends its threads",
    why="the engine makes room by closing idle models; what stays is lost until the process ends.",
)
def close_frees_memory(subject: Subject) -> None:
    demand(subject.solo, "the specimen has no example")  # what libraries start for good, they have started
    threads = set(threading.enumerate())
    request = subject.specimen.examples[0].request
    left = []
    for _ in range(3):
        before = subject.lane.active_bytes()
        loaded = subject.load(subject.claimed_files())
        subject.run(loaded.model, [request])
        watch = _watch(loaded.model)
        subject.close(loaded)
        del loaded
        subject.lane.step(gc.collect)
        demand(
            watch is None or watch() is None, f"something still holds the closed {watch and watch()!r:.80}"
        )
        left.append(subject.lane.active_bytes() - before)
    deadline = time.monotonic() + _THREAD_SECONDS
    while (own := _threads_since(threads)) and time.monotonic() < deadline:
        time.sleep(0.02)
    demand(not own, f"the threads {', '.join(own)} go on after close")
    kept = statistics.median(left)
    slack = subject.specimen.slack_bytes
    demand(kept <= slack, f"{kept:,.0f} bytes stayed in use after close (slack {slack:,})")


def _threads_since(before: set[threading.Thread]) -> list[str]:
    """The names of the threads that a model has started, and that go on."""
    return sorted(item.name for item in threading.enumerate() if item not in before)


def _watch(model: object) -> weakref.ref[object] | None:
    try:
        return weakref.ref(model)
    except TypeError:  # a tuple, a dict or a class with slots
        return None


@clause(
    Part.BEHAVIOUR,
    "what cannot be served, and files that are broken, end with a typed error",
    why="callers handle errors by their type; a KeyError from inside a library tells a user nothing.",
)
def errors_are_typed(subject: Subject) -> None:
    for request, wanted in subject.specimen.refused:
        try:
            subject.run(subject.loaded.model, [request])
        except wanted:
            continue
        except Broken:
            raise
        except Exception as error:
            demand(
                False, f"{request!r:.120} ended with {type(error).__name__}: {error}, not {wanted.__name__}"
            )
        demand(False, f"{request!r:.120} was served, not refused with {wanted.__name__}")
    with tempfile.TemporaryDirectory() as folder:
        _load_truncated(subject, Path(folder) / "model")


def _load_truncated(subject: Subject, folder: Path) -> None:
    if subject.specimen.path.is_file():
        return
    shutil.copytree(subject.claimed_files(), folder)
    held = [
        item for item in subject.card.files if any(fnmatch(item.path, mask) for mask in subject.claim.files)
    ]
    largest = max(held, key=lambda item: item.size)
    with (folder / largest.path).open("r+b") as stream:
        stream.truncate(largest.size // 2)
    try:
        loaded = subject.load(folder, subject.card_of(folder))
    except MLXEngineError:
        return
    except Broken:
        raise
    except Exception as error:
        raise Broken(
            f"with {largest.path} cut in half, loading raised {type(error).__name__}: {error}"
        ) from error
    subject.close(loaded)
    demand(False, f"the model loaded although {largest.path} was cut in half")


@clause(
    Part.BEHAVIOUR,
    "warming up yields nothing, can be given up and asked for again, and leaves no trace",
    why="it runs beside requests, on the scheduler's thread, for whoever loads with warm_up=True.",
)
def warming_up_leaves_no_trace(subject: Subject) -> None:
    offered = subject.loaded.warm_up
    if offered is None:
        return
    answers = subject.solo  # before it
    before = subject.loaded.state().caches
    given_up = subject.lane.step(lambda: iter(offered()))
    subject.step(given_up)
    close = getattr(given_up, "close", None)
    if close is None:
        raise Broken(f"warm_up gave a {type(given_up).__name__}, which cannot be closed")
    subject.lane.step(close)
    steps = subject.lane.step(lambda: iter(offered()))
    while (found := subject.step(steps)[0]) is not subject:
        demand(found is None, f"warm_up yielded {found!r}; only Nones are steps")
    after = subject.loaded.state().caches
    demand(after == before, f"the model's caches held {before} bytes before it and {after} after it")
    for number, (example, alone) in enumerate(zip(subject.specimen.examples, answers, strict=True)):
        [again] = subject.run(subject.loaded.model, [example.request])
        changed = same(subject, alone, again)
        demand(changed is None, f"example {number}, after warming up: {changed}")


class _NobodysRequest(Request):
    """A request of a type that no plugin knows."""


@clause(
    Part.BEHAVIOUR,
    "generate returns None for a type of request that it does not know",
    why="that is how the engine tells 'not for this kind of model' from a failure.",
)
def declines_unknown_requests(subject: Subject) -> None:
    try:
        subject.start(subject.loaded.model, _NobodysRequest())
    except Broken:
        return
    demand(False, "it served a request of a type that nobody defined")
