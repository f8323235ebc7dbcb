"""A picture and a chat on one engine at the same time: each comes out as it does alone."""

from __future__ import annotations

import threading

import pytest
from mlxengine import GenerateParams, ImageReady, ImageRequest, InferenceEngine, Progress, TextDelta

from tests.hub import weights


@pytest.mark.parametrize("seed", [0, pytest.param(7, marks=pytest.mark.slow)])
def test_the_same_seed_makes_the_same_picture_alone_and_beside_a_running_chat(seed: int) -> None:
    request = ImageRequest(prompt="a red cross", seed=seed, steps=8, guidance=3.0)
    params = GenerateParams(max_tokens=24, temperature=0)
    with InferenceEngine() as engine:
        images = engine.load_images(weights.folder_of(weights.TINY_SD))
        chat = engine.load_text(weights.folder_of(weights.SMOLLM2))
        alone = [event for event in images.stream(request) if isinstance(event, ImageReady)]
        said_alone = chat.generate("Count to ten.", params).text
        order: list[str] = []
        said: list[str] = []
        begun = threading.Event()

        def talk() -> None:
            for event in chat.stream("Count to ten.", params):
                if isinstance(event, TextDelta):
                    said.append(event.text)
                    order.append("chat")
                    begun.set()

        thread = threading.Thread(target=talk)
        thread.start()
        assert begun.wait(60)
        beside = []
        for event in images.stream(request):
            if isinstance(event, Progress):
                order.append("picture")
            elif isinstance(event, ImageReady):
                beside.append(event)
        thread.join()
    first = order.index("picture")
    assert "chat" in order[first:]  # they did take turns
    assert beside[0].pixels.data == alone[0].pixels.data
    assert "".join(said) == said_alone
