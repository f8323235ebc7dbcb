"""The model: how often each unit followed each context, and how to draw the next one.

A chain of order n (Markov, 1913) draws the next unit from the counts of what followed the last n.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

UNITS = ("word", "character")
_JOINTS = {"word": " ", "character": ""}
Table = Mapping[str, Mapping[str, int]]


def split(text: str, unit: str) -> list[str]:
    """The text as words or as characters."""
    return text.split() if unit == "word" else list(text)


@frozen(kw_only=True)
class Chain:
    """A trained chain: ``table[context][unit]`` is a count, for contexts of up to ``order`` units."""

    order: int
    unit: str
    table: Table

    @classmethod
    def train(cls, text: str, *, order: int = 2, unit: str = "word") -> Chain:
        """Count what follows what in a text."""
        units = split(text, unit)
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for position, item in enumerate(units):
            for length in range(min(order, position) + 1):
                counts[_JOINTS[unit].join(units[position - length : position])][item] += 1
        return cls(order=order, unit=unit, table=counts)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``table.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_type": "markov", "order": self.order, "unit": self.unit}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (folder / "table.json").write_text(json.dumps(self.table, ensure_ascii=False, indent=1) + "\n")

    def walk(self, text: str, seed: int | None, *, backoff: bool) -> Iterator[tuple[str, float, int]]:
        """Each next piece of text, its probability, and the number of candidates, until none follows."""
        draw = random.Random(seed)
        seen = split(text, self.unit)
        while counts := self._successors(seen[-self.order :], backoff=backoff):
            [chosen] = draw.choices(tuple(counts), tuple(counts.values()))
            piece = _JOINTS[self.unit] + chosen if seen else chosen
            seen.append(chosen)
            yield piece, counts[chosen] / sum(counts.values()), len(counts)

    def _successors(self, context: list[str], *, backoff: bool) -> Mapping[str, int]:
        for start in range(len(context) + 1 if backoff else 1):
            if found := self.table.get(_JOINTS[self.unit].join(context[start:])):
                return found
        return {}
