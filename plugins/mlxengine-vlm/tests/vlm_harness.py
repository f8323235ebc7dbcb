"""What the tests of the vision-language plugin share: the hooks, driven as a scheduler would."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from mlxengine import (
    Device,
    Event,
    FileInfo,
    Finished,
    GenerateParams,
    ImagePart,
    LoadContext,
    Loaded,
    Message,
    ModelCard,
    ModelConfiguration,
    ModelRef,
    RunContext,
    Source,
    TextDelta,
    TextPart,
    TextRequest,
    Waiting,
)
from mlxengine.contract.features import FeatureRegistry, Layer, Level
from mlxengine.toolkit import backend
from mlxengine.toolkit.aside import Prepared
from mlxengine_vlm import plugin

TINY = Path(__file__).parents[3] / "tests" / "models" / "tiny-shapes-vlm"


def card_of(folder: Path, **settings: Any) -> ModelCard:
    """The card of a local folder, as the engine would make it."""
    return ModelCard(
        ref=ModelRef(path=folder),
        configuration=ModelConfiguration(id=str(folder), **settings),
        source=Source.FOLDER,
        commit="0" * 40,
        path=folder,
        files=tuple(
            FileInfo(path=item.name, size=item.stat().st_size)
            for item in sorted(folder.iterdir())
            if item.is_file()
        ),
        documents={item.name: json.loads(item.read_text()) for item in folder.glob("*.json")},
    )


def asking(text: str, *pictures: Any, **params: Any) -> TextRequest:
    """A request of one user message: pictures, then text."""
    parts = [*(ImagePart(picture) for picture in pictures), TextPart(text)]
    return TextRequest(messages=(Message.user(parts),), params=GenerateParams(**{"max_tokens": 24, **params}))


def text_of(events: Sequence[Any]) -> str:
    """The whole answer; an error among the events is raised."""
    for event in events:
        if isinstance(event, Exception):
            raise event
    assert isinstance(events[-1], Finished)
    return "".join(event.text for event in events if isinstance(event, TextDelta))


class Plugin:
    """The plugin's hooks under one mlx stream."""

    def __init__(self) -> None:
        self.registry = FeatureRegistry()
        for feature in plugin.list_features():
            self.registry.add(feature, "vlm")
        self.backend = backend.MLXBackend()
        self._loaded: list[Loaded] = []

    def features(self, **values: object) -> Any:
        return self.registry.view(Layer(Level.CALL, {f"vlm.{name}": v for name, v in values.items()}))

    def load(self, folder: Path, *, flags: dict[str, object] | None = None, **settings: Any) -> Any:
        """Claim, load and warm; returns the model."""
        card = card_of(folder, **settings)
        claim = plugin.claim_model(card)
        assert claim is not None
        if claim.problem is not None:
            raise claim.problem
        context = LoadContext(
            path=folder,
            configuration=card.configuration,
            features=self.features(**(flags or {})),
            device=Device.detect(),
        )
        with self.backend.stream():
            loaded = plugin.load_model(card, context)
            assert loaded is not None
            for _ in loaded.warm:
                pass
        self._loaded.append(loaded)
        return loaded.model

    def start(self, model: Any, request: Any, *, budget_ms: float = 100.0, **flags: object) -> Any:
        """The iterator of a request."""
        with self.backend.stream():
            found = plugin.generate(
                model, request, RunContext(features=self.features(**flags), budget_ms=budget_ms)
            )
        assert found is not None
        return found

    def admitted(self, model: Any, request: Any, **flags: object) -> Any:
        """The iterator of a request whose prompt is made, and whose row waits for the next step."""
        stream = self.start(model, request, **flags)
        with self.backend.stream():
            return stream.answers() if isinstance(stream, Prepared) else stream

    def run(
        self,
        streams: Sequence[Iterator[Event | None]],
        *,
        later: dict[int, list[Any]] | None = None,
        closing: dict[int, list[int]] | None = None,
    ) -> list[list[Any]]:
        """Step the iterators in turn until all have ended; an exception becomes the last item.

        ``later``: functions that start further streams at a given round; ``closing``: streams (by number)
        that are closed at a given round.
        """
        active = list(streams)
        found: list[list[Any]] = [[] for _ in active]
        live = set(range(len(active)))
        turn = 0
        with self.backend.stream():
            while live or (later and max(later) >= turn):
                for make in (later or {}).get(turn, ()):
                    active.append(make())
                    found.append([])
                    live.add(len(active) - 1)
                for number in (closing or {}).get(turn, ()):
                    active[number].close()
                    live.discard(number)
                turn += 1
                assert turn < 20_000, "the streams do not end"
                for i in sorted(live):
                    try:
                        event = next(active[i])
                    except StopIteration:
                        live.discard(i)
                    except Exception as error:
                        found[i].append(error)
                        live.discard(i)
                    else:
                        if isinstance(event, Waiting):
                            wait([event.until])
                        elif event is not None:
                            found[i].append(event)
        return found

    def answer(self, model: Any, request: Any, **flags: object) -> str:
        """The whole answer to a request that is served alone."""
        (events,) = self.run([self.start(model, request, **flags)])
        return text_of(events)

    def close(self) -> None:
        with self.backend.stream():
            for loaded in self._loaded:
                if loaded.close is not None:
                    loaded.close()
        self._loaded.clear()
