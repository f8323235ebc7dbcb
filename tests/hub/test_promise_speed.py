"""Promise 15: verifying costs nothing that a clean download would notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.content import random_model, same
from tests.hub.processes import Download
from tests.hub.server import HubServer


@pytest.mark.slow
def test_a_clean_download_is_no_slower_than_the_stock_clients(hub: HubServer, tmp_path: Path) -> None:
    files = random_model(15, *[24_000_000] * 4)
    hub.repos.add("org/name", files)
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    for round_ in range(6):
        for kind in ("ours", "stock") if round_ % 2 else ("stock", "ours"):
            result = Download(kind, hub.endpoint, tmp_path / f"{kind}-{round_}", "org/name").result()
            times[kind].append(result["seconds"])
            if not round_:
                assert same(Path(result["path"]), files)
    print({kind: [round(value, 3) for value in found] for kind, found in times.items()})
    assert min(times["ours"]) <= 1.1 * min(times["stock"])
