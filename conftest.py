"""What every test of the project stands on, plugins' included."""

import atexit
import contextlib
import os
import shutil
import tempfile

pytest_plugins = ["tests.hub.fixtures"]

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
