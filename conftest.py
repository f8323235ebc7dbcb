"""What every test of the project stands on, plugins' included."""

import atexit
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

pytest_plugins = ["tests.hub.fixtures", "tests.packaging.fixtures"]

if sys.dont_write_bytecode:
    # the tests start hundreds of processes, and compiling what a model library imports takes seconds in each
    sys.dont_write_bytecode = False
    folder = str(Path(__file__).parent / ".cache" / "bytecode")
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = folder
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # mlx compiles kernels into a shared folder, where one process may meet another's half-written library
    own = f"{tempfile.gettempdir()}/mlxengine-tests-{os.getuid()}-{worker}"
    tempfile.tempdir = os.environ["TMPDIR"] = own
    Path(own).mkdir(exist_ok=True)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell without job control starts background jobs so, and the processes of the tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

with contextlib.suppress(ImportError):
    # before anything imports mlx: afterwards a fast BLAS can no longer take effect
    from mlxengine.toolkit import blas

    blas.load()


def pytest_configure() -> None:
    """Tests leave nothing in the user's own folders, and share no memory budget with other programs."""
    folder = tempfile.mkdtemp(prefix="mlxengine-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["MLXENGINE_HISTORY"] = f"{folder}/loads.jsonl"
    os.environ["MLXENGINE_RESERVATIONS"] = f"{folder}/reservations.json"
