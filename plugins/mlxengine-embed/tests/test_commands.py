"""The verbs ``embed`` and ``similarity`` of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import embed_checkpoints
import numpy as np
import pytest
from mlxengine.cli import main

WORDS = embed_checkpoints.word_texts()[:5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(embed_checkpoints.write("bert-mean", tmp_path_factory.mktemp("commands")))


def test_vectors_go_to_a_file_of_each_kind(folder: str, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text("\n".join(json.dumps({"body": word}) for word in WORDS))
    for ending in ("npy", "jsonl", "parquet"):
        target = tmp_path / f"v.{ending}"
        arguments = ["--file", str(source), "--field", "body", "--out", str(target)]
        assert main(["embed", "-q", "-m", folder, *arguments]) == 0
        assert not list(tmp_path.glob("*.part"))
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert vectors.shape == (5, 64)
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == WORDS
    assert np.allclose([row["vector"] for row in rows], vectors, atol=1e-6)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table["text"].to_pylist() == WORDS
    assert np.allclose(table["vector"].to_pylist(), vectors, atol=1e-6)


def test_json_is_one_value(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "--json", "-m", folder, "--precision", "int8", "w1 w2", "w3"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["dimension"], len(value["vectors"])) == (64, 2)
    assert main(["similarity", "--json", "-m", folder, "w1", "w1", "w2"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["table"][0][1] == pytest.approx(1, abs=1e-5)


def test_similarity_prints_a_number_for_two_texts_and_a_table_for_more(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["similarity", "-m", folder, "w1", "w1"]) == 0
    assert capsys.readouterr().out == "1.0000\n"
    assert main(["similarity", "-m", folder, "w1", "w2", "w3 w4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_sparse_model_prints_its_terms_heaviest_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse = str(embed_checkpoints.write("bert-splade", tmp_path))
    assert main(["embed", "-q", "-m", sparse, *WORDS]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(WORDS)
    assert all(list(row.values()) == sorted(row.values(), reverse=True) for row in rows)
    assert main(["embed", "-q", "--json", "--truncate-dim", "3", "-m", sparse, WORDS[2]]) == 0
    (three,) = json.loads(capsys.readouterr().out)["vectors"]
    assert list(three) == list(rows[2])[:3]
    # a GPU, and some BLAS, sum in another order where a text comes alone
    assert three == pytest.approx(dict(list(rows[2].items())[:3]), rel=1e-5, abs=0.0)
    assert main(["similarity", "-m", sparse, WORDS[1], WORDS[2]]) == 0
    both = set(rows[1]) & set(rows[2])
    dot = sum(rows[1][word] * rows[2][word] for word in both)
    assert float(capsys.readouterr().out) == pytest.approx(dot, abs=1e-3)
    assert main(["embed", "-m", sparse, "--out", str(tmp_path / "v.npy"), "w1"]) == 2
    assert "--out does not write" in capsys.readouterr().err


def test_a_mark_of_utf_8_before_the_first_text_is_none_of_it(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for name, encoding in (("a.txt", "utf-8"), ("b.txt", "utf-8-sig"), ("b.jsonl", "utf-8-sig")):
        line = json.dumps({"text": "w1 é"}) if name.endswith(".jsonl") else "w1 é"
        (tmp_path / name).write_text(f"{line}\n", encoding)
        assert main(["embed", "-q", "-m", folder, "--file", str(tmp_path / name)]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] == found[2]


def test_texts_that_are_no_utf_8_are_refused_with_what_to_do(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    latin = Path("latin.txt")
    latin.write_bytes("w1\ncaf\xe9\n".encode("latin-1"))
    assert main(["embed", "-q", "-m", folder, "--file", str(latin)]) == 2
    told = capsys.readouterr().err
    assert "latin.txt is not UTF-8" in told
    assert "iconv" in told
    monkeypatch.setattr("sys.stdin", latin.open(encoding="utf-8"))
    assert main(["embed", "-q", "-m", folder, "-"]) == 2
    assert "standard input is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["npy", "jsonl", "parquet"])
def test_a_file_that_is_not_finished_is_not_left_behind(folder: str, tmp_path: Path, ending: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "w1"}\n{"text": 5}\n')
    assert (
        main(["embed", "-q", "-m", folder, "--file", str(path), "--out", str(tmp_path / f"v.{ending}")]) == 2
    )
    assert list(tmp_path.iterdir()) == [path]


def test_vectors_do_not_take_the_place_of_their_texts(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "w1"}\n')
    other = tmp_path / "x" / ".." / "t.jsonl"
    (tmp_path / "x").mkdir()
    assert main(["embed", "-q", "-m", folder, "--file", str(path), "--out", str(other)]) == 2
    assert "would replace" in capsys.readouterr().err
    assert path.read_text() == '{"text": "w1"}\n'


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["embed", "--out", "v.csv", "w1"], "cannot be written"),
        (["embed", "--out", "/nowhere/v.npy", "w1"], "no folder"),
        (["embed", "--precision", "int4", "w1"], "invalid choice"),
        (["embed", "--file", "missing.txt"], "no file"),
        (["similarity", "w1"], "two texts"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) in (2, 3)
    assert match in capsys.readouterr().err
