"""The folder of results: whole parts only, one job, one process, and no row lost or there twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from mlxengine.errors import CorruptFileError, GenerationError, InvalidParameterError
from mlxengine_ray._parts import ParquetParts, Parts
from mlxengine_ray._store import Store, Totals

JOB = {"task": "embed"}


def store(folder: Path, job: Mapping[str, Any] = JOB, parts: Parts | None = None, size: int = 10) -> Store:
    return Store(folder, job, parts or Parts(), size)


def some(*numbers: int, **values: Any) -> Any:
    return ((number, {"source": f"t:{number}", **values}) for number in numbers)


def numbers(folder: Path) -> list[int]:
    parts = sorted(folder.glob("part-*.jsonl"))
    return [json.loads(line)["row"] for part in parts for line in part.read_text().splitlines()]


def test_a_part_appears_when_its_last_row_has_come_and_is_in_order(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store(out) as found:
        found.add(some(3, 1, 0, 2, 12, 9, 8, 7, 6, 5))
        assert not list(out.glob("part-*"))
        found.add(some(4, 10, 11))
        assert [item.name for item in out.glob("part-*")] == ["part-00000.jsonl"]
        assert numbers(out) == list(range(10))
        assert found.finish(13) == Totals(rows=13, errors=0, parts=2)
    assert numbers(out) == list(range(13))
    assert [item.name for item in (out / ".journal").iterdir()] == ["lock"]


def test_what_was_added_is_there_for_the_next_process_and_a_torn_line_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store(out) as found:
        found.add(some(*range(10), 11, 15))
    journal = out / ".journal" / "00001.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"row": 12, "source": "t:1')
    (out / ".journal" / "00002.part").write_bytes(b"half a part")
    with store(out) as found:
        assert [number for number in range(30) if found.has(number)] == [*range(10), 11, 15]
        found.add(some(10, 12, 13, 14, 16, 17, 18, 19))
        assert found.finish(20).rows == 20
    assert numbers(out) == list(range(20))


def test_a_process_that_ended_between_the_last_row_and_the_renaming_is_made_good(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store(out) as found:
        found.add(some(*range(9)))
        line = b'{"row": 9, "source": "t:9"}\n'
    with (out / ".journal" / "00000.jsonl").open("ab") as file:
        file.write(line)
    with store(out) as found:
        assert found.has(9)
        assert found.finish(10).parts == 1
    # and one that ended between the renaming and the end of the journal
    (out / ".journal" / "00000.jsonl").write_bytes(line)
    with store(out) as found:
        assert found.finish(10) == Totals(rows=10, errors=0, parts=1)


@pytest.mark.parametrize("count", [9, 11])
def test_a_row_too_few_or_too_many_fails_the_job(tmp_path: Path, count: int) -> None:
    with store(tmp_path / "out") as found:
        found.add(some(*range(10)))
        with pytest.raises(GenerationError, match="came out"):
            found.finish(count)


def test_a_row_that_is_missing_in_a_part_is_not_overlooked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store(out) as found:
        found.add(some(*range(20)))
        part = out / "part-00000.jsonl"
        part.write_text("".join(part.read_text().splitlines(keepends=True)[:-1]))
        with pytest.raises(GenerationError, match="Row 9 is missing"):
            found.finish(20)
        part.write_text("rubbish\n")
        with pytest.raises(CorruptFileError):
            found.finish(20)
    with store(out) as found:
        found.add(some(20, 21, 23))
        with pytest.raises(GenerationError, match="not whole"):
            found.finish(24)


def test_errors_are_counted_also_of_earlier_runs(tmp_path: Path) -> None:
    error = {"type": "X", "message": 'says "no"', "hint": None}
    with store(tmp_path / "out") as found:
        found.add(some(*range(9)))
        found.add(some(9, error=error))
        found.add(some(10, answer='", "error": {'))
    with store(tmp_path / "out") as found:
        assert found.finish(11) == Totals(rows=11, errors=1, parts=2, first_error='says "no"')


def test_another_job_into_the_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store(out, {"task": "embed", "model": "a"}) as held:
        held.add(some(0))
    with (
        pytest.raises(InvalidParameterError, match="another job: model differ"),
        store(out, {**JOB, "model": "b"}),
    ):
        pass
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("")
    with pytest.raises(InvalidParameterError, match="no job's"), store(other):
        pass
    assert [item.name for item in other.iterdir()] == ["mine.txt"]
    (out / "_manifest.json").write_text("{")
    with pytest.raises(CorruptFileError), store(out):
        pass


def test_a_job_that_has_no_row_yet_gives_its_folder_to_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store(out, {**JOB, "model": "mistyped"}) as held:
        with pytest.raises(InvalidParameterError, match="Another process"), store(out, JOB):
            pass
        assert not held.begun
    with store(out, JOB) as held:
        held.add(some(0, 1, 2))
    with pytest.raises(InvalidParameterError, match="another job"), store(out, {**JOB, "model": "mistyped"}):
        pass
    with store(out, JOB) as held:
        assert held.begun


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    held, other = store(tmp_path / "out"), store(tmp_path / "out")
    with held, pytest.raises(InvalidParameterError, match="Another process"), other:
        pass
    with store(tmp_path / "out"):
        pass


def test_values_that_json_has_no_words_for_are_written_nevertheless(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store(out) as found:
        found.add(some(0, a=float("nan"), b="\ud800", c=[float("inf"), 1.5], d="é"))
        found.finish(1)
    text = (out / "part-00000.jsonl").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "row": 0,
        "source": "t:0",
        "a": None,
        "b": "\ud800",
        "c": [None, 1.5],
        "d": "é",
    }


def test_pictures_are_files_that_rows_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with store(out) as found:
        found.add(some(12, picture=b"png"))
        found.add(some(*range(12)))
        found.finish(13)
    row = json.loads((out / "part-00001.jsonl").read_text().splitlines()[-1])
    assert (out / row["picture"]).read_bytes() == b"png"
    assert not list((out / row["picture"]).parent.glob(".*"))


def test_parts_of_parquet_share_one_schema_whatever_is_null_in_one_of_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = {"vector": "numbers", "seed": "count"}
    error = {"type": "X", "message": "no", "hint": None}
    with store(out, parts=ParquetParts(results), size=2) as found:
        found.add(some(0, 1, error=error, id=None, n=1))
    with store(out, parts=ParquetParts(results), size=2) as found:
        found.add(some(2, id="a", n=2, vector=[0.5, 1.0], seed=1))
        found.add(some(3, id=None, n=None, error=error))
        assert found.finish(4) == Totals(rows=4, errors=3, parts=2, first_error="no")
    table = pyarrow.parquet.read_table(out)
    assert table.column_names == ["row", "source", "error", "id", "n", "vector", "seed"]
    assert table["vector"].to_pylist() == [None, None, [0.5, 1.0], None]
    assert table["id"].to_pylist() == [None, None, "a", None]
    assert table["n"].to_pylist() == [1, 1, 2, None]
    again = store(out, parts=ParquetParts(results), size=2)
    with again as found, pytest.raises(GenerationError, match="types"):
        found.add(some(4, 5, id="a", n="a text"))
