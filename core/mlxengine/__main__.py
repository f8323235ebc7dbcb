"""``python -m mlxengine`` is the ``mlxengine`` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
