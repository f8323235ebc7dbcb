"""Eleven architectures on random weights, with their own processors: no row disturbs another."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from mlxengine import GenerateParams, InferenceEngine, Message, TextPart, TextRequest, VideoPart
from mlxengine.toolkit import rows
from vlm_checkpoints import WHOLE, lay_out
from vlm_harness import Plugin, asking, text_of
from vlm_pictures import Thing, draw

RED, BLUE, GREEN = (draw([Thing("circle", colour)], size=64) for colour in ("red", "blue", "green"))


@pytest.fixture(scope="module")
def models(plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Any] = {}

    def model(kind: str) -> Any:
        if kind not in made:
            made[kind] = plugin.load(lay_out(kind, tmp_path_factory.mktemp("whole") / kind))
        return made[kind]

    return model


def requests(kind: str) -> list[TextRequest]:
    """One text about three pictures, two pictures in either order, no picture; greedy and seeded."""
    most = 1 if kind == "paligemma" else 2
    options: dict[str, Any] = {"ignore_eos": True, "max_tokens": 9}
    seeded = {**options, "temperature": 1.0}
    return [
        asking("w20 w31 w44", RED, **options),
        asking("w20 w31 w44", BLUE.resize((40, 56)), **options),
        asking("w20 w31 w44", GREEN, seed=1, **seeded),
        asking("w20 w31 w44", *(RED, BLUE)[:most], seed=2, **seeded),
        asking("w20 w31 w44", *(BLUE, RED)[:most], **options),
        asking("w50 w61", seed=3, **seeded),
    ]


QUICK = ("paligemma", "qwen3_vl")


def quick_or_slow(*kinds: str) -> list[Any]:
    """The architectures as parameters; those that only the long run checks are marked."""
    return [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


@pytest.mark.parametrize("kind", quick_or_slow(*WHOLE))
def test_together_after_a_failed_step_and_with_kept_state_rows_equal_their_solo_runs(
    kind: str, plugin: Plugin, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models(kind)
    alone = [plugin.answer(model, request, prompt_cache=False) for request in requests(kind)]
    assert len(set(alone)) >= 4

    def together(**flags: object) -> list[str]:
        started = [plugin.start(model, request, **flags) for request in requests(kind)]
        return [text_of(events) for events in plugin.run(started)]

    assert together(prompt_cache=False) == alone
    assert together() == alone  # what is kept now …
    assert [plugin.answer(model, request) for request in requests(kind)] == alone  # … is used here

    language = type(model.network.language_model)
    real, calls = language.__call__, [0]

    @functools.wraps(real)
    def flaky(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 11:
            raise RuntimeError("the device hiccuped")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(language, "__call__", flaky)
    assert together(prompt_cache=False) == alone
    assert calls[0] > 11


@pytest.mark.parametrize("kind", quick_or_slow(*WHOLE))
def test_rows_that_come_late_and_rows_that_are_cancelled_change_nobody_elses_answer(
    kind: str, plugin: Plugin, models: Any
) -> None:
    model = models(kind)
    asked = [
        *requests(kind),
        *(asking(f"w20 w{30 + n}", ignore_eos=True, max_tokens=6 + n) for n in range(4)),
    ]
    alone = [plugin.answer(model, request, prompt_cache=False) for request in asked]
    late = {
        turn: [lambda request=request: plugin.start(model, request, prompt_cache=False) for request in some]
        for turn, some in ((3, asked[4:7]), (8, asked[7:]))
    }
    for flags in ({"prompt_cache": False}, {}):
        started = [plugin.start(model, request, **flags) for request in asked[:4]]
        found = plugin.run(started, later=late, closing={2: [1], 11: [4]})
        for number in set(range(len(asked))) - {1, 4}:
            assert text_of(found[number]) == alone[number], number


def test_explain_tells_of_a_model_that_has_no_batch(tmp_path: Path) -> None:
    with InferenceEngine() as engine, engine.load_text(lay_out("mllama", tmp_path / "mllama")) as chat:
        explained = chat.explain("vlm.batch")
        assert (explained.value, explained.available) == (False, False)
        assert "pictures' states" in explained.reason
        assert chat.info["batch"] == 1
        params = GenerateParams(max_tokens=5, ignore_eos=True)
        assert chat.generate(asking("w20", RED).messages, params).usage.completion_tokens == 5


def test_a_pass_whose_own_token_is_given_at_once_counts_in_that_step(
    plugin: Plugin, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = models("paligemma"), []
    monkeypatch.setattr(model.batch.pace, "observe", lambda done, _seconds: steps.append(done))
    (events,) = plugin.run([plugin.start(model, asking("w20 w31", RED, max_tokens=4), prompt_cache=False)])
    read = [(len(done.drawn), done.prompt_tokens, done.queued) for done in steps]
    assert read[0] == (1, events[-1].usage.prompt_tokens, 0)
    assert set(read[1:]) == {(1, 0, 0)}


@pytest.mark.parametrize("kind", quick_or_slow("gemma3", "lfm2_vl", "qwen3_vl"))
def test_a_row_that_was_parked_goes_on_as_if_nothing_had_been(
    kind: str, plugin: Plugin, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models(kind)
    request = asking("w20 w31 w44", RED, BLUE, ignore_eos=True, max_tokens=30, temperature=1.0, seed=5)
    wanted = plugin.answer(model, request)
    monkeypatch.setattr(rows, "STALL", 3)
    stalled = plugin.admitted(model, request)
    with plugin.backend.stream():
        first = [next(stalled) for _ in range(4)]
    plugin.run([plugin.start(model, asking("w20", GREEN, ignore_eos=True, max_tokens=30))])
    assert not stalled._answer.inside
    (rest,) = plugin.run([stalled])
    assert text_of([event for event in first if event] + rest) == wanted


@pytest.mark.parametrize("kind", quick_or_slow("smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"))
def test_six_frames_of_a_video_give_what_mlx_vlm_gives(kind: str, plugin: Plugin, models: Any) -> None:
    """Where the model has no place for a video, its frames are pictures in a row."""
    import mlx.core as mx
    import numpy as np
    from mlx_vlm.generate import generate_step
    from mlx_vlm.utils import prepare_inputs

    model = models(kind)
    frames = [draw([Thing("circle", "red", cell)], size=48) for cell in range(6)]
    parts = [VideoPart(frames, fps=2.0), TextPart("w20 w31 w44")]
    request = TextRequest(
        messages=[Message.user(parts)], params=asking("", ignore_eos=True, max_tokens=8).params
    )
    (events,) = plugin.run([plugin.start(model, request, prompt_cache=False)])
    said = [token for event in events if hasattr(event, "token_ids") for token in event.token_ids]

    if kind == "smolvlm":
        media: dict[str, Any] = {"images": frames}
        tags = "<image>" * 6
    else:
        media = {"videos": [np.stack([np.asarray(frame) for frame in frames])], "fps": [2.0]}
        tags = "<|vision_start|><|video_pad|><|vision_end|>"
    with plugin.backend.stream():
        made = prepare_inputs(
            model.processor, prompts=f"<bos>{tags} w20 w31 w44", add_special_tokens=True, **media
        )
        ids, mask = made.pop("input_ids"), made.pop("attention_mask")
        pixels = made.pop("pixel_values", None)
        step = generate_step(
            ids, model.network, pixels, mask, max_tokens=8, temperature=0.0, prefill_step_size=None, **made
        )
        wanted = [int(token.item() if isinstance(token, mx.array) else token) for token, _ in step]
    assert said == wanted
    assert events[-1].usage.prompt_tokens == ids.shape[1]
