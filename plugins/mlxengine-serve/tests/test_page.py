"""The page at ``/``: whole in the package, strict about what may run, and nothing comes from elsewhere."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from mlxengine_serve import Key, ServerOptions
from mlxengine_serve._page import FILES
from serve_harness import Served, serving

FOLDER = Path(str(files("mlxengine_serve") / "page"))


def test_the_page_and_all_that_it_names_are_served(served: Served) -> None:
    page = served.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    modules = re.findall(r'from "\./([^"]+)"', served.get("/page/page.js").text)
    found = {*named, *(f"page/{name}" for name in modules)} - {"data:,"}
    assert found == {f"page/{name}" for name in FILES if name != "index.html"}
    for name in found:
        answer = served.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(FILES[name.removeprefix("page/")])


@pytest.mark.parametrize("name", ["nothing.js", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "page.js/x"])
def test_no_other_file_is(served: Served, name: str) -> None:
    assert served.get(f"/page/{name}").status_code == 404


def test_nothing_may_run_or_load_but_its_own_files(served: Served) -> None:
    said = served.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in said.split(";"))
    assert rules["default-src"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert rules["frame-ancestors"] == "'none'"
    assert "unsafe" not in said


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host_or_writes_text_as_markup(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", text.replace("http://www.w3.org", ""))
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function| on\w+=| style=", text
    )


def test_the_page_asks_for_a_key_and_needs_none_itself() -> None:
    with serving(ServerOptions(models=["mock/llm"], keys=[Key.of("s3cret")]), backend="mock") as locked:
        assert locked.get("/").status_code == 200
        assert locked.get("/page/page.js").status_code == 200
        assert locked.get("/v1/models").status_code == 401
