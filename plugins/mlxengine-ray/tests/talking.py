"""A plugin whose model says the id of its process and as many words as it is asked for, slowly.

Asked for ``stuck``, its step takes two seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from mlxengine import (
    Claim,
    Event,
    Finished,
    Fit,
    Loaded,
    MemoryEstimate,
    Request,
    TextDelta,
    TextRequest,
    TokenUsage,
    hookimpl,
)

SECONDS = 0.02  # for each word


@hookimpl
def claim_model(card: Any) -> Claim | None:
    if card.architecture != "talking":
        return None
    return Claim(
        kind="llm",
        fit=Fit.NATIVE,
        files=("config.json",),
        estimate=lambda _workload: MemoryEstimate(weights=1 << 20),
        uses_mlx=False,
        capabilities=frozenset({"text", "chat"}),
    )


@hookimpl
def load_model(card: Any, context: Any) -> Loaded:
    return Loaded(model=card.id, info={"context_length": 4096})


@hookimpl
def generate(model: object, request: Request, context: Any) -> Iterator[Event | None]:
    assert isinstance(request, TextRequest)
    return _said(request.messages[-1].text if request.messages else "0")


def _said(asked: str) -> Iterator[Event]:
    if asked == "stuck":
        time.sleep(2)
        asked = "0"
    yield TextDelta(text=str(os.getpid()))
    for number in range(int(asked.split()[-1])):
        time.sleep(SECONDS)
        yield TextDelta(text=f" {number}")
    yield Finished(usage=TokenUsage())
