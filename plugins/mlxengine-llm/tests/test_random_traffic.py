"""Random traffic: whatever comes, leaves, waits and is read beside it, an answer is the one it is alone."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from attrs import define, field, frozen
from llm_harness import Plugin, write_adapter, write_tiny
from mlxengine import (
    ChoiceFinished,
    Finished,
    GenerateParams,
    Grammar,
    LoadAdapterRequest,
    TextDelta,
    TextRequest,
)
from mlxengine.toolkit import batch as shared
from mlxengine.toolkit import decoding, joining, rows
from mlxengine.toolkit.shapes import Shapes
from sameness import ON_GPU, on_gpu

CLOSE = 1e-3
"""Nats by which log-probabilities may differ here: random models of many layers make much of a rounding."""

LONGEST, MOST_NEW = 600, 24
BYTES = range(3, 259)


@frozen(kw_only=True)
class Kind:
    """A tiny model, and what it is loaded with."""

    config: dict[str, Any] = field(factory=dict)
    flags: dict[str, object] = field(factory=dict)
    adapters: tuple[str, ...] = ()
    close: float = CLOSE


HYBRID = {
    "model_type": "qwen3_next",
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "shared_expert_intermediate_size": 32,
    "mlp_only_layers": [0],
    "moe_intermediate_size": 32,
    "head_dim": 8,
    "partial_rotary_factor": 0.5,
}
MAMBA = {
    "model_type": "mamba",
    "state_size": 8,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
}
SLIDING = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "head_dim": 8,
    "rms_norm_eps": 1e-4,
    "num_key_value_heads": 1,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 8,
    "sliding_window": 32,
    "sliding_window_pattern": 2,
}
LISTS = {
    "model_type": "baichuan_m1",
    "sliding_window": 40,
    "sliding_window_layers": [0],
    "conv_window": 2,
    "tie_word_embeddings": False,
}
PAIRS = {
    "model_type": "falcon_h1",
    "attention_bias": False,
    "attention_in_multiplier": 1.0,
    "attention_out_multiplier": 0.9,
    "embedding_multiplier": 1.0,
    "head_dim": 8,
    "initializer_range": 0.02,
    "key_multiplier": 0.4,
    "lm_head_multiplier": 1.0,
    "mamba_chunk_size": 16,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 32,
    "mamba_d_state": 8,
    "mamba_expand": 1,
    "mamba_n_groups": 1,
    "mamba_n_heads": 2,
    "mamba_norm_before_gate": False,
    "mamba_proj_bias": False,
    "mamba_rms_norm": False,
    "mamba_use_mlp": True,
    "mlp_bias": False,
    "mlp_expansion_factor": 2,
    "mlp_multipliers": [0.9, 0.6],
    "projectors_bias": False,
    "rope_traditional": False,
    "ssm_in_multiplier": 1.25,
    "ssm_multipliers": [0.4, 0.3, 0.4, 0.5, 0.4],
    "ssm_out_multiplier": 0.3,
}
KINDS = {
    "llama": Kind(),
    "context": Kind(config={"max_position_embeddings": LONGEST + MOST_NEW + 1}),
    "adapters": Kind(adapters=("a", "b")),
    "packed": Kind(
        config={"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}, flags={"kv_bits": 8}
    ),
    "bounded": Kind(flags={"kv_tokens": 48}),
    "sliding": Kind(config=SLIDING),
    "hybrid": Kind(config=HYBRID),
    "recurrent": Kind(config=MAMBA),
    "lists": Kind(config=LISTS),
    "pairs": Kind(config=PAIRS),
}
DAILY = ("context", "adapters", "packed", "bounded", "sliding", "hybrid", "pairs")
GRAMMARS = (
    Grammar.regex(r"[A-Z]{2}-\d{4}"),
    Grammar.choices(["red", "green", "blue"]),
    Grammar.json(
        {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
    ),
)


@define(eq=False)
class Caller:
    """One who asks: when he comes, how often he reads, and when he leaves.

    Args:
        request: what he asks for.
        at: the round in which he comes.
        reads: how likely he is to read in a round.
        leaves: the round in which he cancels, if he does.
        flags: of this call alone.
    """

    request: TextRequest
    at: int
    reads: float
    leaves: int | None
    flags: dict[str, object]
    stream: Any = None
    events: list[Any] = field(factory=list)
    over: bool = False


def some_params(dice: random.Random, adapters: Sequence[str]) -> dict[str, Any]:
    params: dict[str, Any] = {"max_tokens": dice.randint(1, MOST_NEW)}
    if dice.random() < 0.15:
        params |= {"grammar": dice.choice(GRAMMARS), "max_tokens": 40}
    elif dice.random() < 0.7:
        params["ignore_eos"] = True
    if dice.random() < 0.4:
        params |= {"temperature": dice.choice([0.7, 1.0]), "seed": dice.randint(0, 99)}
        params |= dice.choice([{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.05}])
    if dice.random() < 0.2:
        params |= dice.choice(
            [
                {"repetition_penalty": 1.3, "repetition_context_size": 40},
                {"presence_penalty": 1.0, "frequency_penalty": 0.5},
                {"logit_bias": {50: 4.0}},
            ]
        )
    if dice.random() < 0.3:
        params["top_logprobs"] = dice.randint(1, 3)
    if dice.random() < 0.15:
        params["stop"] = ("e", "q")
    if dice.random() < 0.15 and (params.get("seed") is not None or not params.get("temperature")):
        params["n"] = dice.randint(2, 4)
    if adapters:
        params["adapter"] = dice.choice([None, *adapters])
    return params


def some_callers(
    dice: random.Random, bases: Sequence[Sequence[int]], adapters: Sequence[str]
) -> list[Caller]:
    found = []
    for _ in range(dice.randint(2, 8)):
        length = dice.choice([dice.randint(1, 20), dice.randint(1, 150), dice.randint(1, LONGEST)])
        base = dice.choice(bases)
        shared = dice.randint(0, length) if dice.random() < 0.6 else 0
        prompt = [*base[:shared], *dice.choices(BYTES, k=length - shared)]
        if found and dice.random() < 0.2:
            prompt = list(dice.choice(found).request.prompt_tokens)
        at = dice.choice([0, 0, dice.randint(0, 40)])
        request = TextRequest(
            prompt_tokens=prompt,
            params=GenerateParams(**some_params(dice, adapters)),
            priority=dice.choice([0, 0, 1, -1]),
        )
        found.append(
            Caller(
                request=request,
                at=at,
                reads=dice.choice([1.0, 1.0, 0.5, 0.1]),
                leaves=at + dice.randint(1, 30) if dice.random() < 0.25 else None,
                flags=dice.choice([{}, {}, {"prompt_cache": False}, {"streaming": False}]),
            )
        )
    return found


@define
class Said:
    """What an answer says, however it was cut."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    scores: tuple[Any, ...] = ()
    end: Any = None


class Traffic:
    """A model that is asked at random, and one like it that serves each request alone."""

    def __init__(self, plugin: Plugin, kind: Kind, folder: Path) -> None:
        self._plugin, self._kind = plugin, kind
        write_tiny(folder / "model", **kind.config)
        self._model = plugin.load(folder / "model", flags=kind.flags)
        self._other = plugin.load(folder / "model", flags={**kind.flags, "prompt_cache": False})
        for seed, name in enumerate(kind.adapters):
            write_adapter(folder / name, folder / "model", seed=3 + seed)
            for model in (self._model, self._other):
                asked = LoadAdapterRequest(name=name, source=str(folder / name))
                plugin.run([plugin.start(model, asked)])
        self._bases = [random.Random(seed).choices(BYTES, k=LONGEST) for seed in range(3)]
        self.parked = self.widest = self.seated = 0

    def sequence(self, seed: int) -> None:
        """One random sequence, and the comparison of all its answers."""
        dice = random.Random(seed)
        model, plugin = self._model, self._plugin
        batch = model.batch
        model.shapes = Shapes(dice.choice([0.0, 1.0]))
        batch.max_rows = batch.room.most = batch.room.now = dice.choice([32, 32, 3])
        pieces = dice.choice([(8,), (16, 64, 128), (256,), (8, 600, 4096)])
        batch.pace.tokens = lambda budget_ms, *, running=False: dice.choice(pieces)
        with plugin.backend.stream():
            batch._discard()  # so that the next decoder has these shapes
        callers = some_callers(dice, self._bases, self._kind.adapters)
        places = dice.random() < 0.6
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding, "keeps_places", lambda: places)
            patch.setattr(shared, "SURPLUS", dice.choice([1, 32, 256]))
            patch.setattr(shared, "LINGER", dice.choice([2, 32]))
            patch.setattr(shared, "write_rows", self._write_rows)
            self._serve(dice, callers)
        for caller in callers:
            self._compare(caller)
        self._check_that_nothing_is_left()

    def _write_rows(self, *given: Any) -> None:
        self.seated += 1
        joining.write_rows(*given)

    def _serve(self, dice: random.Random, callers: Sequence[Caller]) -> None:
        plugin, batch = self._plugin, self._model.batch
        for turn in itertools.count():
            assert turn < 20_000, "the answers do not end"
            if all(caller.over for caller in callers):
                return
            for caller in callers:
                if caller.at == turn:
                    caller.stream = plugin.start(self._model, caller.request, **caller.flags)
                if caller.stream is None or caller.over:
                    continue
                with plugin.backend.stream():
                    if caller.leaves is not None and turn >= caller.leaves:
                        caller.stream.close()
                        caller.over = True
                    elif dice.random() < caller.reads:
                        self._read(caller)
            if dice.random() < 0.02:
                self._model.trim(0)
            self.parked += len(batch._aside)
            self.widest = max(self.widest, len(batch._rows))

    def _read(self, caller: Caller) -> None:
        try:
            event = next(caller.stream)
        except StopIteration:
            caller.over = True
        else:
            if event is not None:
                caller.events.append(event)

    def _compare(self, caller: Caller) -> None:
        params = attrs.evolve(caller.request.params, top_logprobs=3)
        request = attrs.evolve(caller.request, params=params)
        (alone,) = self._plugin.run([self._plugin.start(self._other, request, prompt_cache=False)])
        for index in range(params.n):
            mine, theirs = self._said(caller.events, index), self._said(alone, index)
            tokens, wanted = mine.tokens, theirs.tokens
            pairs = enumerate(zip(tokens, wanted, strict=False))
            parted = next((at for at, (one, other) in pairs if one != other), None)
            allowed = ON_GPU if on_gpu() else self._kind.close
            for one, other in zip(mine.scores[:parted], theirs.scores[:parted], strict=False):
                assert one.logprob == pytest.approx(other.logprob, abs=allowed)
            if parted is not None:
                best, second = theirs.scores[parted].top[:2]
                assert not params.temperature or on_gpu(), f"at {parted}: {tokens} {wanted}"
                assert best.logprob - second.logprob <= 2 * allowed, f"at {parted}: {tokens} {wanted}"
            elif caller.leaves is None or any(isinstance(event, Finished) for event in caller.events):
                assert (tokens, mine.text, mine.end) == (wanted, theirs.text, theirs.end)
            else:
                assert theirs.text.startswith(mine.text)

    @staticmethod
    def _said(events: Sequence[Any], index: int) -> Said:
        found = Said()
        for event in events:
            if event.index != index and not isinstance(event, Finished):
                continue
            if isinstance(event, TextDelta):
                found.text += event.text
                found.tokens += event.token_ids
                found.scores += event.logprobs
            elif isinstance(event, ChoiceFinished | Finished) and found.end is None:
                found.end = (event.reason, event.stop)
        return found

    def _check_that_nothing_is_left(self) -> None:
        batch = self._model.batch
        assert (batch._rows, batch._waiting, batch._aside) == ([], [], [])
        decoder = batch._decoder
        if decoder is not None:
            assert len(decoder._reading) == len(decoder._batch) == 0
            assert (decoder._batch.layers, decoder._batch.held) == ([], [])
            assert decoder._batch._drawn is None

    @property
    def layers(self) -> list[Any]:
        """The empty caches of a row."""
        return self._model._caches()

    def memory(self) -> int:
        """Bytes in use once nothing is kept for prompts to come."""
        with self._plugin.backend.stream():
            for model in (self._model, self._other):
                model.trim(0)
                for prefixes in filter(None, (model.prefixes, *model.kept.adapted.values())):
                    prefixes.clear()
                model.batch._discard()
            gc.collect()
            mx.synchronize()
        return int(mx.get_active_memory())


@pytest.fixture(params=KINDS)
def traffic(
    request: pytest.FixtureRequest, plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Traffic:
    monkeypatch.setattr(rows, "STALL", 1)
    return Traffic(plugin, KINDS[request.param], tmp_path)


def check(traffic: Traffic, seeds: Sequence[int]) -> None:
    traffic.sequence(seeds[0])
    before = traffic.memory()
    for seed in seeds[1:]:
        traffic.sequence(seed)
    assert traffic.memory() <= before + 4096


@pytest.mark.parametrize("traffic", DAILY, indirect=True)
def test_answers_in_random_traffic_are_those_that_they_are_alone(traffic: Traffic) -> None:
    check(traffic, range(2))


@pytest.mark.slow
def test_answers_in_much_random_traffic_are_those_that_they_are_alone(traffic: Traffic) -> None:
    check(traffic, range(100, 160))
    assert traffic.parked
    assert traffic.widest > 4
    plain = all(type(layer).__name__ == "KVCache" for layer in traffic.layers)
    assert bool(traffic.seated) == plain
