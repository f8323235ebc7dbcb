"""What a registry entry is good for, by what it says itself: its ``tasks``, name, notes and summary.

Names are the publishers' claims: a repository called "Coder" is for code, one called "Instruct" follows
instructions. Nothing is concluded from the family, since most families have models of several sorts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from ..contract.configuration import ModelConfiguration
from ..errors import InvalidParameterError, ModelNotFoundError

# task: the kinds it is a task of, and words of the name or the summary that say so
_WORDS: dict[str, tuple[tuple[str, ...], str]] = {
    "chat": (("llm", "vlm"), r"instruct|chat|it"),
    "code": (("llm", "vlm"), r"coder?|code\w*|starcoder\d*|codestral|devstral"),
    "reasoning": (("llm", "vlm"), r"think|thinking|reason|reasoning|r1|qwq"),
    "multilingual": (("llm", "vlm", "embed"), r"multilingual|over \d+ languages"),
    "rerank": (("embed",), r"rerank\w*|cross-encoder"),
    "turbo": (("diffusion",), r"turbo|schnell|lightning|klein|few steps|four steps|one to four steps"),
    "edit": (("diffusion",), r"edit|kontext"),
    "video": (("vlm",), r"videos?"),
}


def tasks_of(item: ModelConfiguration) -> frozenset[str]:
    """The tasks of an entry."""
    text = f"{item.id.partition('@')[0]} {item.summary}".lower()
    found = {
        task
        for task, (kinds, words) in _WORDS.items()
        if item.kind in kinds and re.search(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])", text)
    }
    notes = (item.template_notes or "").lower()
    if notes:
        found.add("chat")
    if "think" in notes and "never thinks" not in notes:
        found.add("reasoning")
    if re.search(r"(?<!no )\btools\b", notes):
        found.add("tools")
    if item.kind == "embed" and "rerank" not in found:
        found.add("embedding")
    return frozenset(found | {task.lower() for task in item.tasks})


def for_task(entries: Sequence[ModelConfiguration], kind: str, task: str) -> list[ModelConfiguration]:
    """The entries that are good for a task.

    Raises:
        InvalidParameterError: no entry of the kind has such a task, and it is none that is known.
        ModelNotFoundError: it is known, but no entry has it.
    """
    wanted = task.strip().lower()
    found = [item for item in entries if wanted in tasks_of(item)]
    if found:
        return found
    there = sorted(frozenset().union(*map(tasks_of, entries)))
    known = {*there, *_WORDS, "tools", "embedding"}
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
