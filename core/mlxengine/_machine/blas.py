"""A fast BLAS for mlx on a Linux CPU.

The CPU wheel of mlx carries the reference BLAS: 1 to 2 GFLOP/s where the processor does a hundred. Its
symbols give way to those of a library that is in the process's global scope *before* mlx is loaded, so
`load` finds OpenBLAS or MKL and puts it there. ``MLXENGINE_BLAS`` names a library to use (a path, or
``mkl`` or ``openblas``), or is ``off``. This module itself never imports mlx, except in `measure`.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import importlib.metadata
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

VARIABLE = "MLXENGINE_BLAS"
SLOW_GFLOPS = 8.0
"""Below this many GFLOP/s a product of 256 × 256 was not done by a fast BLAS."""

_log = logging.getLogger("mlxengine.blas")
_MARKS = {"openblas_get_config": "OpenBLAS", "MKL_Get_Version": "MKL", "bli_info_get_version_str": "BLIS"}


class BlasStatus(enum.StrEnum):
    """What became of the search."""

    LOADED = "loaded"
    OFF = "off"
    NOT_NEEDED = "not needed"
    NOT_FOUND = "not found"
    TOO_LATE = "too late"
    FAILED = "failed"


@frozen(kw_only=True)
class Blas:
    """What was done about a fast BLAS, and what to do if it was not enough.

    Args:
        status: the outcome.
        library: ``"OpenBLAS"``, ``"MKL"``, or the file's name.
        path: the file that was loaded.
        detail: why, in words.
        remedy: what the user can do, empty where nothing has to be done.
    """

    status: BlasStatus
    library: str = ""
    path: str = ""
    detail: str = ""
    remedy: str = ""

    @property
    def fast(self) -> bool:
        """Whether a fast BLAS is in place, or none is needed."""
        return self.status in (BlasStatus.LOADED, BlasStatus.NOT_NEEDED)


@functools.cache
def load() -> Blas:
    """Find a fast BLAS and load it, once per process and before mlx; later calls return the same answer.

    Never raises.
    """
    try:
        found = _load(os.environ.get(VARIABLE, "").strip())
    except Exception as error:  # whatever a foreign library does, mlx works without it
        found = Blas(
            status=BlasStatus.FAILED, detail=f"{type(error).__name__}: {error}", remedy=f"Set {VARIABLE}=off."
        )
    _log.debug("BLAS %s: %s %s %s", found.status, found.library, found.path, found.detail)
    return found


def measure(size: int = 256, repeats: int = 6) -> float:
    """GFLOP/s of an fp32 product of ``size`` × ``size`` on the CPU: the best of ``repeats``.

    Loads the BLAS, then imports mlx. Takes 0.15 s with the reference BLAS. Needs mlx.
    """
    load()
    import mlx.core as mx

    with mx.stream(mx.cpu):
        left = mx.ones((size, size), dtype=mx.float32)
        mx.eval(left)
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            mx.eval(left @ left)
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def _load(wanted: str) -> Blas:
    if sys.platform != "linux":
        return Blas(status=BlasStatus.NOT_NEEDED, detail="only mlx on a Linux CPU lacks a fast BLAS")
    if wanted.lower() in ("off", "none", "0"):
        return Blas(status=BlasStatus.OFF, detail=f"{VARIABLE}={wanted}", remedy=f"Unset {VARIABLE}.")
    if not wanted and _runs_on_gpu():
        return Blas(status=BlasStatus.NOT_NEEDED, detail="mlx runs on the GPU")
    if present := _in_process():
        return Blas(status=BlasStatus.LOADED, library=present, detail="it was in the process already")
    if "mlx.core" in sys.modules:
        return Blas(
            status=BlasStatus.TOO_LATE,
            detail="mlx was imported first",
            remedy="Import backend from mlxengine.toolkit, or make the engine, before anything imports mlx.",
        )
    failures: list[str] = []
    for library, path in _candidates(wanted):
        try:
            _open(library, path)
        except OSError as error:
            if wanted or os.sep in path:
                failures.append(str(error) if path in str(error) else f"{path}: {error}")
            continue
        return Blas(status=BlasStatus.LOADED, library=library, path=path)
    if wanted or failures:
        detail = "; ".join(failures) or f"{VARIABLE}={wanted} names no library that was found"
        return Blas(
            status=BlasStatus.FAILED,
            detail=detail,
            remedy=f"Correct {VARIABLE}, or unset it." if wanted else "",
        )
    return Blas(
        status=BlasStatus.NOT_FOUND,
        detail="neither OpenBLAS nor MKL is installed",
        remedy="Install one: pip install 'mlxengine[cpu]' (x86-64), or the system's libopenblas0.",
    )


def _open(library: str, path: str) -> None:
    if library == "MKL":
        # MKL's own threads would meet a second OpenMP runtime (torch's, scikit-learn's) in this process.
        os.environ.setdefault("MKL_THREADING_LAYER", "SEQUENTIAL")
    handle = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    if not hasattr(handle, "cblas_sgemm"):
        raise OSError("it has no cblas_sgemm")


def _in_process() -> str | None:
    everything = ctypes.CDLL(None)
    return next((name for mark, name in _MARKS.items() if hasattr(everything, mark)), None)


def _runs_on_gpu() -> bool:
    """Whether the installed mlx is a CUDA build on a machine with an NVIDIA driver."""
    if not Path("/proc/driver/nvidia/version").exists() and not Path("/dev/nvidiactl").exists():
        return False
    return any(_installed(name) for name in ("mlx-cuda-12", "mlx-cuda-13", "mlx-cuda"))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _candidates(wanted: str) -> Iterator[tuple[str, str]]:
    """Libraries to try, as (name, path), best first."""
    name = wanted.lower()
    if wanted and name not in ("mkl", "openblas"):
        base = Path(wanted).name.lower()
        library = "MKL" if "mkl" in base else "OpenBLAS" if "openblas" in base else Path(wanted).name
        yield library, str(Path(wanted).expanduser()) if os.sep in wanted else wanted
        return
    # MKL first: on one thread it is several times faster at the thin products of decoding.
    if name in ("", "mkl") and platform.machine() in ("x86_64", "AMD64"):
        for path in _mkl():
            yield "MKL", path
    if name in ("", "openblas"):
        for path in _openblas():
            yield "OpenBLAS", path


def _mkl() -> Iterator[str]:
    """``libmkl_rt`` of this environment (PyPI's wheel and conda's package put it into ``lib``)."""
    yield from sorted(map(str, Path(sys.prefix, "lib").glob("libmkl_rt.so*")), reverse=True)
    if _installed("mkl"):
        for item in importlib.metadata.files("mkl") or ():
            if item.name.startswith("libmkl_rt.so"):
                yield str(Path(str(item.locate())).resolve())
    yield "libmkl_rt.so"


def _openblas() -> Iterator[str]:
    """OpenBLAS where the dynamic loader finds it, then where distributions are known to put it."""
    yield "libopenblas.so.0"
    machine = platform.machine()
    for folder in (
        f"/usr/lib/{machine}-linux-gnu/openblas-pthread",
        "/usr/lib64",
        "/usr/lib",
        "/opt/OpenBLAS/lib",
    ):
        for name in ("libopenblasp.so.0", "libopenblas.so.0", "libopenblas.so"):
            if (path := Path(folder, name)).exists():
                yield str(path)


__all__ = ["SLOW_GFLOPS", "VARIABLE", "Blas", "BlasStatus", "load", "measure"]
