"""Rows of every kind of input, their numbers, and what of them cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from mlxengine.errors import CorruptFileError, InvalidParameterError, ModelNotFoundError
from mlxengine_ray._sources import Reader, Row, digest, find_inputs


def reader(*paths: Path, done: Any = lambda _number: False) -> Reader:
    return Reader(find_inputs(paths), wanted=frozenset({"text", "id", "image"}), picture="image", done=done)


def rows(*paths: Path, **rest: Any) -> list[Row]:
    found = reader(*paths, **rest)
    read = list(found)
    assert found.position == found.total
    return read


def test_lines_of_json_are_rows_and_those_that_are_none_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": \n[1]\n{"text": "\xff"}\n{"text": "\xc3\xa9"}')
    found = rows(path)
    assert [row.number for row in found] == [0, 1, 2, 3, 4]
    assert [row.source for row in found] == [f"t.jsonl:{n}" for n in (1, 3, 4, 5, 6)]
    assert [row.error is None for row in found] == [True, False, False, False, True]
    assert (found[0].values, found[4].values) == ({"text": "a"}, {"text": "é"})


def test_csv_has_quotes_and_lines_in_fields_and_a_row_of_another_width_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id,text\n1,"a, ""b""\nc"\n\n2\n3,d\n', encoding="utf-8-sig")
    found = rows(path)
    assert found[0].values == {"id": "1", "text": 'a, "b"\nc'}
    assert isinstance(found[1].error, InvalidParameterError)
    assert (found[2].number, found[2].values) == (2, {"id": "3", "text": "d"})
    (tmp_path / "t.tsv").write_text("id\ttext\n1\ta,b\n")
    assert rows(tmp_path / "t.tsv")[0].values == {"id": "1", "text": "a,b"}
    (tmp_path / "empty.csv").write_text("")
    assert rows(tmp_path / "empty.csv") == []


def test_a_field_of_a_csv_may_be_as_long_as_a_document(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text\n" + "x" * 500_000 + "\n")
    assert len(rows(path)[0].values["text"]) == 500_000


def test_parquet_gives_the_columns_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pyarrow.table(
        {"text": [f"t{n}" for n in range(1000)], "other": list(range(1000)), "id": list(range(1000))}
    )
    pyarrow.parquet.write_table(table, path, row_group_size=300)
    found = rows(path)
    assert [row.number for row in found] == list(range(1000))
    assert found[999].values == {"text": "t999", "id": 999}
    assert found[999].source == "t.parquet:1000"
    some = rows(path, done=lambda number: number < 650)
    assert [row.number for row in some] == list(range(650, 1000))
    assert some[0].values["text"] == "t650"


def test_a_folder_is_its_tables_or_else_its_pictures_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "cats"
    (folder / "sub").mkdir(parents=True)
    for name in ("2.png", "1.JPG", "sub/0.webp", "notes.txt"):
        (folder / name).write_bytes(b"x")
    found = rows(folder)
    assert [row.source for row in found] == ["1.JPG", "2.png", "sub/0.webp"]
    assert found[2].values == {"image": str(folder / "sub" / "0.webp")}
    (folder / "b.jsonl").write_text('{"image": "2.png"}\n{"image": "https://x/y.png"}\n{"image": "/z.png"}\n')
    assert [row.values["image"] for row in rows(folder)] == [
        str(folder / "2.png"),
        "https://x/y.png",
        "/z.png",
    ]


def test_hidden_files_and_where_the_job_writes_are_no_inputs(tmp_path: Path) -> None:
    for name in ("a.jsonl", ".cache/b.jsonl", "out/part-00000.jsonl", "out2/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    found = find_inputs([tmp_path], tmp_path / "out")
    assert [item.name for item in found] == ["a.jsonl", "out2/c.jsonl"]


def test_a_file_that_is_no_parquet_is_a_corrupt_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(CorruptFileError, match=r"t\.parquet is no whole"):
        reader(tmp_path / "t.parquet").columns()


def test_rows_are_numbered_over_all_inputs_and_those_that_are_done_are_left_out(tmp_path: Path) -> None:
    paths = []
    for name in ("b.jsonl", "a.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(3)))
        paths.append(path)
    assert [row.values["text"][:1] for row in rows(*paths)] == list("bbbaaa")
    found = reader(*paths, done=lambda number: number != 4)
    assert [(row.number, row.source) for row in found] == [(4, "a.jsonl:2")]
    assert found.count == 6


def test_a_digest_changes_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("{}")
    before = digest(find_inputs([path]))
    assert digest(find_inputs([path])) == before
    path.write_text("{} ")
    assert digest(find_inputs([path])) != before


def test_what_is_no_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no file"):
        find_inputs([tmp_path / "nothing.csv"])
    (tmp_path / "a.doc").write_text("")
    with pytest.raises(InvalidParameterError, match="no kind"):
        find_inputs([tmp_path / "a.doc"])
    with pytest.raises(InvalidParameterError, match="no table and no picture"):
        find_inputs([tmp_path])
