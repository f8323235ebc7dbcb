"""``mlxengine batch``: jobs as processes, killed and run again, and what cannot be a job."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from deadly import install
from mlxengine import InferenceEngine
from mlxengine.cli import main
from mlxengine_ray import _store

MOCK = ("--feature", "core.mock", "--model")


def texts(path: Path, count: int) -> Path:
    path.write_text(
        "".join(json.dumps({"id": f"n{n}", "text": f"the text {n}"}) + "\n" for n in range(count))
    )
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "mlxengine", "batch", "--json", "-q", *map(str, words)]


def finished(*words: object) -> dict[str, Any]:
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def results(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for part in sorted(out.glob("part-*.jsonl"))
        for line in part.read_text().splitlines()
    ]


def kept(out: Path) -> int:
    """How many rows are on the disk: in parts, and in whole lines of journals."""
    rows: set[bytes] = set()
    for path in [*out.glob(".journal/*.jsonl"), *out.glob("part-*")]:
        with contextlib.suppress(FileNotFoundError):  # it has become a part
            lines = path.read_bytes().splitlines(keepends=True)
            rows.update(line.split(b",")[0] for line in lines if line.endswith(b"}\n"))
    return len(rows)


def ended_in_the_middle(out: Path, number: int, words: list[str]) -> int:
    """Run a job, end it once some more of it is done, and say how many rows are left of it."""
    before = kept(out) if out.exists() else 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        deadline = time.monotonic() + 60
        while not out.exists() or kept(out) < before + 500:
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        running.send_signal(number)
        sent = time.monotonic()
        assert running.wait(10) == (130 if number == signal.SIGINT else -number)
        assert time.monotonic() - sent < 5
        assert running.stderr is not None
        assert b"Traceback" not in running.stderr.read()
    return kept(out)


def test_a_job_that_is_killed_again_and_again_has_every_row_once(tmp_path: Path) -> None:
    source, out = texts(tmp_path / "t.jsonl", 2000), tmp_path / "out"
    words = [source, out, *MOCK, "mock/llm", "--field", "text", "--keep", "id", "--part-rows", 300]
    left = 0
    for number in (signal.SIGKILL, signal.SIGINT):
        left = ended_in_the_middle(out, number, command(*words))
        assert left < 2000
        for part in out.glob("part-*"):  # what is there is whole
            assert len(part.read_text().splitlines()) == 300
    value = finished(*words)
    assert (value["rows"], value["errors"], value["resumed"], value["parts"]) == (2000, 0, left, 7)
    found = results(out)
    assert [row["row"] for row in found] == list(range(2000))
    assert [row["id"] for row in found] == [f"n{n}" for n in range(2000)]
    assert found[1999]["answer"] == "[mock] This is no model. You said: the text 1999"
    assert finished(*words)["resumed"] == 2000  # nothing is left to do


def test_ctrl_c_does_not_wait_for_a_step_of_the_model(tmp_path: Path) -> None:
    source = tmp_path / "t.jsonl"
    source.write_text('{"text": "a slow one"}\n')
    environment = install(tmp_path)
    words = command(source, tmp_path / "out", "--model", tmp_path / "model")
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while not (tmp_path / "model" / "slow").exists():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        sent = time.monotonic()
        assert running.wait(20) == 130
        assert time.monotonic() - sent < 4


def test_vectors_of_every_kind_of_table_are_those_of_the_engine(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "id": [1, 2]}), tmp_path / "2.parquet")
    (tmp_path / "1.csv").write_text("id,text\n0,é\n")
    texts(tmp_path / "0.jsonl", 3)
    out = tmp_path / "out"
    assert main(["batch", "-q", str(tmp_path), str(out), *MOCK, "mock/embed", "--format", "parquet"]) == 0
    table = pyarrow.parquet.read_table(out)
    with InferenceEngine(backend="mock") as engine:
        wanted = engine.load_embeddings("mock/embed").embed(
            ["the text 0", "the text 1", "the text 2", "é", "a", "b"]
        )
    assert table["vector"].to_pylist() == wanted.numpy().tolist()
    assert table["source"].to_pylist() == [
        *(f"0.jsonl:{n}" for n in (1, 2, 3)),
        "1.csv:1",
        "2.parquet:1",
        "2.parquet:2",
    ]


def test_rows_in_are_rows_out_and_rows_with_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "t.jsonl"
    source.write_text('{"text": "a"}\n{"text": \n{"body": "b"}\n{"text": "\\ud800"}\n{"text": "c"}\n')
    out = tmp_path / "out"
    assert main(["batch", "--json", "-q", str(source), str(out), *MOCK, "mock/embed"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["rows"], value["errors"]) == (5, 3)
    found = results(out)
    assert [row["error"]["type"] if "error" in row else None for row in found] == [
        None,
        *["InvalidParameterError"] * 3,
        None,
    ]
    assert "t.jsonl:2" in found[1]["error"]["message"]


def test_a_job_of_which_nothing_came_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "batch",
        str(texts(tmp_path / "t.jsonl", 3)),
        str(tmp_path / "out"),
        *MOCK,
        "mock/embed",
        "--field",
        "body",
    ]
    assert main(words) == 6
    assert "All 3 rows" in capsys.readouterr().err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert main(["batch", str(empty), str(tmp_path / "none"), *MOCK, "mock/embed"]) == 0
    assert "0 rows in " in capsys.readouterr().out


def test_a_job_whose_first_rows_all_fail_stops_and_goes_on_if_it_is_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "t.jsonl"
    # two requests of 256 run at once: both are hopeless
    source.write_text('{"body": "a"}\n' * 512 + '{"text": "a"}\n' + '{"body": "a"}\n' * 100)
    words = ["batch", "-q", str(source), str(tmp_path / "out"), *MOCK, "mock/embed"]
    assert main(words) == 6
    assert "The first 256 rows all ended with an error" in capsys.readouterr().err
    while main(words) == 6:
        assert "The first 256 rows" in capsys.readouterr().err
    assert "612 of them with an error" in capsys.readouterr().out
    assert [row["row"] for row in results(tmp_path / "out") if "error" not in row] == [512]


def test_a_folder_of_pictures_is_asked_about(tmp_path: Path) -> None:
    folder = tmp_path / "cats"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"x")
    out = tmp_path / "out"
    words = ["--prompt", "What is it?", "--max-tokens", "2"]
    assert main(["batch", "-q", str(folder), str(out), *MOCK, "mock/vlm", *words]) == 0
    assert [(row["source"], row["answer"], row["finish_reason"]) for row in results(out)] == [
        ("a.png", "[mock] This", "length"),
        ("b.png", "[mock] This", "length"),
    ]


def test_pictures_are_made_of_prompts(tmp_path: Path) -> None:
    source = tmp_path / "t.csv"
    source.write_text("prompt,seed\na red circle,1\na blue one,2\n")
    out = tmp_path / "out"
    assert main(["batch", "-q", str(source), str(out), *MOCK, "mock/diffusion", "--size", "16x16"]) == 0
    found = results(out)
    assert [row["seed"] for row in found] == [1, 2]
    assert all((out / row["picture"]).read_bytes().startswith(b"\x89PNG") for row in found)


def test_bytes_that_are_kept_are_those_of_the_input_and_no_pictures(tmp_path: Path) -> None:
    source = tmp_path / "t.parquet"
    columns = {"prompt": ["a"], "one": [b"\xff1"], "two": [b"2"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), source)
    out = tmp_path / "out"
    keep = ["--keep", "one", "--keep", "two"]
    assert main(["batch", "-q", str(source), str(out), *MOCK, "mock/diffusion", *keep]) == 0
    [row] = results(out)
    assert [base64.b64decode(row[name]) for name in ("one", "two")] == [b"\xff1", b"2"]
    assert (out / row["picture"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["OUT"], "needs inputs"),
        (["t.jsonl", "OUT"], "needs a model"),
        (["no.jsonl", "OUT", *MOCK, "mock/embed"], "no file"),
        (["t.jsonl", "OUT", *MOCK, "mock/embed", "--max-tokens", "3"], "takes no --max-tokens"),
        (["t.jsonl", "OUT", *MOCK, "mock/diffusion", "--prompt", "a"], "takes no --prompt"),
        (["t.jsonl", "OUT", *MOCK, "mock/llm", "--temperature", "-1"], "temperature"),
        (["t.jsonl", "OUT", *MOCK, "mock/embed", "--keep", "vector"], "of their own"),
        (["t.csv", "OUT", *MOCK, "mock/embed", "--field", "body"], "no column body"),
        (["t.jsonl", "OUT", *MOCK, "mock/embed", "--task", "generate"], "kind 'embed'"),
        (["t.jsonl", "t.csv", *MOCK, "mock/embed"], "t.csv is there already and no job's"),
        (["t.jsonl", "t.csv/OUT", *MOCK, "mock/embed"], "t.csv/OUT cannot be made"),
        (["bare.csv", "OUT", *MOCK, "mock/embed", "--keep", "id"], "bare.csv has no columns"),
        (["twice.csv", "OUT", *MOCK, "mock/embed"], "2 columns that are called text"),
    ],
)
def test_what_cannot_be_a_job_is_said_before_anything_is_written(
    words: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    texts(tmp_path / "t.jsonl", 3)
    (tmp_path / "t.csv").write_text("text\na\n")
    (tmp_path / "bare.csv").write_text("")
    (tmp_path / "twice.csv").write_text("text,,text,\na,b,c,d\n")
    assert main(["batch", "-q", *words]) in (2, 3)
    assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("OUT/part-*"))


def test_an_encoder_of_texts_is_not_asked_for_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "t.jsonl").write_text('{"query": "a", "document": "b"}\n')
    words = ["batch", "-q", str(tmp_path / "t.jsonl"), str(tmp_path / "OUT"), "--model", str(folder)]
    assert main([*words, "--task", "rerank"]) == 6
    assert "is not a cross-encoder" in capsys.readouterr().err
    assert not (tmp_path / "OUT").exists()


def test_a_disk_that_is_full_ends_the_job_which_goes_on_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["batch", "-q", str(texts(tmp_path / "t.jsonl", 600)), str(tmp_path / "out"), *MOCK, "mock/embed"]
    real, written = _store._write, []

    def write(file: int, data: bytes) -> None:
        written.append(file)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(_store, "_write", write)
        assert main(words) == 4
    assert "No space left" in capsys.readouterr().err
    assert main(words) == 0
    assert [row["row"] for row in results(tmp_path / "out")] == list(range(600))


@pytest.mark.slow
def test_a_hundred_thousand_rows_need_no_more_memory_than_ten_thousand(tmp_path: Path) -> None:
    peaks = []
    for count in (10_000, 100_000):
        source, out = texts(tmp_path / f"{count}.jsonl", count), tmp_path / f"out-{count}"
        with subprocess.Popen(
            command(source, out, *MOCK, "mock/embed"), stdout=subprocess.DEVNULL
        ) as running:
            told = ["ps", "-o", "rss=", "-p", str(running.pid)]
            peak = 0
            while running.poll() is None:
                kilobytes = subprocess.run(told, capture_output=True, text=True, check=False).stdout
                peak = max(peak, int(kilobytes or 0))
                time.sleep(0.05)
        assert running.returncode == 0
        assert len(results(out)) == count
        peaks.append(peak)
    assert peaks[1] < 1.1 * peaks[0], peaks
