"""Where the plugins' own tests keep the checkpoints that they make."""

import sys
from pathlib import Path

_PLUGINS = Path(__file__).parents[2] / "plugins"
sys.path[:0] = [
    str(_PLUGINS / "mlxengine-vlm" / "tests"),
    str(_PLUGINS / "mlxengine-vlm" / "tests" / "parity"),
]
