"""The model for rows that frameworks for data are given, and what is checked before replicas are started."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from attrs import evolve
from mlxengine.cli import main
from mlxengine.errors import (
    InsufficientMemoryError,
    InvalidParameterError,
    ModelClosedError,
    ModelNotFoundError,
)
from mlxengine_ray import BatchModel, Embed, Generate
from mlxengine_ray._cluster import Places

MOCK: dict[str, Any] = {"features": {"core.mock": True}}


def test_a_table_comes_back_with_the_task_s_columns_and_errors_beside_its_own() -> None:
    table = pyarrow.table({"id": [1, 2, 3], "text": ["a", None, "b"]})
    with BatchModel("mock/embed", Embed(), **MOCK) as model:
        found = model(table)
    assert found.column_names == ["id", "text", "vector", "error"]
    assert found.schema.field("vector").type == pyarrow.list_(pyarrow.float32())
    assert [row is None for row in found["vector"].to_pylist()] == [False, True, False]
    errors = found["error"].to_pylist()
    assert (errors[0], errors[2]) == (None, None)
    assert json.loads(errors[1])["type"] == "InvalidParameterError"


def test_the_columns_of_an_earlier_run_are_replaced() -> None:
    table = pyarrow.table({"text": ["a", None]})
    with BatchModel("mock/embed", Embed(), **MOCK) as model:
        once = model(table)
        again = model(once)
        assert model(once.slice(0, 0)).column_names == again.column_names
    assert again.column_names == ["text", "vector", "error"]
    assert again["vector"].equals(once["vector"])
    assert [row is None for row in again["error"].to_pylist()] == [True, False]


def test_a_model_that_is_closed_says_so() -> None:
    with BatchModel("mock/embed", Embed(), **MOCK) as model:
        pass
    with pytest.raises(ModelClosedError):
        model.rows([{"text": "a"}])
    model.close()


def test_rows_come_back_in_order_whatever_their_number() -> None:
    with BatchModel("mock/llm", Generate(), **MOCK) as model:
        found = model.rows([{"prompt": f"q{n}", "id": n} for n in range(100)])
    assert [row["id"] for row in found] == list(range(100))
    assert all(row["answer"].endswith(f"q{n}") and row["error"] is None for n, row in enumerate(found))


def test_a_model_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        BatchModel(tmp_path / "nothing", Embed(), offline=True)


def test_replicas_for_which_there_is_no_room_are_refused_with_what_there_is() -> None:
    two = Places(count=2, needed=3 << 30, budget=8 << 30, gpu=False)
    three, on_gpus = evolve(two, count=3), evolve(two, gpu=True)
    two.check(cpus=2, gpus=0)
    with pytest.raises(InvalidParameterError, match="3 replicas need 3 logical CPUs, and there are 2"):
        three.check(cpus=2, gpus=0)
    with pytest.raises(InvalidParameterError, match="2 GPUs, and there are 1"):
        on_gpus.check(cpus=8, gpus=1)
    two.check_memory()
    with pytest.raises(InsufficientMemoryError, match="3 times 3072 MiB, and models may take 8192 MiB"):
        three.check_memory()
    evolve(on_gpus, count=3).check_memory()  # each has the memory of a card of its own


@pytest.mark.parametrize(
    ("replicas", "ray", "told"),
    [("2", None, "mlxengine-ray[data]"), ("9999", sys, "9999 replicas need 9999")],
)
def test_the_verb_says_what_replicas_lack_before_anything_starts(
    replicas: str,
    ray: Any,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    source = tmp_path / "t.jsonl"
    source.write_text('{"text": "a"}\n')
    words = [
        "batch",
        "-q",
        str(source),
        str(tmp_path / "out"),
        "--feature",
        "core.mock",
        "--model",
        "mock/embed",
    ]
    assert main([*words, "--replicas", replicas]) == 2
    assert told in capsys.readouterr().err
