"""The plugins of text behind one face, for tests that hold for each of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from mlxengine import GenerateParams, Request, ScoreRequest, TextDelta, TextRequest, TextScore
from mlxengine.toolkit.aside import Prepared

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / f"plugins/mlxengine-{kind}/tests") for kind in ("llm", "vlm")]

import llm_harness  # noqa: E402
import mlxengine_llm.plugin  # noqa: E402
import mlxengine_vlm.plugin  # noqa: E402
import vlm_harness  # noqa: E402
from vlm_pictures import Thing, draw  # noqa: E402

PICTURE = draw([Thing("circle", "red")])


@frozen(kw_only=True)
class Kind:
    """What is different about a plugin of text.

    Args:
        name: the plugin's.
        hooks: its module.
        harness: drives them.
        folder: the folder of its tiny model, a llama, made in the one that is given.
        wide: the same with heads of at least 32 numbers, of which mlx packs no fewer.
        stored: what stands before ``layers.0`` in the names of the checkpoint's tensors.
        paths: what may stand there in an adapter of mlx's libraries, the library's own first.
        peft: the same in one of PEFT's.
        conversation: a request about something, with a picture where the model sees.
        layers: the network's decoder layers.
    """

    name: str
    hooks: Any
    harness: Any
    folder: Callable[[Path], Path]
    wide: Callable[[Path], Path]
    stored: str
    paths: tuple[str, ...]
    peft: tuple[str, ...]
    conversation: Callable[..., TextRequest]
    layers: Callable[[Any], Any]


KINDS = (
    Kind(
        name="llm",
        hooks=mlxengine_llm.plugin,
        harness=llm_harness.Plugin,
        folder=lambda folder: llm_harness.write_tiny(folder / "llama"),
        wide=lambda folder: llm_harness.write_tiny(folder / "wide", hidden_size=128),
        stored="model.",
        paths=("model.",),
        peft=("model.",),
        conversation=llm_harness.raw,
        layers=lambda model: model.network.model.layers,
    ),
    Kind(
        name="vlm",
        hooks=mlxengine_vlm.plugin,
        harness=vlm_harness.Plugin,
        folder=lambda _: vlm_harness.TINY,
        wide=lambda _: vlm_harness.TINY,
        stored="model.text_model.",
        paths=("language_model.", "model."),
        peft=("model.text_model.", "language_model.model.", "model.language_model."),
        conversation=lambda text, **params: vlm_harness.asking(text, PICTURE, **params),
        layers=lambda model: model.network.language_model.layers,
    ),
)


class Subject:
    """A plugin with a tiny model.

    Args:
        kind: the plugin.
        folder: the model's.
    """

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.plugin = kind.harness()

    def load(self, folder: Path | None = None, **settings: Any) -> Any:
        """Load a model, the tiny one if no other is named."""
        return self.plugin.load(folder or self.folder, **settings)

    def run(self, model: Any, *requests: Request, budget_ms: float = 100.0, **flags: object) -> list[Any]:
        """The events of requests that come together; an error is raised."""
        streams = [self.plugin.start(model, item, budget_ms=budget_ms, **flags) for item in requests]
        found: list[Any] = self.plugin.run(streams)
        for events in found:
            if isinstance(events[-1], Exception):
                raise events[-1]
        return found

    def admitted(self, model: Any, request: Request) -> Any:
        """The iterator of a request whose row waits for the next step, which may take its time."""
        stream = self.plugin.start(model, request, budget_ms=10_000.0)
        with self.plugin.backend.stream():
            return stream.answers() if isinstance(stream, Prepared) else stream

    def tokens(self, model: Any, text: str) -> list[int]:
        """The tokens of a text."""
        tokenizer = getattr(model, "tokenizer", None) or model.processor.tokenizer
        return list(tokenizer.encode(text))

    def opening(self, model: Any) -> int:
        """The token that a text opens with."""
        tokenizer = getattr(model, "tokenizer", None) or model.processor.tokenizer
        return int(tokenizer.bos_token_id)

    def scores(self, model: Any, *, budget_ms: float = 1000, **asked: Any) -> list[TextScore]:
        """The scores of texts, in their order."""
        (events,) = self.run(model, ScoreRequest(**asked), budget_ms=budget_ms)
        return sorted(events[:-1], key=lambda event: event.index)

    def passes(self, model: Any) -> list[tuple[int, int]]:
        """The rows and positions of each pass through the decoder layers, noted as the passes happen."""
        found: list[tuple[int, int]] = []
        layer = self.kind.layers(model)[0]
        own = type(layer)

        class Counting(own):  # type: ignore[misc, valid-type]
            def __call__(self, x: Any, *more: Any, **named: Any) -> Any:
                found.append(x.shape[:2])
                return super().__call__(x, *more, **named)

        layer.__class__ = Counting
        return found


def raw(text: str, **params: Any) -> TextRequest:
    """A prompt that no template is applied to."""
    return TextRequest(prompt=text, params=GenerateParams(**params))


def continued(tokens: Sequence[int], **params: Any) -> TextRequest:
    """Tokens that the model goes on from, whatever it thinks of ending."""
    settings = {"temperature": 0.0, "ignore_eos": True, **params}
    return TextRequest(prompt_tokens=tokens, params=GenerateParams(**settings))


def said(events: Sequence[Any]) -> list[Any]:
    """The tokens of an answer, with their log-probabilities."""
    return [item for event in events if isinstance(event, TextDelta) for item in event.logprobs]


def drawn(events: Sequence[Any]) -> tuple[int, ...]:
    """The tokens of an answer."""
    return tuple(item for event in events if isinstance(event, TextDelta) for item in event.token_ids)


def logprobs_of(scored: TextScore) -> np.ndarray[Any, Any]:
    """The log-probabilities of a score."""
    return np.array(scored.logprobs)
