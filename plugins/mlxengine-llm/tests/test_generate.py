"""What is generated: the same as mlx-lm alone, the same in company, the same with the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import Plugin, raw, text_of, tokens_of
from mlxengine import Finished, FinishReason, GenerateParams, Grammar, Message, TextDelta, TextRequest
from mlxengine.toolkit import backend

PROMPTS = ["The sky", "A b c d e f", "once upon a time there was a small", "12", "ünïcode ☃ and more"]


def reference(plugin: Plugin, model: Any, prompt: str, count: int) -> list[int]:
    from mlx_lm.generate import generate_step

    tokens = mx.array(model.tokenizer.encode(prompt, add_special_tokens=True))
    with plugin.backend.stream():
        stream = mx.default_stream(mx.default_device())
        steps = generate_step(tokens, model.network, stream, max_tokens=count)
        return [int(token) for token, _ in steps]


def test_greedy_tokens_are_those_of_mlx_lm_alone_and_in_a_batch(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    wanted = [reference(plugin, model, prompt, 64) for prompt in PROMPTS]
    requests = [raw(prompt, max_tokens=64, temperature=0, ignore_eos=True) for prompt in PROMPTS]
    alone = [tokens_of(plugin.run([plugin.start(model, request)])[0]) for request in requests]
    assert alone == wanted
    together = plugin.run([plugin.start(model, request) for request in requests])
    assert [tokens_of(events) for events in together] == wanted


def test_streams_that_start_at_different_moments_equal_their_solo_runs(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    requests = [raw(PROMPTS[i % 5] + "!" * i, max_tokens=24 + i, ignore_eos=True) for i in range(8)]
    wanted = [tokens_of(plugin.run([plugin.start(model, request)])[0]) for request in requests]
    later = {
        3 * i: [lambda request=request: plugin.start(model, request)] for i, request in enumerate(requests)
    }
    found = plugin.run([], later=later)
    assert [tokens_of(events) for events in found] == wanted


def test_a_seed_gives_the_same_text_alone_and_among_mixed_samplers(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    settings: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 0},
        {"temperature": 0},
        {"temperature": 0.8, "top_p": 0.9, "seed": 7},
        {"temperature": 1.2, "top_k": 40, "seed": 7},
        {"temperature": 0.7, "min_p": 0.05, "seed": 3, "repetition_penalty": 1.2},
        {"temperature": 1.0},
        {"temperature": 0.9, "seed": 2**64 - 1, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    ]
    requests = [
        raw(PROMPTS[i % 5], max_tokens=32, ignore_eos=True, **item) for i, item in enumerate(settings)
    ]
    alone = [tokens_of(plugin.run([plugin.start(model, request)])[0]) for request in requests]
    together = [tokens_of(events) for events in plugin.run([plugin.start(model, r) for r in requests])]
    seeded = [i for i, item in enumerate(settings) if "seed" in item or item["temperature"] == 0]
    assert [together[i] for i in seeded] == [alone[i] for i in seeded]
    other = plugin.run(
        [plugin.start(model, raw(PROMPTS[0], max_tokens=32, ignore_eos=True, temperature=1.0, seed=1))]
    )
    assert tokens_of(other[0]) != alone[0]


def test_plain_rows_are_sampled_in_one_call(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxengine.toolkit import sampling

    shapes: list[tuple[int, ...]] = []
    tempered = sampling._tempered

    def spy(logprobs: mx.array, settings: sampling.SamplerSettings) -> mx.array:
        shapes.append(logprobs.shape)
        return tempered(logprobs, settings)

    monkeypatch.setattr(sampling, "_tempered", spy)
    model = plugin.load(tiny)
    requests = [raw("same length", max_tokens=8, temperature=0.5, ignore_eos=True) for _ in range(4)]
    plugin.run([plugin.start(model, request) for request in requests])
    assert {shape[0] for shape in shapes} == {4}


def test_joined_deltas_are_the_text_of_all_tokens(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    for seed in range(6):
        request = raw("x", max_tokens=60, temperature=1.5, seed=seed, ignore_eos=True)
        (events,) = plugin.run([plugin.start(model, request)])
        whole = model.tokenizer.decode(tokens_of(events), clean_up_tokenization_spaces=False)
        assert text_of(events) == whole
        assert events[-1].usage.completion_tokens == len(tokens_of(events)) == 60


def test_a_stop_text_is_found_across_token_borders_and_not_sent(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    request = {
        "max_tokens": 60,
        "temperature": 1.0,
        "seed": 5,
        "logit_bias": dict.fromkeys(range(68, 94), 8.0),
    }
    whole = plugin.text(model, "x", **request)
    stop = whole[20:24]
    (events,) = plugin.run([plugin.start(model, raw("x", stop=[stop, "never there"], **request))])
    assert text_of(events) == whole[: whole.index(stop)]
    assert (events[-1].reason, events[-1].stop) == (FinishReason.STOP, stop)
    (cut,) = plugin.run([plugin.start(model, raw("x", stop=[whole[-1] * 9], **request))])
    assert text_of(cut) == whole, "text that only looks like the beginning of a stop text is sent in the end"


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    (events,) = plugin.run([plugin.start(model, raw("The sky", max_tokens=40, ignore_eos=True))])
    tokens = tokens_of(events)
    stop = next(token for token in tokens if tokens.index(token) > 3)
    request = raw("The sky", max_tokens=40, ignore_eos=True, stop_token_ids=(stop,))
    (ended,) = plugin.run([plugin.start(model, request)])
    assert tokens_of(ended) == tokens[: tokens.index(stop)]
    assert (ended[-1].reason, ended[-1].stop) == (FinishReason.STOP, stop)


@pytest.mark.feature("llm.logprobs")
def test_logprobs_are_those_of_the_model_with_the_best_alternatives(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    request = raw("The sky", max_tokens=5, temperature=0, ignore_eos=True, logprobs=True, top_logprobs=3)
    (events,) = plugin.run([plugin.start(model, request)])
    scores = [score for event in events if isinstance(event, TextDelta) for score in event.logprobs]
    tokens = tokens_of(events)
    assert [score.token_id for score in scores] == tokens
    prompt = model.tokenizer.encode("The sky")
    with plugin.backend.stream():
        logits = model.network(mx.array([prompt + tokens[:-1]]))[0, len(prompt) - 1 :]
        wanted = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for row, score in zip(wanted, scores, strict=True):
            assert score.logprob == pytest.approx(row[score.token_id].item(), abs=1e-4)
            best = mx.argsort(-row)[:3].tolist()
            assert [item.token_id for item in score.top] == best
            assert score.top[0].logprob == pytest.approx(score.logprob)


@pytest.mark.feature("llm.logprobs")
def test_the_bytes_of_an_answers_tokens_joined_are_its_utf8(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    wanted = "é世!"
    request = raw("x", max_tokens=20, grammar=Grammar.regex(wanted), top_logprobs=2)
    (events,) = plugin.run([plugin.start(model, request)])
    scores = [score for event in events if isinstance(event, TextDelta) for score in event.logprobs]
    assert b"".join(score.bytes for score in scores) == wanted.encode() == text_of(events).encode()
    assert [score.bytes for score in scores] == [bytes([value]) for value in wanted.encode()]
    assert all(score.top[0].bytes == score.bytes for score in scores)


def test_logit_bias_and_penalties_change_what_is_chosen(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    (forced,) = plugin.run([plugin.start(model, raw("x", max_tokens=6, logit_bias={70: 1e4}))])
    assert tokens_of(forced) == [70] * 6
    request = {"max_tokens": 6, "logit_bias": {70: 1e4, 71: 9e3}, "ignore_eos": True}
    (spread,) = plugin.run([plugin.start(model, raw("x", frequency_penalty=100, **request))])
    assert set(tokens_of(spread)) == {70}
    (banned,) = plugin.run(
        [plugin.start(model, raw("x", max_tokens=6, logit_bias={70: 60, 71: 59}, presence_penalty=2))]
    )
    assert tokens_of(banned)[:2] == [70, 71]


def test_a_chat_is_rendered_with_the_template_and_counted(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    request = TextRequest(
        messages=(Message.user("Hi"),), instructions="Be brief.", params=GenerateParams(max_tokens=3)
    )
    (events,) = plugin.run([plugin.start(model, request)])
    whole = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert events[-1].usage.prompt_tokens == len(model.tokenizer.encode(whole))
    assert isinstance(events[-1], Finished)


def test_without_streaming_the_text_comes_in_one_piece(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    (events,) = plugin.run([plugin.start(model, raw("x", max_tokens=20, ignore_eos=True), streaming=False)])
    assert [type(event) for event in events] == [TextDelta, Finished]
    assert text_of(events) == plugin.text(model, "x", max_tokens=20, ignore_eos=True)


@pytest.mark.parametrize(("costly", "pieces"), [(False, 2100 // 64 - 1), (True, 5)])
def test_long_prompts_are_read_in_pieces_that_fit_the_budget(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch, costly: bool, pieces: int
) -> None:
    """Where new sizes are dear, pieces double."""
    monkeypatch.setattr(backend, "new_shape_seconds", lambda: float(costly))
    model = plugin.load(tiny)
    (whole,) = plugin.run([plugin.start(model, raw("ab " * 700, max_tokens=8), budget_ms=1000)])
    stream = plugin.start(model, raw("ab " * 700, max_tokens=8), budget_ms=0.001, prompt_cache=False)
    silent = 0
    events: list[Any] = []
    with plugin.backend.stream():
        for event in stream:
            silent += event is None
            if event is not None:
                events.append(event)
    assert silent >= pieces
    assert tokens_of(events) == tokens_of(whole)


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 9}, {"repetition_penalty": 1.3}])
def test_a_row_decodes_in_a_plain_cache_while_it_is_alone(
    plugin: Plugin, tiny: Path, params: dict[str, Any]
) -> None:
    """It leaves and rejoins the batch with company that comes and goes, and says the same."""
    model = plugin.load(tiny, flags={"prompt_cache": False})
    long = raw("the row that stays", max_tokens=90, ignore_eos=True, **params)
    (wanted,) = plugin.run([plugin.start(model, long)])
    short = raw("company", max_tokens=6, ignore_eos=True, **params)
    (brief,) = plugin.run([plugin.start(model, short)])
    later = {at: [lambda: plugin.start(model, short)] for at in (7, 30, 31, 60)}
    found = plugin.run([plugin.start(model, long)], later=later)
    assert tokens_of(found[0]) == tokens_of(wanted)
    assert all(tokens_of(events) == tokens_of(brief) for events in found[1:])
    stream = plugin.start(model, long)
    kinds = set()
    with plugin.backend.stream():
        for _ in range(12):
            next(stream)
            layers = model.batch._decoder._batch.layers
            kinds.add(type(layers[0]).__name__ if layers else None)
        stream.close()
    assert "KVCache" in kinds
