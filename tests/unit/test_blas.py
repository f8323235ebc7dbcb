"""A fast BLAS is found and loaded before mlx, and what was done is said. Each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only mlx on Linux lacks a fast BLAS")

REPORT = """
import json
from mlxengine.toolkit import blas
found = blas.load()
print(json.dumps([found.status, found.library, found.detail, found.remedy, blas.measure()]))
"""


def report(setting: str | None, before: str = "") -> tuple[str, str, str, str, float]:
    env = {key: value for key, value in os.environ.items() if key != "MLXENGINE_BLAS"}
    if setting is not None:
        env["MLXENGINE_BLAS"] = setting
    done = subprocess.run(
        [sys.executable, "-c", before + REPORT], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


@pytest.mark.parametrize("setting", [None, "mkl"])
def test_a_fast_blas_makes_fp32_products_at_least_four_times_faster(setting: str | None) -> None:
    status, library, _, _, fast = report(setting)
    assert status == "loaded"
    assert library == ("MKL" if setting == "mkl" else library)
    assert report("off")[4] * 4 < fast


def test_off_turns_the_search_off_and_says_so() -> None:
    status, _, detail, remedy, speed = report("off")
    assert (status, detail, remedy) == ("off", "MLXENGINE_BLAS=off", "Unset MLXENGINE_BLAS.")
    assert speed < 8


@pytest.mark.parametrize(
    ("setting", "cause"),
    [("/no/such/libblas.so", "/no/such/libblas.so"), ("libm.so.6", "cblas_sgemm"), ("nonsense", "nonsense")],
)
def test_a_library_that_cannot_be_used_is_reported_and_mlx_still_works(setting: str, cause: str) -> None:
    status, _, detail, remedy, speed = report(setting)
    assert status == "failed"
    assert cause in detail
    assert "MLXENGINE_BLAS" in remedy
    assert speed > 0


def test_it_is_too_late_once_mlx_is_imported() -> None:
    status, _, detail, remedy, _ = report(None, before="import mlx.core\n")
    assert status == "too late"
    assert "mlx was imported first" in detail
    assert "before anything imports mlx" in remedy


def test_a_blas_that_the_process_has_already_is_recognised() -> None:
    before = "import mlxengine._machine.blas as b, ctypes\n"
    before += "ctypes.CDLL(next(b._mkl()), mode=ctypes.RTLD_GLOBAL)\nimport mlx.core\n"
    status, library, detail, _, speed = report(None, before=before)
    assert (status, library) == ("loaded", "MKL")
    assert "already" in detail
    assert speed > 8


def test_the_backend_warns_once_when_it_comes_too_late_and_the_products_are_slow() -> None:
    code = "import mlx.core\nfrom mlxengine.toolkit import backend\nfrom mlxengine.toolkit import backend\n"
    env = {key: value for key, value in os.environ.items() if key != "MLXENGINE_BLAS"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr.count("RuntimeWarning") == 1
    assert "GFLOP/s" in done.stderr
    env["MLXENGINE_BLAS"] = "off"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_the_search_itself_does_not_import_mlx() -> None:
    code = "import sys\nfrom mlxengine.toolkit import blas\nblas.load()\nassert 'mlx.core' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
