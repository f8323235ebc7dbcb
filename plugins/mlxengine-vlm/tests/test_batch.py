"""Requests that are decoded together answer what each answers alone, whatever happens to the others."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest
from mlxengine import Finished, TextDelta
from mlxengine.errors import (
    GenerationError,
    InvalidParameterError,
    UnsupportedInputError,
)
from mlxengine.toolkit import rows
from mlxengine.toolkit.shapes import Shapes
from mlxengine_vlm._decoder import VisionDecoder
from sameness import check_same, on_gpu
from vlm_harness import TINY, Plugin, asking, text_of
from vlm_pictures import Thing, draw, scene

RED, BLUE = draw([Thing("circle", "red")]), draw([Thing("square", "blue")])
DESCRIBE = "Describe the picture as JSON."


def mixed(count: int = 16) -> list[Any]:
    """Different pictures, sizes and questions; text alone; two pictures; greedy and sampled with seeds."""
    rng = random.Random(5)
    found = []
    for number in range(count):
        sampling: dict[str, Any] = {}
        if number % 2:
            sampling = {
                "temperature": 1 + 0.8 * (number % 5),
                "seed": number,
                "top_p": (0.9, 1.0)[number % 3 > 0],
                "ignore_eos": True,
                "max_tokens": 8 + number,
            }
        if number % 7 == 3:
            sampling |= {"repetition_penalty": 1.3, "logit_bias": ((20 + number, 1.5),)}
        if number % 5 == 4:
            found.append(asking(f"What is {number % 4} plus 3?", **sampling))
        elif number % 5 == 2:
            pair = [draw(scene(rng, 1), size=size) for size in (64, 100)]
            found.append(asking("Do both pictures show the same colour?", *pair, **sampling))
        else:
            picture = draw(scene(rng, 1 + number % 4), size=(64, 256, 90)[number % 3])
            question = (DESCRIBE, "How many shapes are there?", "What shape is this?")[number % 3]
            found.append(asking(question, picture, **sampling))
    return found


def scored(request: Any) -> Any:
    """With the log-probabilities that `check_same` compares."""
    return attrs.evolve(request, params=attrs.evolve(request.params, top_logprobs=2))


@pytest.mark.feature("vlm.batch")
def test_16_mixed_requests_two_of_them_cancelled_equal_their_solo_runs(plugin: Plugin, tiny: Any) -> None:
    requests = [scored(request) for request in mixed()]
    runs = [plugin.run([plugin.start(tiny, request, prompt_cache=False)])[0] for request in requests]
    alone = [text_of(events) for events in runs]
    early = [plugin.start(tiny, request, prompt_cache=False) for request in requests[:6]]
    later: dict[int, list[Any]] = {}
    for number, request in enumerate(requests[6:], 6):
        later.setdefault(1 + number // 2, []).append(
            lambda request=request: plugin.start(tiny, request, prompt_cache=False)
        )
    cancelled = {3: 6, 7: 9}
    found = plugin.run(early, later=later, closing={turn: [n] for n, turn in cancelled.items()})
    for number, wanted in enumerate(alone):
        if number in cancelled:
            said = "".join(event.text for event in found[number] if isinstance(event, TextDelta))
            assert on_gpu() or wanted.startswith(said)
        else:
            check_same(found[number], runs[number], sampled=number % 2 == 1)
            assert on_gpu() or text_of(found[number]) == wanted, number
    assert len(set(alone)) > 10


def test_a_seed_gives_the_same_text_alone_in_a_batch_and_after_late_joins(plugin: Plugin, tiny: Any) -> None:
    sampling = {"temperature": 4.0, "ignore_eos": True, "max_tokens": 30}
    request = scored(asking(DESCRIBE, RED, seed=0, **sampling))
    (wanted,) = plugin.run([plugin.start(tiny, request)])
    other = asking(DESCRIBE, RED, seed=1, **sampling)
    join = {4: [lambda: plugin.start(tiny, asking(DESCRIBE, BLUE, temperature=2.0))]}
    found = plugin.run([plugin.start(tiny, other), plugin.start(tiny, request)], later=join)
    check_same(found[1], wanted, sampled=True)
    assert on_gpu() or text_of(found[1]) == text_of(wanted)
    assert text_of(found[0]) != text_of(wanted)


def test_stop_texts_and_end_tokens_belong_to_one_request(plugin: Plugin, tiny: Any) -> None:
    requests = [
        asking(DESCRIBE, RED, stop=("shape",)),
        asking(DESCRIBE, RED),
        asking(DESCRIBE, RED, ignore_eos=True, max_tokens=20),
        asking(DESCRIBE, RED, max_tokens=3),
    ]
    found = plugin.run([plugin.start(tiny, request) for request in requests])
    full = text_of(found[1])
    assert text_of(found[0]) == full[: full.index("shape")]
    assert found[0][-1].stop == "shape"
    assert text_of(found[2]).startswith(full)
    assert len(text_of(found[2])) > len(full)
    assert (found[3][-1].reason, found[3][-1].usage.completion_tokens) == ("length", 3)


def test_without_max_tokens_an_answer_goes_on_to_the_contexts_end(plugin: Plugin) -> None:
    model = plugin.load(TINY, context_length=300)
    sums = [asking("What is 1 plus 1?", max_tokens=most, ignore_eos=True) for most in (None, 9)]
    found = plugin.run([plugin.start(model, request) for request in sums])
    assert [events[-1].reason for events in found] == ["context", "length"]
    assert found[0][-1].usage.total_tokens == 300


def test_a_request_that_fails_ends_alone(plugin: Plugin, tiny: Any) -> None:
    wanted = plugin.answer(tiny, asking(DESCRIBE, BLUE))
    bad = plugin.admitted(tiny, asking(DESCRIBE, RED), prompt_cache=False)

    class Broken:
        shape = bad._answer.sight.prompt.given["pixel_values"].shape

        def __getattr__(self, name: str) -> Any:
            raise ValueError("this picture cannot be encoded")

    bad._answer.sight.prompt.given["pixel_values"] = Broken()
    found = plugin.run(
        [
            plugin.start(tiny, asking(DESCRIBE, BLUE), prompt_cache=False),
            bad,
            plugin.start(tiny, asking(DESCRIBE, BLUE), prompt_cache=False),
        ]
    )
    assert [text_of(found[0]), text_of(found[2])] == [wanted, wanted]
    assert isinstance(found[1][-1], GenerationError)
    assert isinstance(found[1][-1].__cause__, ValueError)


def test_a_step_that_raises_is_done_again_for_all_rows(
    plugin: Plugin, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = mixed(4)
    alone = [plugin.answer(tiny, request) for request in requests]
    language = type(tiny.network.language_model)
    real, calls = language.__call__, [0]

    def flaky(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 9:
            raise RuntimeError("the device hiccuped")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(language, "__call__", flaky)
    found = plugin.run([plugin.start(tiny, request) for request in requests])
    assert calls[0] > 9
    assert [text_of(events) for events in found] == alone


def test_a_reader_that_stalls_keeps_its_place_and_delays_nobody(
    plugin: Plugin, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "STALL", 4)
    slow = asking(DESCRIBE, RED, ignore_eos=True, max_tokens=40, temperature=1.0, seed=3)
    wanted = plugin.answer(tiny, slow)
    stalled = plugin.admitted(tiny, slow)
    with plugin.backend.stream():
        first = [next(stalled) for _ in range(3)]
    quick = plugin.run([plugin.start(tiny, asking(DESCRIBE, BLUE, ignore_eos=True, max_tokens=60))])
    assert isinstance(quick[0][-1], Finished)
    assert not stalled._answer.inside, "it should have been taken out of the batch"
    (rest,) = plugin.run([stalled])
    assert text_of([event for event in first if event] + rest) == wanted


def test_a_cancelled_request_leaves_the_batch_before_the_next_step(plugin: Plugin, tiny: Any) -> None:
    stream = plugin.admitted(tiny, asking(DESCRIBE, RED, ignore_eos=True, max_tokens=500))
    with plugin.backend.stream():
        for _ in range(6):
            next(stream)
        assert len(tiny.batch) == 1
        stream.close()
        assert len(tiny.batch) == 0
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.feature("vlm.streaming")
def test_deltas_joined_are_the_whole_answer_and_one_without_streaming(plugin: Plugin, tiny: Any) -> None:
    (events,) = plugin.run([plugin.start(tiny, asking(DESCRIBE, RED))])
    (whole,) = plugin.run([plugin.start(tiny, asking(DESCRIBE, RED), streaming=False)])
    assert text_of(events) == text_of(whole)
    assert len(events) > 5
    assert [type(event) for event in whole] == [TextDelta, Finished]


@pytest.mark.feature("vlm.logprobs")
def test_log_probabilities_are_of_the_tokens_that_were_drawn(plugin: Plugin, tiny: Any) -> None:
    (events,) = plugin.run([plugin.start(tiny, asking(DESCRIBE, RED, logprobs=True, top_logprobs=3))])
    scored = [score for event in events if isinstance(event, TextDelta) for score in event.logprobs]
    assert "".join(score.text for score in scored) == text_of(events)
    assert all(score.top[0].token_id == score.token_id and len(score.top) == 3 for score in scored)
    assert all(-0.5 < score.logprob <= 0 for score in scored)
    assert b"".join(score.bytes or b"" for score in scored) == text_of(events).encode()


def test_text_alone_needs_no_picture_and_raw_prompts_and_tokens_work(plugin: Plugin, tiny: Any) -> None:
    from mlxengine import GenerateParams, TextRequest

    raw = "<|im_start|>User: What is 2 plus 3?<end_of_utterance>\nAssistant:"
    assert plugin.answer(tiny, asking("What is 2 plus 3?")).strip() == "5"
    assert plugin.answer(tiny, TextRequest(prompt=raw, params=GenerateParams(max_tokens=4))).strip() == "5"
    tokens = tiny.processor.tokenizer.encode(raw)
    assert plugin.answer(tiny, TextRequest(prompt_tokens=tokens)).strip() == "5"
    with pytest.raises(InvalidParameterError):
        plugin.answer(tiny, TextRequest(prompt_tokens=[99_999]))


def test_n_answers_to_one_picture_are_told_apart_and_follow_their_seeds(plugin: Plugin, fresh: Any) -> None:
    sampling = {"temperature": 4.0, "ignore_eos": True, "max_tokens": 12}
    (events,) = plugin.run([plugin.start(fresh, asking(DESCRIBE, RED, n=3, seed=7, **sampling))])
    assert isinstance(events[-1], Finished)
    texts = [
        "".join(event.text for event in events if isinstance(event, TextDelta) and event.index == index)
        for index in range(3)
    ]
    alone = [plugin.answer(fresh, asking(DESCRIBE, RED, seed=7 + index, **sampling)) for index in range(3)]
    assert texts == alone
    assert len(set(texts)) == 3


def test_what_this_plugin_does_not_have_is_refused_and_not_ignored(plugin: Plugin, tiny: Any) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    for request in (
        asking(DESCRIBE, RED, thinking=True),
        asking(DESCRIBE, RED, thinking_budget=5),
        attrs.evolve(asking(DESCRIBE, RED), tools=[tool]),
    ):
        with pytest.raises(UnsupportedInputError):
            plugin.answer(tiny, request)


def noted(monkeypatch: pytest.MonkeyPatch, part: Any) -> list[tuple[int, ...]]:
    """Shapes of what a part of the network is called with, while the test runs."""
    seen: list[tuple[int, ...]] = []
    real = type(part).__call__

    def call(self: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(first.shape))
        return real(self, first, *args, **kwargs)

    monkeypatch.setattr(type(part), "__call__", call)
    return seen


def test_prompts_that_wait_are_read_in_one_pass_and_their_pictures_encoded_in_one_call(
    plugin: Plugin, fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [draw([Thing(shape, "red")]) for shape in ("circle", "square", "triangle")]
    requests = [asking(DESCRIBE, picture) for picture in (*pictures, pictures[0])]
    requests += [asking(f"What is {number} plus 3?", max_tokens=12) for number in range(3)]
    alone = [plugin.answer(fresh, request, prompt_cache=False) for request in requests]
    plugin.run([plugin.admitted(fresh, request, prompt_cache=False) for request in requests])  # rows meet
    fresh.batch.pace.tokens = lambda budget_ms, *, running=False: 512
    try:
        passes = noted(monkeypatch, fresh.network.language_model)
        encoded = noted(monkeypatch, fresh.network.vision_model)
        found = plugin.run([plugin.admitted(fresh, request, prompt_cache=False) for request in requests])
    finally:
        del fresh.batch.pace.tokens
    assert [text_of(events) for events in found] == alone
    assert [shape[0] for shape in encoded] == [3], "one call, and the picture that two ask about once"
    read = [rows for rows, positions in passes if positions > 1]
    assert sum(read) == len(requests)
    assert len(read) <= 2, "those of about one length share a pass"
    assert max(shape[0] for shape in passes if shape[1] == 1) == len(requests)


def test_a_lone_row_keeps_its_plain_cache_and_gets_it_back_when_company_leaves(
    plugin: Plugin, tiny: Any
) -> None:
    request = asking(DESCRIBE, RED, ignore_eos=True, max_tokens=40)
    wanted = plugin.answer(tiny, request)
    long = plugin.admitted(tiny, request)
    kinds: list[str] = []
    other = None
    with plugin.backend.stream():
        said = []
        for turn in range(600):
            if turn == 12:
                other = plugin.admitted(tiny, asking("What is 2 plus 3?", ignore_eos=True, max_tokens=8))
            for stream in filter(None, (other, long)):
                event = next(stream, None)
                if stream is long and event is not None:
                    said.append(event)
            layers = tiny.batch._decoder._batch.layers
            if layers and (not kinds or kinds[-1] != type(layers[0]).__name__):
                kinds.append(type(layers[0]).__name__)
            if said and isinstance(said[-1], Finished):
                break
    assert kinds == ["KVCache", "BatchKVCache", "KVCache"]
    assert text_of(said) == wanted


def test_warming_up_reads_prompts_of_few_sizes_and_leaves_nothing_behind(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plugin.load(TINY, flags={"max_batch": 6})
    request = asking(DESCRIBE, RED)
    wanted = plugin.answer(model, request, prompt_cache=False)
    with plugin.backend.stream():
        model.trial.hold()
    model.shapes, model.context = Shapes(0.15), 300
    seen = noted(monkeypatch, model.network.language_model)
    with plugin.backend.stream():
        list(model.warm_up())
    read = {shape for shape in seen if shape[1] > 1}
    assert read == {(rows, length) for rows in (1, 2, 4) for length in (64, 128, 256)}
    assert {rows for rows, length in seen if length == 1} == {1, 2, 4, 6}
    assert model.state().caches == 0
    assert plugin.answer(model, request) == wanted


@pytest.mark.feature("vlm.max_batch")
def test_requests_beyond_the_largest_batch_wait_and_are_answered(
    plugin: Plugin, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = mixed(5)
    wanted = [plugin.answer(tiny, request) for request in requests]
    sizes: list[int] = []
    step = VisionDecoder.step

    def counted(self: Any, plan: Any) -> Any:
        sizes.append(len(self))
        return step(self, plan)

    monkeypatch.setattr(VisionDecoder, "step", counted)
    narrow = plugin.load(TINY, flags={"max_batch": 2})
    found = plugin.run([plugin.start(narrow, request) for request in requests])
    assert [text_of(events) for events in found] == wanted
    assert max(sizes) == 2
