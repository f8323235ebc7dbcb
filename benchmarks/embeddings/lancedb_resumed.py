"""Many texts into a LanceDB table through our adapter, by a process that is killed and started again.

    python -m benchmarks.embeddings.lancedb_resumed MODEL_FOLDER [--texts 100000] [--kills 5] [--output FILE]

The process adds its texts in pieces, each with a number; LanceDB commits a piece whole or not at all, so what
is missing after a ``kill -9`` are the numbers that the table does not have. At the end every number has to be
there once, and the vectors of a sample have to be those that the model gives now. Needs
"mlxengine[embed,lancedb]".
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.embeddings.cpu import WORDS

PIECE = 1000


def text_of(number: int) -> str:
    source = random.Random(number)
    return f"{number} " + " ".join(source.choice(WORDS) for _ in range(source.randint(4, 9)))


def table_of(folder: str, model: str) -> Any:
    import lancedb
    from lancedb.pydantic import LanceModel, Vector
    from mlxengine.integrations.lancedb import MLXEngineEmbeddings

    database = lancedb.connect(folder)
    if "texts" in database.list_tables().tables:
        return database.open_table("texts")
    ours = MLXEngineEmbeddings.create(model=model)

    class Row(LanceModel):
        number: int
        text: str = ours.SourceField()
        vector: Vector(ours.ndims()) = ours.VectorField()  # type: ignore[valid-type]

    return database.create_table("texts", schema=Row)


def numbers(table: Any) -> list[int]:
    found: list[int] = table.search().select(["number"]).limit(None).to_arrow()["number"].to_pylist()
    return found


def fill(folder: str, model: str, count: int) -> None:
    """Add what the table does not have yet."""
    table = table_of(folder, model)
    there = set(numbers(table))
    missing = [number for number in range(count) if number not in there]
    for start in range(0, len(missing), PIECE):
        table.add([{"number": item, "text": text_of(item)} for item in missing[start : start + PIECE]])
        print(table.count_rows(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--fill", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.fill:
        fill(arguments.fill, arguments.model, arguments.texts)
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = run(folder, arguments.model, arguments.texts, arguments.kills)
    print(json.dumps(figures, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    if figures["doubles"] or figures["losses"] or figures["largest_difference"] > 1e-5:
        sys.exit("the table is not what it has to be")


def run(folder: str, model: str, count: int, kills: int) -> dict[str, Any]:
    """Fill a table, killing whoever does it ``kills`` times at moments of chance; what became of it."""
    source = random.Random(1)
    at = sorted(source.randrange(count) for _ in range(kills))
    began, killed = time.monotonic(), []
    command = [sys.executable, "-m", "benchmarks.embeddings.lancedb_resumed", model, "--texts", str(count)]
    while True:
        process = subprocess.Popen([*command, "--fill", folder], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        rows = 0
        for line in process.stdout:
            rows = int(line)
            if at and rows >= at[0]:
                at.pop(0)
                time.sleep(source.random())  # in the midst of the next piece
                process.kill()
                killed.append(rows)
                break
        if process.wait() == 0:
            break
        if process.returncode != -9:
            sys.exit(f"the filling process ended with {process.returncode}")
    return {"texts": count, "seconds": round(time.monotonic() - began, 1), "killed_after": killed} | checked(
        folder, model, count
    )


def checked(folder: str, model: str, count: int) -> dict[str, Any]:
    import numpy as np
    from mlxengine import InferenceEngine

    table = table_of(folder, model)
    found = numbers(table)
    sample = sorted(random.Random(2).sample(range(count), min(count, 500)))
    wanted = ",".join(map(str, sample))
    kept = table.search().where(f"number IN ({wanted})").limit(len(sample)).to_arrow()
    stored = dict(zip(kept["number"].to_pylist(), np.stack(kept["vector"].to_numpy()), strict=True))
    with InferenceEngine() as engine:
        now = engine.load_embeddings(model).embed_document([text_of(item) for item in sample]).numpy()
    difference = max(float(np.abs(stored[item] - row).max()) for item, row in zip(sample, now, strict=True))
    return {
        "rows": len(found),
        "doubles": len(found) - len(set(found)),
        "losses": len(set(range(count)) - set(found)),
        "sample": len(sample),
        "largest_difference": difference,
    }


if __name__ == "__main__":
    main()
