"""Models over HTTP: only those that are served, loaded with progress, let go without losing a request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlxengine import Event, Finished, Request, TextDelta
from mlxengine_serve import ServedModel, ServerOptions
from mlxengine_serve._models import Models
from serve_harness import Scripted, Served, serving, write_model

PATH = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Served]:
    folders = [write_model(tmp_path / name) for name in "ab"]
    options = ServerOptions(
        models=[f"{folder.name}={folder}" for folder in folders],
        aliases=[("gpt-*", "b"), ("a", "b")],
        manage=True,
        first_byte_seconds=0.05,
    )
    with serving(options, Scripted()) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        yield served


def test_aliases_stand_for_models_and_never_hide_one(two: Served) -> None:
    assert two.post(PATH, {**BODY, "model": "gpt-4o"}).json()["model"] == "gpt-4o"
    assert two.post(PATH, {**BODY, "model": "other"}).status_code == 404
    asked = [two.post(PATH, {**BODY, "model": name}) and two.plugin.asked[-1] for name in ("gpt-5", "a")]  # type: ignore[union-attr]
    assert len(asked) == 2
    counted = {item.id[-1]: item.requests for item in two.engine.sync.metrics()}
    assert counted["b"]["stop"] == 2
    assert counted["a"]["stop"] == 2, "that of readiness, and one"


@pytest.mark.parametrize("name", ["/etc", "../b", "org/other", "file:///etc/passwd", "./b", "", "a@main"])
def test_no_name_of_a_clients_is_opened_or_fetched(two: Served, name: str) -> None:
    for path, body in ((PATH, BODY), ("/v1/models/load", {})):
        answer = two.post(path, {**body, "model": name})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert len(two.plugin.loads) == 2  # type: ignore[union-attr]


def test_a_model_is_unloaded_and_loaded_again_with_progress(two: Served) -> None:
    assert two.plugin is not None
    gone = two.post("/v1/models/unload", {"model": "b"}).json()
    assert gone == {"id": "b", "loaded": False, "was_loaded": True}
    assert [item["loaded"] for item in two.get("/v1/models").json()["data"]] == [True, False]
    assert two.post("/v1/models/unload", {"model": "b"}).json()["was_loaded"] is False
    two.plugin.load_seconds = 0.3
    frames = two.frames("/v1/models/load", {"model": "b", "stream": True})
    assert frames[0]["stage"] == "load"
    assert (frames[-1]["id"], frames[-1]["loaded"], frames[-1]["kind"]) == ("b", True, "llm")
    assert frames[-1]["seconds"] >= 0.3
    assert two.post("/v1/models/load", {"model": "b"}).json()["loaded"] is True
    assert len(two.plugin.loads) == 3


def test_the_id_of_a_model_is_renamed_where_it_stands_by_itself() -> None:
    models = Models(None, ServerOptions())  # type: ignore[arg-type]
    models._handles["chat"] = SimpleNamespace(id="org/m")  # type: ignore[assignment]
    told = models.renamed("org/m is no org/m-large, and org/m/config.json not my-org/m's.", "org/m")
    assert told == "chat is no org/m-large, and chat/config.json not my-org/m's."


def test_a_model_that_was_idle_for_long_is_said_to_be_out_of_memory_and_can_be_brought_back(
    tmp_path: Path,
) -> None:
    options = ServerOptions(models=[f"a={write_model(tmp_path / 'a')}"], manage=True)
    with serving(options, Scripted(), idle_ttl=0.3) as served:

        def entry() -> dict[str, Any]:
            found: dict[str, Any] = served.get("/v1/models").json()["data"][0]
            return found

        served.wait_until(lambda: entry()["loaded"])
        served.wait_until(lambda: not entry()["loaded"])
        assert (entry()["kind"], entry()["context_length"]) == ("llm", 4096), "what it is stays known"
        assert served.post("/v1/models/load", {"model": "a"}).json()["loaded"] is True
        assert entry()["loaded"] is True
        assert len(served.plugin.loads) == 2  # type: ignore[union-attr]
        served.wait_until(lambda: not entry()["loaded"])
        assert served.post("/v1/models/unload", {"model": "a"}).json()["was_loaded"] is False
        assert served.post(PATH, {**BODY, "model": "a"}).status_code == 200
        assert entry()["loaded"] is True


def test_only_where_it_is_allowed(served: Served) -> None:
    for verb in ("load", "unload"):
        answer = served.post(f"/v1/models/{verb}", {"model": "scripted"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed")


def test_an_unload_waits_for_what_runs_and_loses_nothing_that_comes(two: Served) -> None:
    assert two.plugin is not None

    def plan(_request: Request) -> Iterator[Event | None]:
        for _ in range(40):
            time.sleep(0.005)
            yield TextDelta(text="x")
        yield Finished()

    two.plugin.plan = plan
    answers: list[Any] = []

    def ask() -> None:
        answers.append(two.post(PATH, {**BODY, "model": "a"}).json())

    threads = [threading.Thread(target=ask) for _ in range(6)]
    threads[0].start()
    two.wait_until(lambda: two.plugin.alive == 1)  # type: ignore[union-attr]
    unloading = threading.Thread(target=lambda: two.post("/v1/models/unload", {"model": "a"}))
    unloading.start()
    for thread in threads[1:]:
        time.sleep(0.02)
        thread.start()
    for thread in [*threads, unloading]:
        thread.join(20)
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["x" * 40] * 6


def test_without_named_models_those_that_are_complete_here_are_served() -> None:
    import asyncio

    here = ["org/one"]
    models = Models(None, ServerOptions(), lambda: list(here))  # type: ignore[arg-type]
    assert asyncio.run(models.served()) == [ServedModel(name="org/one", ref="org/one")]
    assert asyncio.run(models.named("org/one")).ref == "org/one"
    for name in ("org/two", None):
        with pytest.raises(Exception, match="no model"):
            asyncio.run(models.named(name))


def test_three_models_that_do_not_fit_together_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    folders = [write_model(tmp_path / name, bytes=600 << 20) for name in "abc"]
    options = ServerOptions(models=[f"{folder.name}={folder}" for folder in folders])
    plugin = Scripted()
    with serving(options, plugin, memory_budget="1GB") as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        answers: list[Any] = []

        def ask(number: int) -> None:
            body = {**BODY, "model": "abc"[number % 3], "stream": bool(number % 2)}
            answer = served.post(PATH, body)
            answers.append(answer.status_code if answer.status_code == 200 else answer.text)

        for start in range(0, 60, 12):
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(start, start + 12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        assert answers == [200] * 60
        report = served.engine.sync.memory()
        assert report.reserved <= 1_000_000_000
        assert sum(not item.evicted for item in report.models) == 1


def test_a_model_that_can_never_fit_is_a_503_and_holds_nobody_up(tmp_path: Path) -> None:
    small, large = write_model(tmp_path / "small"), write_model(tmp_path / "large", bytes=2 << 30)
    options = ServerOptions(models=[f"small={small}", f"large={large}"])
    with serving(options, Scripted(), memory_budget="1GB") as served:
        served.wait_until(lambda: served.post(PATH, BODY).status_code == 200)
        answers: list[int] = []

        def ask(name: str) -> None:
            answers.append(served.post(PATH, {**BODY, "model": name}).status_code)

        names = ["large", "small", "large", "small", "small"]
        threads = [threading.Thread(target=ask, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(answers) == [200, 200, 200, 503, 503]
