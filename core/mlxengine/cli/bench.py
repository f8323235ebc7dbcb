"""Measure a model on this machine; what is measured depends on its kind (for text: prefill, decode, a batch).

The model is warmed up first, and one run is not counted. Each measurement is repeated; the table gives
mean ± deviation. --compare reads a result that was written with --output before, and says how each figure
changed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from .._units import human
from .._version import __version__
from ..contract.kinds import Measuring
from ..engine import InferenceEngine
from ..errors import ConfigurationError
from ..handle import ModelHandle
from . import _engine, _kinds
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    _engine.add_model(parser)
    parser.add_argument("--repeats", type=_engine.positive, default=3, metavar="N")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier result to compare with")
    _kinds.add_options(parser, "bench")


def run(arguments: argparse.Namespace, out: Output) -> int:
    before = _read(arguments.compare) if arguments.compare else None
    with _engine.engine(arguments, out) as engine:
        model = _engine.choose(engine, arguments, out)
        kind = _engine.kind_of(engine, engine.resolve(model), arguments)
        measuring: Measuring = _kinds.asked(kind, "bench")
        options = _kinds.values(arguments, measuring.options, kind.name)
        began = time.perf_counter()
        handle = _engine.load_named(model, engine, arguments, out, ModelHandle, warm_up=True)
        measuring.measure(handle, options)  # kernels are compiled and caches filled by the first run
        out.note(f"loaded and warmed up in {time.perf_counter() - began:.1f} s, which is not counted")
        runs: list[dict[str, float]] = []
        for number in range(arguments.repeats):
            runs.append(dict(measuring.measure(handle, options)))
            out.note(f"run {number + 1} of {arguments.repeats}")
        result = _result(engine, handle, runs)
    if arguments.output:
        try:
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise ConfigurationError(f"{arguments.output} cannot be written: {error.strerror}.") from error
    figures: dict[str, dict[str, float]] = result["figures"]  # type: ignore[assignment]

    def text() -> None:
        headers = ["figure", "mean", "± deviation", *(["before", "change"] if before else [])]
        rows = []
        for name, figure in figures.items():
            row = [name, f"{figure['mean']:.4g}", f"{figure['deviation']:.2g}"]
            old = (before or {}).get(name)
            if before:
                row += [f"{old['mean']:.4g}", f"{figure['mean'] / old['mean'] - 1:+.1%}"] if old else ["", ""]
            rows.append(row)
        out.line(f"{handle.id} on {engine.device.name} ({engine.device.backend})")
        out.table(headers, rows)
        peak = result["peak_memory_bytes"]
        if isinstance(peak, int):
            out.line(f"peak memory {human(peak)}")

    out.emit({**result, "before": before}, text)
    return 0


def _result(engine: InferenceEngine, handle: ModelHandle, runs: list[dict[str, float]]) -> dict[str, object]:
    peak = max(run.pop("peak memory, bytes", 0.0) for run in runs)
    figures = {}
    for name in runs[0]:
        values = [run[name] for run in runs if name in run]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        figures[name] = {"mean": statistics.fmean(values), "deviation": deviation}
    return {
        "model": handle.id,
        "commit": handle.card.commit,
        "kind": handle.kind,
        "mlxengine": __version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": _engine.as_dict(engine.device),
        "warmed_up": True,
        "repeats": len(runs),
        "figures": figures,
        "peak_memory_bytes": int(peak) or None,
        "mock": engine.mock,
    }


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        figures = json.loads(path.read_text())["figures"]
        return {name: {"mean": float(item["mean"])} for name, item in figures.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} is not a result of `mlxengine bench`.", hint="Write one with --output."
        ) from error
