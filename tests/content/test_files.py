"""Weight files, tokenizers and grammars that lie or swell: read, or refused by a typed error, at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlxengine._hub.gguf import gguf_contents
from mlxengine._hub.headers import safetensors_tensors
from mlxengine.errors import CorruptFileError, GenerationError, InvalidParameterError
from mlxengine.text.grammar import Grammar

from .configs import TOKENIZER, bases, campaign, counted
from .files import gguf_case, nested_array, safetensors_case

READERS: dict[str, tuple[Callable[[int], bytes], Callable[..., Any]]] = {
    "safetensors": (safetensors_case, safetensors_tensors),
    "GGUF": (gguf_case, gguf_contents),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_header_that_lies_is_read_or_refused(kind: str, record_property: Any) -> None:
    case, read = READERS[kind]
    found: Counter[str] = Counter()
    for seed in range(1500):
        data = case(seed)
        began = time.perf_counter()
        try:
            read(lambda start, stop, data=data: data[start:stop], len(data), "f")
            found["read"] += 1
        except CorruptFileError:
            found["refused"] += 1
        assert time.perf_counter() - began < 1.0, seed
    record_property(kind, dict(found))
    assert found.total() == 1500


def test_arrays_within_arrays_are_refused() -> None:
    data = nested_array()
    with pytest.raises(CorruptFileError, match="array"):
        gguf_contents(lambda start, stop: data[start:stop], len(data), "f")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[" * (15 << 20), "deep|recursion"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":0}', "twice"),
        (b'{"__metadata__":{"a":"1","a":"2"}}', "twice"),
        (b"{" + b",".join(b'"%d":0' % at for at in range(300_000)) + b"}", "300000 tensors"),
        (b"x" * (17 << 20), "header says it is"),
    ],
    ids=["nested", "a tensor twice", "metadata twice", "tensors", "large"],
)
def test_a_header_that_swells_is_refused_soon(body: bytes, says: str) -> None:
    data = len(body).to_bytes(8, "little") + body
    began = time.perf_counter()
    with pytest.raises(CorruptFileError, match=says):
        safetensors_tensors(lambda start, stop: data[start:stop], len(data), "f")
    assert time.perf_counter() - began < 5.0


def test_a_few_damaged_tokenizers_load_or_are_typed(tmp_path: Path, record_property: Any) -> None:
    outcomes = campaign(TOKENIZER, bases(tmp_path, (TOKENIZER,))[TOKENIZER], range(15))
    record_property("tokenizer", counted(outcomes))
    assert [item for item in outcomes if item.fault] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_hundred_damaged_tokenizers_load_or_are_typed(tmp_path: Path, record_property: Any) -> None:
    outcomes = campaign(TOKENIZER, bases(tmp_path, (TOKENIZER,))[TOKENIZER], range(300))
    record_property("tokenizer", counted(outcomes))
    assert [item for item in outcomes if item.fault] == []


def _shared(levels: int) -> dict[str, Any]:
    """Definitions each of which names the next one twice: 2^levels of them, written out."""
    inner = {
        f"n{at}": {"anyOf": [{"$ref": f"#/$defs/n{at + 1}"}, {"$ref": f"#/$defs/n{at + 1}"}]}
        for at in range(levels)
    }
    return {"$ref": "#/$defs/n0", "$defs": {**inner, f"n{levels}": {"type": "string"}}}


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


_WORDS = {"type": "object", "properties": {f"k{at}": {"type": "string"} for at in range(3000)}}
GRAMMARS: dict[str, Callable[[], Grammar]] = {
    "a repeat": lambda: Grammar.regex("a{1000000000}"),
    "repeats of repeats": lambda: Grammar.regex("((a{1000}){1000}){1000}"),
    "much to go back for": lambda: Grammar.regex("(a+)+(a+)+(a|aa)+(a|a?)+b"),
    "many classes": lambda: Grammar.regex(r"(\p{L}{0,500}\p{N}{0,500}){0,500}"),
    "deep groups": lambda: Grammar.regex("(" * 5000 + "a" + ")" * 5000),
    "itself": lambda: Grammar.json({"$ref": "#"}),
    "a circle": lambda: Grammar.json(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "a file": lambda: Grammar.json({"$ref": "file:///etc/passwd"}),
    "a web page": lambda: Grammar.json({"$ref": "http://127.0.0.1:9/x"}),
    "2^500 choices": lambda: Grammar.json(_shared(500)),
    "deep": lambda: Grammar.json(_deep(150)),
    "deeper": lambda: Grammar.json(_deep(1000)),
    "a long array": lambda: Grammar.json({"type": "array", "items": {"type": "string"}, "minItems": 10**9}),
    "a long text": lambda: Grammar.json({"type": "string", "minLength": 10**9}),
    "many properties": lambda: Grammar.json(_WORDS),
    "a large number": lambda: Grammar.json({"type": "integer", "minimum": 10**400}),
    "Lark, left": lambda: Grammar.lark('start: start start | "a"'),
    "Lark, empty": lambda: Grammar.lark("start: x\nx: x"),
    "Lark, a repeat": lambda: Grammar.lark('start: A{1000000000}\nA: "a"'),
    "Lark, ambiguous": lambda: Grammar.lark('start: e\ne: e e e | e e | "a" | ""'),
}


@pytest.fixture(scope="module")
def words() -> Any:
    from tests.unit.chat_formats import FORMATS, tokenizer

    return tokenizer(FORMATS[0])


@pytest.mark.parametrize("make", GRAMMARS.values(), ids=GRAMMARS)
def test_a_grammar_that_swells_is_followed_or_refused(make: Callable[[], Grammar], words: Any) -> None:
    import mlx.core as mx
    import numpy as np
    from mlxengine.toolkit.grammar import Grammars

    began = time.perf_counter()
    try:
        row = Grammars(words.backend_tokenizer.to_str, len(words), [1]).row(make(), 0)
        while not row.ready():
            time.sleep(0.005)
        said: list[int] = []
        while len(said) < 20 and not row.ended:
            allowed = np.flatnonzero(np.isfinite(np.array(row(mx.array(said), mx.zeros((1, len(words))))[0])))
            said.append(int(allowed[len(allowed) // 2]))
    except (InvalidParameterError, GenerationError):
        pass  # typed, which is all that a caller needs
    assert time.perf_counter() - began < 10
