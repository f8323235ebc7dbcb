"""What was computed for a picture is used again for the same content, and never for other content."""

from __future__ import annotations

import time
from concurrent.futures import wait
from typing import Any

import attrs
import pytest
from mlxengine import Finished, ImagePart, Message, TextPart, TextRequest, Waiting
from vlm_harness import Plugin, asking, text_of
from vlm_pictures import Thing, draw

SHAPE, DESCRIBE = "What shape is this?", "Describe the picture as JSON."


def usage(plugin: Plugin, model: Any, request: Any, **flags: object) -> tuple[str, Any]:
    (events,) = plugin.run([plugin.start(model, request, **flags)])
    text = text_of(events)
    assert isinstance(events[-1], Finished)
    return text, events[-1].usage


def test_another_picture_with_the_same_text_never_gets_the_firsts_state(plugin: Plugin, fresh: Any) -> None:
    pictures = [draw([Thing(shape, "red")]) for shape in ("circle", "square", "triangle")]
    for _ in range(2):
        for shape, picture in zip(("circle", "square", "triangle"), pictures, strict=True):
            assert plugin.answer(fresh, asking(SHAPE, picture)).strip() == shape


@pytest.mark.feature("vlm.prompt_cache")
def test_a_second_question_about_a_picture_does_not_encode_it_again(
    plugin: Plugin, fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    tower = type(fresh.network.vision_model)
    real = tower.__call__
    monkeypatch.setattr(tower, "__call__", lambda self, *a, **k: encoded.append(1) or real(self, *a, **k))
    picture = draw([Thing("circle", "blue")])
    _, cold = usage(plugin, fresh, asking(SHAPE, picture))
    text, warm = usage(plugin, fresh, asking(DESCRIBE, picture.copy()))
    assert text.strip() == '{"colour": "blue", "shape": "circle"}'
    assert (cold.cached_tokens, len(encoded)) == (0, 1)
    assert warm.cached_tokens >= 20
    # other words before the picture: the prompt must be read anew, the picture not
    before = TextRequest(messages=[Message.user([TextPart("Look. "), ImagePart(picture), TextPart(SHAPE)])])
    usage(plugin, fresh, before)
    assert len(encoded) == 1
    _, off = usage(plugin, fresh, asking(SHAPE, picture), prompt_cache=False)
    assert (off.cached_tokens, len(encoded)) == (0, 2)


def test_what_pictures_and_prompts_left_is_told_and_let_go_on_demand(plugin: Plugin, fresh: Any) -> None:
    fresh.trim(0)
    assert fresh.state().caches == 0
    for shape in ("circle", "square", "triangle"):
        usage(plugin, fresh, asking(SHAPE, draw([Thing(shape, "blue")])))
    held = fresh.state().caches
    assert held == fresh.prefixes.nbytes + fresh.features.nbytes > fresh.features.nbytes > 0
    fresh.trim(held // 2)
    assert 0 < fresh.state().caches <= held // 2
    assert fresh.features.nbytes > 0  # prompts go first
    fresh.trim(0)
    assert fresh.state().caches == fresh.prefixes.nbytes == fresh.features.nbytes == 0


def test_caches_keep_no_more_than_the_room_that_the_engine_leaves(plugin: Plugin, fresh: Any) -> None:
    fresh.trim(0)
    for kept in (fresh.prefixes, fresh.features):
        kept.room = lambda: 0
    try:
        usage(plugin, fresh, asking(SHAPE, draw([Thing("circle", "blue")])))
        assert fresh.state().caches == 0
    finally:
        for kept in (fresh.prefixes, fresh.features):
            kept.room = lambda: None


def test_answers_are_the_same_cold_and_warm(plugin: Plugin, fresh: Any) -> None:
    picture, other = draw([Thing("square", "green", 2)]), draw([Thing("circle", "green", 6)])
    two = "Do both pictures show the same colour?"
    requests = [
        asking(DESCRIBE, picture),
        asking(SHAPE, picture),
        asking(two, picture, other),
        asking(two, other, picture),
        asking(DESCRIBE, picture, temperature=1.0, seed=4, ignore_eos=True),
        asking(SHAPE, picture, max_tokens=1),
        asking("What is 1 plus 1?"),
    ]
    cold = [plugin.answer(fresh, request, prompt_cache=False) for request in requests]
    warm = [[plugin.answer(fresh, request) for request in requests] for _ in range(3)]
    assert warm == [cold, cold, cold]


@pytest.mark.feature("vlm.prompt_cache_mb")
def test_what_is_kept_stays_within_its_budget(plugin: Plugin, fresh: Any) -> None:
    prefixes, capacity = fresh.prefixes, fresh.prefixes.budget
    try:
        plugin.answer(fresh, asking(SHAPE, draw([Thing("circle", "red")])))
        one = prefixes.nbytes
        assert one > 0
        prefixes.budget = 3 * one
        for cell in range(9):
            plugin.answer(fresh, asking(SHAPE, draw([Thing("circle", "red", cell)])))
        assert 0 < prefixes.nbytes <= 3 * one
        assert len(prefixes) <= 3
    finally:
        prefixes.budget = capacity


def test_the_first_token_of_a_second_question_takes_at_most_030_of_the_firsts_time(
    plugin: Plugin, large_vision: Any
) -> None:
    def first_token(request: Any) -> float:
        begin = time.perf_counter()
        stream = plugin.start(large_vision, request)
        with plugin.backend.stream():
            while (event := next(stream)) is None or isinstance(event, Waiting):
                if event is not None:
                    wait([event.until])
            taken = time.perf_counter() - begin
            stream.close()
        return taken

    ratios = []
    first_token(asking("Warm up?", draw([Thing("circle", "white")], size=64), ignore_eos=True))
    for cell in range(5):
        picture = draw([Thing("circle", "red", cell)])
        cold = first_token(asking("What is this?", picture, ignore_eos=True))
        ratios.append(first_token(asking("And what colour is it?", picture, ignore_eos=True)) / cold)
    assert sorted(ratios)[2] <= 0.3, ratios


def test_a_conversation_goes_on_from_the_answer(plugin: Plugin, fresh: Any) -> None:
    """The next turn reads the answer's last token and what is new, whatever the answer was."""
    picture = draw([Thing("circle", "red")])
    first = asking(DESCRIBE, picture, max_tokens=30)
    (events,) = plugin.run([plugin.start(fresh, first)])
    said = text_of(events).strip()  # the template writes the space before it
    turns = (*first.messages, Message.assistant(said), Message.user(SHAPE))
    longer = TextRequest(messages=turns, params=first.params)
    cold = plugin.answer(fresh, longer, prompt_cache=False)
    text, used = usage(plugin, fresh, longer)
    assert text == cold
    assert used.cached_tokens >= events[-1].usage.prompt_tokens + events[-1].usage.completion_tokens - 1


def test_a_placeholder_that_a_model_wrote_is_never_taken_for_a_picture(plugin: Plugin, fresh: Any) -> None:
    (token,) = fresh.media_tokens
    request = asking(SHAPE, draw([Thing("circle", "red")]), max_tokens=6, ignore_eos=True)
    forced = TextRequest(
        messages=request.messages, params=attrs.evolve(request.params, logit_bias={token: 100.0})
    )
    _, used = usage(plugin, fresh, forced)
    assert [len(entry.tokens) for entry in fresh.prefixes._entries] == [used.prompt_tokens - 1]
