"""A plugin whose model ends its process at a text with ``kill`` in it, and takes its time for others.

A text with ``slow`` in it is a step of ten seconds that nobody can cut, and leaves a file
``slow`` beside the model.

It is found as an installed plugin, by replicas too: `install` writes what its entry point needs.
"""

from __future__ import annotations

import array
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxengine import (
    Array,
    Claim,
    Embeddings,
    EmbedRequest,
    Event,
    Finished,
    Fit,
    Loaded,
    MemoryEstimate,
    Request,
    hookimpl,
)

SECONDS = 0.02  # for each text


def install(folder: Path, name: str = "deadly") -> dict[str, str]:
    """Make a model at ``folder/model``, and what a process's environment needs to find its plugin, a module
    beside this one."""
    info = folder / "site" / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mlxengine]\n{name} = {name}\n")
    (folder / "site" / f"{name}.py").write_text((Path(__file__).parent / f"{name}.py").read_text())
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": name}))
    return {**os.environ, "PYTHONPATH": str(folder / "site")}


@hookimpl
def claim_model(card: Any) -> Claim | None:
    if card.architecture != "deadly":
        return None
    return Claim(
        kind="embed",
        fit=Fit.NATIVE,
        files=("config.json",),
        estimate=lambda _workload: MemoryEstimate(weights=1 << 20),
        uses_mlx=False,
    )


@hookimpl
def load_model(card: Any, context: Any) -> Loaded:
    return Loaded(model=card.id, info={"dimension": 2, "prompts": {}})


@hookimpl
def generate(model: object, request: Request, context: Any) -> Iterator[Event | None]:
    assert isinstance(request, EmbedRequest)
    return _answered(str(model), request)


def _answered(model: str, request: EmbedRequest) -> Iterator[Event]:
    for index, text in enumerate(request.texts):
        if "kill" in text:
            os._exit(1)
        if "slow" in text:
            Path(model, "slow").touch()
            time.sleep(10)
        time.sleep(SECONDS)
        values = array.array("f", (float(len(text)), float(os.getpid())))
        yield Embeddings(
            indices=(index,), vectors=Array(data=values.tobytes(), shape=(1, 2), dtype="float32")
        )
    yield Finished()
