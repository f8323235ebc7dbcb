"""``python -m mlxengine`` is the ``mlxengine`` command."""

import sys

from .cli import entry

if __name__ == "__main__":
    sys.exit(entry())
