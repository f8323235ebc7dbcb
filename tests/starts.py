"""How long commands take to start, beside each other on a machine that may be busy."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def processor_seconds(
    commands: Mapping[str, Sequence[str]], folder: Path, rounds: int = 15
) -> dict[str, float]:
    """The lower quartile of each command's processor time, in alternating runs.

    What else runs on the machine adds to single runs, and now and then spares one: so neither the mean nor
    the least. Modules are compiled into ``folder`` first, as they are once anything was run.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    took: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, words in commands.items():
            before = _children()
            subprocess.run(words, check=True, capture_output=True, timeout=60, env=environment)
            if turn:
                took[name].append(_children() - before)
    return {name: statistics.quantiles(values)[0] for name, values in took.items()}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
