"""What every test of the project stands on, plugins' included."""

import contextlib

pytest_plugins = ["tests.hub.fixtures"]

with contextlib.suppress(ImportError):
    # before anything imports mlx: afterwards a fast BLAS can no longer take effect
    from mlxengine.toolkit import blas

    blas.load()
