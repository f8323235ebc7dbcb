"""The hooks. `list_kinds` is not among them: the kind is another's, and the claim names it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlxengine import Claim, Fit, Loaded, MemoryEstimate, hookimpl

if TYPE_CHECKING:
    from mlxengine import Event, ModelCard, Request


@hookimpl
def claim_model(card: ModelCard) -> Claim | None:
    if card.architecture != "echo":
        return None

    def estimate(workload: Any) -> MemoryEstimate:
        """What the conversations take: the kind's workload says how long they become."""
        words = workload.context_length or card.config.get("context_length", 4096)
        return MemoryEstimate(weights=0, cache=8 * words * workload.batch)

    return Claim(
        kind="llm",
        fit=Fit.NATIVE,
        files=("config.json",),
        capabilities=frozenset({"text", "chat", "tools"}),
        estimate=estimate,
        uses_mlx=False,
        reason="config.json says model_type echo",
    )


@hookimpl
def load_model(card: ModelCard) -> Loaded | None:
    from ._echo import load

    return load(card)


@hookimpl
def generate(model: object, request: Request) -> Iterator[Event | None] | None:
    from ._echo import Echo, answer

    return answer(model, request) if isinstance(model, Echo) else None
