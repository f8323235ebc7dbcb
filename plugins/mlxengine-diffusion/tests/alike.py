"""When pictures that are made in two ways count as the same: to the byte on a CPU, within a level on a GPU.

There the same request gives the same bytes again, but one of several pictures at once, or one of another
process that launches without CUDA graphs, may go through other kernels, which round otherwise in half
precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mlxengine import Device

ON_GPU = 1
"""Largest difference of two pixels there, of 255 levels."""


def alike(one: Any, other: Any) -> bool:
    """Whether pictures, or their pixels (height, width, 3), are the same; prints how far they are."""
    left, right = (np.asarray(getattr(item, "numpy", lambda item=item: item)()) for item in (one, other))
    if left.shape != right.shape:
        return False
    apart = int(np.abs(left.astype(int) - right).max())
    print(f"pixels differ by {apart} of 255")
    return apart <= (0 if Device.detect().backend == "cpu" else ON_GPU)
