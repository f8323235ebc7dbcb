"""Which rows may share a pass, found out about each network; and every architecture, alone and together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from architectures import CONFIGS, examine, write_model, written
from llm_harness import Plugin, passes, raw, tokens_of
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from mlxengine import InferenceEngine
from mlxengine.errors import LoadError
from mlxengine.toolkit import backend
from mlxengine.toolkit.adapters import Adapters
from mlxengine.toolkit.joining import Company
from mlxengine_llm._trial import Trial

ALL = Company(padded=True, equal=True, behind=True, together=True)
NONE = Company(padded=False, equal=False, behind=False, together=False)
EQUAL = Company(padded=False, equal=True, behind=False, together=True)


class Faulty:
    """A network that goes wrong in passes of several rows, where ``wrong`` says so of their shape."""

    def __init__(self, network: Any, wrong: Callable[[int, int], bool]) -> None:
        self._network = network
        self._wrong = wrong

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        found: mx.array = self._network(tokens, cache=cache)
        if tokens.shape[0] > 1 and self._wrong(*tokens.shape):
            cache[0].keys = cache[0].keys * 3  # seen later
            return found * 3
        return found


@pytest.fixture
def llama(tiny: Path) -> Any:
    return load_model(tiny)[0]


def tried(network: Any, caches: Callable[[], list[Any]] | None = None) -> Trial:
    trial = Trial(network, Adapters(network), caches or partial(make_prompt_cache, network))
    assert trial.hold()
    assert not trial.hold(), "once"
    return trial


@pytest.mark.parametrize("half", [None, mx.float16, mx.bfloat16])
def test_a_network_that_masks_its_padding_is_used_in_every_way(llama: Any, half: Any) -> None:
    if half is not None:
        llama.set_dtype(half)
    assert tried(llama).company == ALL


@pytest.mark.parametrize("half", [None, mx.bfloat16])
@pytest.mark.parametrize(
    ("wrong", "left"),
    [
        (lambda _rows, length: length == 16, Company(padded=False, equal=False, behind=True, together=True)),
        (lambda _rows, length: length == 11, Company(padded=True, equal=True, behind=False, together=True)),
    ],
    ids=["from the start", "behind caches"],
)
def test_only_the_ways_that_change_nothing_are_used(llama: Any, half: Any, wrong: Any, left: Company) -> None:
    if half is not None:
        llama.set_dtype(half)
    assert tried(Faulty(llama, wrong)).company == left


class Rounding(Faulty):
    """As on a GPU: several rows go through other kernels, which round otherwise while states have 16 bits."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        found: mx.array = self._network(tokens, cache=cache)
        if tokens.shape[0] > 1 and found.dtype != mx.float32:
            noise = mx.random.normal(found.shape, key=mx.random.key(0)) * mx.std(found.astype(mx.float32))
            return found + 0.06 * noise.astype(found.dtype)
        return found


def test_what_16_bits_round_is_no_fault_of_a_batch(llama: Any) -> None:
    llama.set_dtype(mx.bfloat16)
    before = dict(tree_flatten(llama.parameters()))
    assert tried(Rounding(llama, lambda *_shape: False)).company == ALL
    after = dict(tree_flatten(llama.parameters()))
    assert all(value is after[name] for name, value in before.items()), "the weights are what they were"


def test_a_token_that_the_network_rules_out_is_no_difference(llama: Any) -> None:
    class Ruling(Faulty):
        def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
            found = super().__call__(tokens, cache)
            found[..., 7] = -float("inf")
            return found

    assert tried(Ruling(llama, lambda *_shape: False)).company == ALL
    assert tried(Ruling(llama, lambda *_shape: True)).company == NONE


def test_what_raises_in_company_is_served_alone(llama: Any) -> None:
    def wrong(rows: int, _length: int) -> bool:
        raise ValueError(f"{rows} rows")

    told: list[str] = []
    trial = Trial(Faulty(llama, wrong), Adapters(llama), partial(make_prompt_cache, llama), told.append)
    assert trial.company == ALL
    trial.hold()
    assert trial.company == NONE
    assert told == ["a batch changes its tokens"]
    assert str(trial) == "one at a time"


def test_memory_that_runs_out_is_not_taken_for_a_wrong_batch(llama: Any) -> None:
    def wrong(_rows: int, _length: int) -> bool:
        raise RuntimeError("[malloc] Unable to allocate 1 bytes.")

    with pytest.raises(RuntimeError):
        tried(Faulty(llama, wrong))


@pytest.mark.parametrize("costly", [False, True])
def test_nothing_is_tried_before_two_rows_meet_but_where_new_sizes_are_dear(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch, costly: bool
) -> None:
    monkeypatch.setattr(backend, "new_shape_seconds", lambda: float(costly))
    model = plugin.load(tiny, flags={"prompt_cache": False})
    plugin.text(model, "alone", max_tokens=3)
    assert model.trial.done == costly
    plugin.run([plugin.start(model, raw(text, max_tokens=3)) for text in ("one", "two")])
    assert model.trial.done
    assert model.trial.company == ALL


@pytest.mark.parametrize(
    ("name", "why"),
    [("llama4", "its caches cannot be merged into a batch's"), ("afm7", "a batch changes its tokens")],
    ids=["llama4", "afm7"],
)
def test_a_model_that_has_no_batch_serves_one_at_a_time_and_says_so_once(
    plugin: Plugin, tmp_path: Path, name: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mlxengine.llm.batch"):
        model = plugin.load(write_model(tmp_path / name, name), flags={"prompt_cache": False})
        asked = [raw(f"some words {i} " * (1 + i), max_tokens=6, ignore_eos=True) for i in range(3)]
        alone = [tokens_of(plugin.run([plugin.start(model, one)])[0]) for one in asked]
        seen = passes(model, plugin)
        found = plugin.run([plugin.start(model, one) for one in asked])
    assert [tokens_of(events) for events in found] == alone
    assert max(rows for rows, _ in seen) == 1
    assert [record.message for record in caplog.records if "one at a time" in record.message] == [
        f"Requests are served one at a time: {why}"
    ]
    assert (model.info["batch"], model.info["alone"]) == (1, why)
    assert model.missing["llm.batch"] == why


def test_rows_that_have_met_already_go_on_one_after_the_other(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is found when the second comes, while the first decodes."""
    monkeypatch.setattr(backend, "new_shape_seconds", lambda: 0.0)  # else it was tried at loading
    model = plugin.load(tiny, flags={"prompt_cache": False})
    asked = [raw(f"words {i}", max_tokens=9, ignore_eos=True) for i in range(4)]
    alone = [tokens_of(plugin.run([plugin.start(model, one)])[0]) for one in asked]
    seen = passes(model, plugin)
    monkeypatch.setattr(model.trial, "_network", Faulty(model.trial._network, lambda *_shape: True))
    start = [lambda one=one: plugin.start(model, one) for one in asked]
    found = plugin.run([start[0]()], later={4: start[1:3], 6: start[3:]})
    assert [tokens_of(events) for events in found] == alone
    assert max(rows for rows, _ in seen) == 1
    assert model.info["batch"] == model.batch.max_rows == 1


def test_explain_tells_of_a_model_that_has_no_batch(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama4", "llama4")
    with InferenceEngine() as engine, engine.load_text(folder) as chat:
        explained = chat.explain("llm.batch")
        assert (explained.value, explained.available) == (False, False)
        assert "cannot be merged" in explained.reason
        assert chat.info["batch"] == 1
        assert chat.explain("llm.streaming").available


def test_states_that_take_padding_in_are_read_at_equal_lengths(tmp_path: Path) -> None:
    for name, wanted in {"jamba": EQUAL, "mamba2": EQUAL, "recurrent_gemma": EQUAL, "afm7": NONE}.items():
        network = load_model(write_model(tmp_path / name, name))[0]
        trial = Trial(network, Adapters(network), partial(make_prompt_cache, network))
        trial.hold()
        assert trial.company == wanted, name


def test_a_tokenizer_is_read_where_transformers_refuses_the_models_configuration(
    plugin: Plugin, edited: Callable[..., Path]
) -> None:
    model = plugin.load(edited(config={"layer_types": ["new", "full_attention"]}))
    assert model.tokenizer.decode(model.tokenizer.encode("a word")) == "a word"
    assert model.stop_ids == {2}


def test_a_tokenizer_that_is_damaged_is_told_of(plugin: Plugin, edited: Callable[..., Path]) -> None:
    folder = edited()
    folder.joinpath("tokenizer.json").write_text("{}")
    with pytest.raises(LoadError, match="cannot be read"):
        plugin.load(folder)


DAILY = (
    "llama",
    "qwen3_moe",
    "gemma3_text",
    "jamba",
    "mamba2",
    "rwkv7",
    "deepseek_v3",
    "llama4",
    "phi3small",
)


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_an_architecture_is_served_as_the_table_says(name: str, tmp_path: Path) -> None:
    """The page's rows are written by ``architectures.py --write``; what is wrong stays in it."""
    assert examine(name, tmp_path) == written()[name]
