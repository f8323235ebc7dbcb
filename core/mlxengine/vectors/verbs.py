"""How a model that makes vectors is asked and measured from the command line."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..contract.events import Event, Finished
from ..contract.kinds import Answer, Asking, Measuring, Option, positive
from ..contract.requests import Request
from .handle import EmbeddingHandle
from .outputs import Embeddings
from .requests import EmbedRequest

_WORDS = "The quick brown fox jumps over the lazy dog while seven wizards mix nine bright potions. "


class _Asking(Asking):
    def request(self, words: Sequence[str], _options: Mapping[str, Any]) -> Request:
        return EmbedRequest(texts=words if len(words) > 1 else words[0].splitlines())

    def answer(self, events: Sequence[Event], _options: Mapping[str, Any]) -> Answer:
        rows: dict[int, list[float]] = {}
        for event in events:
            if isinstance(event, Embeddings) and event.vectors is not None:
                count, size = event.vectors.shape
                values = struct.unpack(f"{count * size}f", bytes(event.vectors.data))
                for place, index in enumerate(event.indices):
                    rows[index] = [round(value, 7) for value in values[place * size : (place + 1) * size]]
        vectors = [rows[index] for index in sorted(rows)]
        last = events[-1]
        assert isinstance(last, Finished)
        return Answer(
            value={"vectors": vectors, "mock": last.mock},
            text="\n".join(json.dumps(vector) for vector in vectors),
            stats=f"{len(vectors)} vectors, {last.metrics.total_seconds:.2f} s",
        )


class _Measuring(Measuring):
    options = (
        Option(flag="--prompt-words", type=positive, default=128, metavar="N"),
        Option(flag="--batch", type=positive, default=4, metavar="N", help="texts at once"),
    )

    def measure(self, handle: EmbeddingHandle, options: Mapping[str, Any]) -> Mapping[str, float]:
        words = options["prompt_words"]
        texts = [f"{number} {_WORDS * (words // 15 + 1)}"[: words * 6] for number in range(options["batch"])]
        start = time.perf_counter()
        vectors = handle.embed(texts)
        seconds = time.perf_counter() - start
        return {"texts/s": len(texts) / seconds, "tokens/s": vectors.usage.prompt_tokens / seconds}


RUN = _Asking()
BENCH = _Measuring()

__all__ = ["BENCH", "RUN"]
