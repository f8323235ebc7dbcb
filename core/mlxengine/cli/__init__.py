"""The ``mlxengine`` command: a frame that knows the verbs' names, and a module for each verb."""

from __future__ import annotations

from collections.abc import Sequence


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
    """`main` for a process that does nothing else: a Ctrl-C after its end changes its exit code no more."""
    try:
        return main()
    finally:
        import signal

        # Ending the threads and the interpreter takes a moment, in which the answer is already there.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


__all__ = ["entry", "main"]
