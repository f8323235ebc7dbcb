"""The ``mlxengine`` command: a frame that knows the verbs' names, and a module for each verb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

TERMINATED = 143
"""The exit code of a command that SIGTERM ended, as a shell has it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; never raises for an error of ours.

    Args:
        argv: the arguments after the program's name; ``None`` takes those of the process.
    """
    try:
        from ._frame import run

        return run(argv)
    except KeyboardInterrupt:  # while the frame itself was being imported, or cleaned up after
        return 130


def entry() -> int:
    """`main` for a process that does nothing else.

    SIGTERM ends it as Ctrl-C does, so that no half-written file stays. A Ctrl-C after its end changes its
    exit code no more.
    """
    import signal

    signal.signal(signal.SIGTERM, _ended)
    try:
        return main()
    finally:
        # Ending the threads and the interpreter takes a moment, in which the answer is already there.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ended(*_: object) -> NoReturn:
    raise SystemExit(TERMINATED)


__all__ = ["TERMINATED", "entry", "main"]
