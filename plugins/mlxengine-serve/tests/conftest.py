"""A server with a scripted model, made once for a module; what is planned for it is a test's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlxengine_serve import ServerOptions

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "mlxengine-embed" / "tests"))

from serve_harness import Scripted, Served, serving, write_model


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_model(tmp_path_factory.mktemp("models") / "scripted")
    options = ServerOptions(models=[f"scripted={folder}"], first_byte_seconds=0.3, heartbeat_seconds=0.2)
    with serving(options, Scripted()) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        yield served


@pytest.fixture
def served(module_server: Served) -> Served:
    assert module_server.plugin is not None
    fresh = Scripted()
    module_server.plugin.plan = fresh.plan
    module_server.plugin.asked.clear()
    return module_server
