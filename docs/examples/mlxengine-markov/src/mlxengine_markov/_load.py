"""From a folder to a chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlxengine import LoadContext, Loaded, ModelCard
from mlxengine.errors import IncompatibleWeightsError

from .chain import UNITS, Chain


def load(card: ModelCard, context: LoadContext) -> Loaded:
    """Read and check the table."""
    order, unit = card.config.get("order"), card.config.get("unit", "word")
    if not isinstance(order, int) or order < 1 or unit not in UNITS:
        raise IncompatibleWeightsError(
            f"{card.id}: config.json says order={order!r}, unit={unit!r}.",
            hint=f"order must be an integer from 1, unit one of {', '.join(UNITS)}.",
        )
    chain = Chain(order=order, unit=unit, table=_table(context.path / "table.json"))
    return Loaded(model=chain, capabilities=frozenset({unit}), info={"contexts": len(chain.table)})


def _table(path: Path) -> Any:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IncompatibleWeightsError(f"{path} cannot be read as JSON: {error}.") from error
    good = isinstance(table, dict) and all(
        isinstance(counts, dict) and all(isinstance(count, int) and count > 0 for count in counts.values())
        for counts in table.values()
    )
    if not good:
        raise IncompatibleWeightsError(
            f"{path} is not a table of counts.", hint='It must look like {"context": {"next": 3}}.'
        )
    return table
