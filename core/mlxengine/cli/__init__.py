"""The ``mlxengine`` command: a frame that knows the verbs' names, and a module for each verb."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; never raises for an error of ours.

    Args:
        argv: the arguments after the program's name; ``None`` takes those of the process.
    """
    from ._frame import run

    return run(argv)


__all__ = ["main"]
