"""Run the hub for people: ``python -m tests.hub [--port 8123] [--root FOLDER] [--cdn]``.

Without a root it lays out the real models that the tests use. Point a client at it with
``HF_ENDPOINT=http://127.0.0.1:8123``.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from . import weights
from .server import HubServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description="A hub on loopback.")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--root", type=Path, help="folder of repositories, ROOT/org/name")
    parser.add_argument("--cdn", action="store_true", help="redirect large files to a second origin")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with HubServer(options.root, cdn=options.cdn, port=options.port) as hub:
        if options.root is None:
            weights.populate(hub.repos)
        print(
            f"hub at {hub.endpoint} with {', '.join(sorted(repo.id for repo in hub.repos.all()))}", flush=True
        )
        stop.wait()


if __name__ == "__main__":
    main()
