"""Configurations that lie: fixed seeds, one small model of each kind, each case in a bounded process.

As a script it is the worker: it reads cases from its standard input and answers each with a line of JSON. A
case holds where loading it, and asking what was loaded for an answer, succeeds or ends with a typed error.
"""

from __future__ import annotations

import json
import math
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from .files import tokenizer_case

SECONDS = 10.0
BYTES = 4 << 30
KINDS = ("llm", "vlm", "embed", "diffusion")
TOKENIZER = "tokenizer"
"""Not the configuration but the ``tokenizer.json`` of a language model is changed."""

ROOT = Path(__file__).parents[2]
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    -7,
    1,
    3,
    10**6,
    10**12,
    2**63,
    10**400,
    0.5,
    -0.5,
    1e308,
    math.inf,
    math.nan,
    "",
    "x",
    "128",
    "\ud800",
    [],
    [0],
    [1, 2],
    ["full_attention"],
    [None, "x"],
    {},
    {"a": 1},
    {"rope_type": "yarn", "factor": -1},
    {"bits": 4, "group_size": 64},
)


@frozen
class Outcome:
    """How a case ended: ``loaded``, the name of a typed error, or what is a fault."""

    case: int
    change: str
    how: str
    seconds: float
    fault: bool = False


def change(config: dict[str, Any], seed: int) -> str:
    """Change a configuration at one to three places; says how."""
    chance = random.Random(seed)
    said = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(config))
        holder, key = chance.choice(places)
        if chance.random() < 0.1:
            holder.pop(key)
            said.append(f"del {key}")
            continue
        value = chance.choice(_VALUES)
        if chance.random() < 0.1 and isinstance(holder[key], int):
            value = holder[key] * chance.choice((2, 3, -1)) + chance.choice((0, 1))
        holder[key] = value
        text = f"{value!r}" if not isinstance(value, int) or abs(value) < 10**20 else "10**400"
        said.append(f"{key}={text}")
    return ", ".join(said)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield value, key
            yield from _places(value[key])


def bases(folder: Path, kinds: tuple[str, ...] = KINDS) -> dict[str, Path]:
    """A small model of each kind."""
    found = {}
    for kind in kinds:
        found[kind] = folder / kind
        if kind in ("llm", TOKENIZER):
            sys.path.insert(0, str(ROOT / "plugins/mlxengine-llm/tests"))
            from llm_harness import write_tiny

            types = ["full_attention", "full_attention"]
            write_tiny(
                found[kind],
                layer_types=types,
                head_dim=8,
                rope_scaling=None,
                hidden_act="silu",
                attention_bias=False,
            )
        elif kind == "embed":
            sys.path.insert(0, str(ROOT / "plugins/mlxengine-embed/tests"))
            import embed_checkpoints

            found[kind] = embed_checkpoints.write("bert-dense", folder)
        else:
            name = {"vlm": "tiny-shapes-vlm", "diffusion": "tiny-shapes-sd"}[kind]
            shutil.copytree(ROOT / "tests/models" / name, found[kind])
    return found


def documents(folder: Path) -> list[Path]:
    """The configurations of a model that are changed in turn."""
    return sorted([*folder.rglob("config.json"), *folder.rglob("scheduler_config.json")])


def campaign(kind: str, base: Path, seeds: range) -> list[Outcome]:
    """Try the configurations of the seeds on one kind, each bounded in time and memory."""
    outcomes: list[Outcome] = []
    waiting = list(seeds)
    while waiting:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.content.configs", kind, str(base)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            assert json.loads(worker.stdout.readline()) == "ready"
            while waiting:
                seed = waiting.pop(0)
                began = time.perf_counter()
                worker.stdin.write(f"{seed}\n")
                worker.stdin.flush()
                ready, _, _ = select.select([worker.stdout], [], [], SECONDS)
                line = worker.stdout.readline() if ready else ""
                took = time.perf_counter() - began
                if not line:
                    how = f"more than {SECONDS:g} s" if not ready else f"the process ended: {worker.wait()}"
                    outcomes.append(Outcome(seed, changed(kind, base, seed)[2], how, took, True))
                    break
                said, how, fault = json.loads(line)
                outcomes.append(Outcome(seed, said, how, took, fault))
        finally:
            worker.kill()
            worker.wait()
            worker.stdin.close()
            worker.stdout.close()
    return outcomes


def changed(kind: str, base: Path, seed: int) -> tuple[str, str, str]:
    """Of a seed: which file is changed, its text then, and how it was changed."""
    if kind == TOKENIZER:
        text = tokenizer_case(base.joinpath("tokenizer.json").read_text(), seed)
        return "tokenizer.json", text, f"tokenizer {seed}"
    places = documents(base)
    path = places[seed % len(places)]
    config = json.loads(path.read_text())
    said = change(config, seed)
    name = path.relative_to(base).as_posix()
    return name, json.dumps(config), f"{name}: {said}"


def _work(kind: str, base: Path) -> None:
    from mlxengine import InferenceEngine

    answer = sys.stdout
    sys.stdout = sys.stderr
    with InferenceEngine() as engine:
        _try(engine, kind, base)
        status = Path("/proc/self/statm").read_text().split()
        now = int(status[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, now + BYTES))
        print('"ready"', file=answer, flush=True)
        for line in sys.stdin:
            seed = int(line)
            name, text, said = changed(kind, base, seed)
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "model"
                shutil.copytree(base, folder, copy_function=_linked)
                folder.joinpath(name).unlink()
                folder.joinpath(name).write_text(text)
                how, fault = _outcome(engine, kind, folder)
            print(json.dumps([said, how, fault]), file=answer, flush=True)


def _linked(source: str, target: str) -> None:
    Path(target).hardlink_to(source) if source.endswith("safetensors") else shutil.copy(source, target)


def _outcome(engine: Any, kind: str, folder: Path) -> tuple[str, bool]:
    from mlxengine.errors import MLXEngineError, PluginContractError, PluginCrashedError

    try:
        _try(engine, kind, folder)
    except (PluginCrashedError, PluginContractError) as error:
        return f"{type(error).__name__}: {error} ({error.__cause__!r})"[:300], True
    except MLXEngineError as error:
        return type(error).__name__, False
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300], True
    return "loaded", False


def _try(engine: Any, kind: str, folder: Path) -> None:
    from mlxengine import GenerateParams

    with engine.load(str(folder)) as model:
        if kind in ("llm", "vlm", TOKENIZER):
            model.generate("Hi", GenerateParams(max_tokens=2))
        elif kind == "embed":
            model.embed(["w1 w2"]).numpy()
        else:
            model.image("a red circle", steps=1, size=(32, 32), seed=0)


def counted(outcomes: list[Outcome]) -> Mapping[str, int]:
    """Tried, loaded, typed and faults."""
    faults = sum(item.fault for item in outcomes)
    loaded = sum(item.how == "loaded" for item in outcomes)
    return {
        "tried": len(outcomes),
        "loaded": loaded,
        "typed": len(outcomes) - faults - loaded,
        "faults": faults,
    }


if __name__ == "__main__":
    _work(sys.argv[1], Path(sys.argv[2]))
