"""What a registry entry is good for, by what it says itself: its ``tasks``, name, notes and summary.

Names are the publishers' claims: a repository called "Coder" is for code, one called "Instruct" follows
instructions. Nothing is concluded from the family, since most families have models of several sorts. Which
tasks there are, an entry's kind says (`Kind.tasks`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ..contract.configuration import ModelConfiguration
from ..contract.kinds import Kind
from ..errors import InvalidParameterError, ModelNotFoundError


def tasks_of(item: ModelConfiguration, kind: Kind | None) -> frozenset[str]:
    """The tasks of an entry of a kind."""
    known = kind.tasks if kind is not None else ()
    found = {task.name for task in known if task.of(item)}
    found -= {task.name for task in known if task.unless in found}
    return frozenset(found | {task.lower() for task in item.tasks})


def for_task(
    entries: Sequence[ModelConfiguration], kind: str, task: str, facts: Kind | None
) -> list[ModelConfiguration]:
    """The entries of a kind, with what is known of it, that are good for a task.

    Raises:
        InvalidParameterError: no entry of the kind has such a task, and it is none that is known.
        ModelNotFoundError: it is known, but no entry has it.
    """
    wanted = task.strip().lower()
    by_entry = [(item, tasks_of(item, facts)) for item in entries]
    found = [item for item, tasks in by_entry if wanted in tasks]
    if found:
        return found
    there = sorted(frozenset().union(*(tasks for _, tasks in by_entry)))
    known = {*there, *(item.name for item in (facts.tasks if facts is not None else ()))}
    if wanted in known:
        raise ModelNotFoundError(
            f"No entry of kind {kind!r} that may be chosen from is for the task {wanted!r}.",
            hint=f"Tasks that some are for: {', '.join(there) or 'none'}.",
        )
    near = difflib.get_close_matches(wanted, known, 3, 0.5)
    raise InvalidParameterError(
        f"{task!r} is not a task that models of kind {kind!r} have.",
        hint=f"Did you mean {' or '.join(near)}?" if near else f"Tasks: {', '.join(there) or 'none'}.",
    )


__all__ = ["for_task", "tasks_of"]
