"""The clauses that need no model to be loaded."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from datetime import date

from attrs import fields_dict

from ..cli._frame import VERBS
from ..contract.configuration import ModelConfiguration
from ..contract.events import Usage
from ..contract.features import Stage
from ..contract.hookspecs import Claim, Workload
from ..contract.kinds import Asking, Measuring, Mock
from ..errors import MLXEngineError
from ..handle import AsyncModelHandle, ModelHandle
from ._clauses import Part, clause, demand
from ._strangers import foreign_cards
from ._subject import Subject

_IMPORT_SECONDS = 0.5
_CLAIM_SECONDS = 0.02
_KIND_PARTS: dict[str, type] = {
    "handle": ModelHandle,
    "async_handle": AsyncModelHandle,
    "workload": Workload,
    "usage": Usage,
    "run": Asking,
    "bench": Measuring,
    "mock": Mock,
}


@clause(
    Part.CONTRACT,
    "importing the plugin, and asking for its features, models, kinds and commands, imports no model library",
    why="every engine, and every `mlxengine --help`, pays for it; a plugin whose "
    "library is broken would take the others down. Import libraries inside load_model.",
)
def imports_nothing_heavy(subject: Subject) -> None:
    report = subject.probed
    demand(not report["import_heavy"], f"importing {subject.value} imported {report['import_heavy']}")
    for key in ("features", "models", "kinds", "commands"):
        demand(not report[key]["heavy"], f"list_{key} imported {report[key]['heavy']}")
    took = report["import_seconds"]
    demand(took <= _IMPORT_SECONDS, f"importing {subject.value} took {took:.2f} s (limit {_IMPORT_SECONDS})")


@clause(
    Part.CONTRACT,
    "every hook takes arguments that its spec has, the required hooks are there, and none is a generator",
    why="pluggy drops keyword-only arguments and never passes those with defaults; a generator function "
    "returns an iterator for every model and request, so it can neither decline nor validate.",
)
def hook_signatures(subject: Subject) -> None:
    problems = subject.hooks.problems()
    demand(not problems, "; ".join(problems))


@clause(
    Part.CONTRACT,
    "every feature is named '<plugin>.<snake_case>', has a summary, and is off by default if experimental",
    why="names say whom a flag belongs to; two plugins with one name could not both be installed, and an "
    "experimental feature that is on was not asked for.",
)
def feature_names(subject: Subject) -> None:
    error = subject.hooks.host.records[0].error
    demand(error is None or error.hook != "list_features", str(error))
    for feature in subject.hooks.features():
        demand(feature.summary.strip(), f"{feature.name} has no summary")
        on = feature.stage is Stage.EXPERIMENTAL and feature.default is True
        demand(not on, f"{feature.name} is experimental but on by default")


@clause(
    Part.CONTRACT,
    "registry entries name a kind and a model, are unique, and say when and against what they were checked",
    why="`auto:` and `search` choose by these facts; an entry that claims a check without a date, or names "
    "no model, sends users to the wrong download.",
)
def registry_entries(subject: Subject) -> None:
    entries = subject.hooks.models()
    for entry in entries:
        _check_entry(subject, entry)
    twice = [key for key, count in Counter((item.id, item.revision) for item in entries).items() if count > 1]
    demand(not twice, f"listed twice: {twice}")


def _check_entry(subject: Subject, entry: ModelConfiguration) -> None:
    demand(entry.kind, f"the entry {entry.id!r} names no kind")
    try:
        demand(entry.ref.auto is None, f"the entry {entry.id!r} names no model")
    except MLXEngineError as error:
        demand(False, f"the entry {entry.id!r}: {error}")
    for name, value in entry.features:
        subject.features.find(name).coerce(value)
    for source in (entry.provenance, *entry.sources):
        if source is None:
            continue
        try:
            checked = date.fromisoformat(source.checked)
        except ValueError:
            checked = date.max
        demand(checked <= date.today(), f"the entry {entry.id!r} was checked on {source.checked!r}")
        demand(source.source, f"the entry {entry.id!r} does not say what it was checked against")
        unknown = set(source.fields) - set(fields_dict(type(entry)))
        demand(not unknown, f"the entry {entry.id!r} has no fields {sorted(unknown)} that were checked")


@clause(
    Part.CONTRACT,
    "the plugin claims its specimen, naming a kind, files that are there, and no pickles",
    why="nothing but the claimed files is downloaded, and a pickle runs code when it is read.",
    needs_specimen=True,
)
def claims_its_own(subject: Subject) -> None:
    claim = subject.claim
    demand(
        claim.kind and claim.kind == claim.kind.lower(), f"the kind is {claim.kind!r}, not a lower-case name"
    )
    subject.claimed_files()
    pickles = [item for item in claim.files if item.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt", ".py"))]
    demand(not pickles, f"the claim asks for {pickles}")
    demand(claim.problem is None, f"the claim of the specimen has the problem {claim.problem!r}")
    demand(
        all(item == item.lower() for item in claim.capabilities), f"capabilities {sorted(claim.capabilities)}"
    )


@clause(
    Part.CONTRACT,
    "the estimate gives whole bytes from 0, the same ones each time, and no fewer for more requests at once",
    why="loads, fit and the memory ledger go by it; what is no number of bytes refuses the model.",
    needs_specimen=True,
)
def estimate_is_sound(subject: Subject) -> None:
    estimate = subject.claim.estimate
    if estimate is None:
        return
    workload = subject.hooks.host.kind(subject.claim.kind).find("workload")
    one, again, four = (estimate(workload(batch=batch)).total for batch in (1, 1, 4))
    demand(one == again, f"two calls gave {one:,} and {again:,} bytes")
    demand(one <= four, f"one request takes {one:,} bytes and four take {four:,}")


@clause(
    Part.CONTRACT,
    "what the claim honours of other plugins' features is named '<plugin>.<snake_case>', and none is its own",
    why="whoever sets any other flag of theirs is refused; a name that is misspelt is never honoured.",
    needs_specimen=True,
)
def honours_others_by_name(subject: Subject) -> None:
    for name in sorted(subject.claim.honours):
        plugin, dot, flag = name.partition(".")
        demand(dot and plugin and flag.isidentifier() and name == name.lower(), f"{name!r} names no feature")
        demand(plugin != subject.name, f"{name!r} is its own, which it honours anyway")


@clause(
    Part.CONTRACT,
    "claim_model does no I/O, imports no model library, and gives the same answer for the same card",
    why="every installed plugin is asked about every model, also while others run; a claim that reads "
    "files or the network makes each load slower, and one that changes its mind cannot be explained.",
)
def claim_is_pure(subject: Subject) -> None:
    report = subject.probed["claims"]
    demand(not report["io"], f"claim_model called {', '.join(report['io'][:5])}")
    demand(not report["heavy"], f"claim_model imported {report['heavy']}")
    for card in subject.cards:
        first, second = (_facts(subject.hooks.claim(card)) for _ in range(2))
        demand(first == second, f"two calls for {card.id} gave {first} and {second}")


def _facts(claim: Claim | None) -> object:
    if claim is None:
        return None
    problem = None if claim.problem is None else (type(claim.problem), str(claim.problem))
    return claim.kind, claim.fit, claim.files, claim.capabilities, claim.uses_mlx, problem, claim.reason


@clause(
    Part.CONTRACT,
    f"claim_model answers within {_CLAIM_SECONDS * 1000:.0f} ms, the first time in a process too",
    why="every installed plugin is asked about every model: what the first call imports or reads, the first "
    "load of any kind pays for.",
)
def claim_is_quick(subject: Subject) -> None:
    first = subject.probed["first_claim_seconds"]
    for _ in range(2):  # modules that had to be compiled, or a busy machine, are not the plugin's
        if first > _CLAIM_SECONDS:
            first = min(first, subject.probe()["first_claim_seconds"])
    demand(
        first <= _CLAIM_SECONDS,
        f"{first * 1000:.1f} ms for the first claim in a fresh process, the quickest of three",
    )
    for card in subject.cards:
        took = []
        for _ in range(3):
            begun = time.perf_counter()
            subject.hooks.claim(card)
            took.append(time.perf_counter() - begun)
        demand(min(took) <= _CLAIM_SECONDS, f"{min(took) * 1000:.1f} ms for {card.id}, the quickest of three")


@clause(
    Part.CONTRACT,
    "claim_model declines models of other kinds and survives nonsense in a repository's JSON files",
    why="a plugin that claims what is not its own takes models away from the right one; one that raises on "
    "a stranger's config breaks loading for everybody.",
)
def declines_foreign_models(subject: Subject) -> None:
    for card in foreign_cards():
        held = {name: card.documents[name] for name in card.documents}
        try:
            claim = subject.hooks.claim(card)
        except Exception as error:
            demand(False, f"{type(error).__name__}: {error}, for a repository with {held}")
        else:
            demand(claim is None, f"it claimed a repository with {held}")


@clause(
    Part.CONTRACT,
    "every kind has a lower-case name, and what it names is there: handles, workload, usage, and the rest",
    why="they are imported when the first model is loaded, or a verb asks; a dead one is found by a user.",
)
def kinds_resolve(subject: Subject) -> None:
    for kind in subject.hooks.kinds():
        demand(kind.name and kind.name == kind.name.lower(), f"the kind {kind.name!r} is not lower-case")
        for what, base in _KIND_PARTS.items():
            found = kind.find(what)
            kept = found is None or (
                isinstance(found, base) if what in ("run", "bench") else _is(found, base)
            )
            demand(kept, f"{what} of the kind {kind.name!r} is {found!r}, not a {base.__name__}")


def _is(found: object, base: type) -> bool:
    return isinstance(found, type) and issubclass(found, base)


@clause(
    Part.CONTRACT,
    "every command has a summary, a name of its own, and a target that is there and can be called",
    why="`mlxengine --help` lists it before it is imported; a dead target is found by the first user.",
)
def commands_resolve(subject: Subject) -> None:
    for command in subject.hooks.commands():
        demand(command.summary.strip(), f"the command {command.name!r} has no summary")
        demand(command.name.replace("-", "").isalnum(), f"{command.name!r} is not a command's name")
        demand(command.name not in VERBS, f"{command.name!r} is a verb of mlxengine's own, which hides it")
        module, _, function = command.target.partition(":")
        found = getattr(importlib.import_module(module), function or "-", None)
        demand(callable(found), f"{command.target!r} of {command.name!r} is not a function")
