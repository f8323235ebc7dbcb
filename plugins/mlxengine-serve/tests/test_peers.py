"""Each row of the page on other servers' tests is true of this one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine_serve import Key, ServerOptions
from peers import CASES, PAGE, Case, page
from serve_harness import Scripted, Served, serving, write_model


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    folder = write_model(tmp_path_factory.mktemp("models") / "scripted")
    models = [f"scripted={folder}"]
    with (
        serving(ServerOptions(models=models), Scripted()) as scripted,
        serving(ServerOptions(models=models, keys=[Key.of("s3cret")]), Scripted()) as locked,
        serving(ServerOptions(models=["mock/embed"]), backend="mock") as mock,
    ):
        found = {"scripted": scripted, "locked": locked, "mock": mock}
        for made in found.values():
            made.wait_until(lambda made=made: made.get("/ready").status_code == 200)  # type: ignore[misc]
        yield found


def said(text: str) -> Any:
    """A body: decoded, or its frames."""
    if "data: " not in text:
        return json.loads(text)
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.peer}: {case.theirs}")
def test_what_the_page_says_of_this_server_is_true(servers: dict[str, Served], case: Case) -> None:
    served = servers[case.where]
    content = case.body if isinstance(case.body, bytes) or case.body is None else json.dumps(case.body)
    answer = served.client.request(case.method, case.path, content=content, headers=dict(case.headers))
    assert answer.status_code == case.status, answer.text
    if case.status != 200:
        error = answer.json()["error"]
        assert error["message"]
        assert case.param in (None, error["param"])
    if case.check is not None:
        assert case.check(said(answer.text)), answer.text
    if case.ignored is not None:
        assert case.ignored in answer.headers["x-mlxengine-ignored"]
    if case.asked is not None:
        assert served.plugin is not None
        assert case.asked(served.plugin.last), served.plugin.last


def test_the_page_is_current_and_has_forty_rows_and_more() -> None:
    assert Path(PAGE).read_text(encoding="utf-8") == page()
    assert len(CASES) >= 40
    assert len({(case.peer, case.theirs) for case in CASES}) == len(CASES)
