"""What is known of a replica, and when its process is ended, by real servers without Ray; and the verb."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import talking
from attrs import evolve
from mlxengine.cli import main
from mlxengine.errors import GenerationError, ModelNotFoundError
from mlxengine_ray.serving import Actor, Ended, tend
from mlxengine_serve import ServerOptions
from mlxengine_serve.front import Behind, Figures, Member

CHAT = b"/v1/chat/completions"
QUICK = ServerOptions(stuck_seconds=0.2, ready_seconds=0.2)


class Tended:
    """A replica that is asked by ``ask``, and what became of it."""

    def __init__(self, ask: Callable[[], Awaitable[Figures]], options: ServerOptions) -> None:
        self.member, self.ended = Member(0), 0
        self.failed: list[BaseException] = []
        self.task = asyncio.ensure_future(
            tend(Actor(ask=ask, end=self._end), self.member, options, self.failed.append)
        )

    def _end(self) -> None:
        self.ended += 1

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not true():
                assert not self.task.done(), self.task.result()
                await asyncio.sleep(0.005)


def served(test: Callable[[Behind, ServerOptions], Awaitable[None]], model: str | Path) -> None:
    """Run a test beside a server on a socket."""

    async def run(folder: str) -> None:
        options = evolve(QUICK, models=[f"m={model}"])
        behind = Behind(options, Path(folder), {"plugins": [("talking", talking)], "offline": True})
        await asyncio.wait_for(test(behind, options), 20)

    with tempfile.TemporaryDirectory() as folder:
        # on a thread, as the actor's: signals are the test's
        asyncio.run(asyncio.to_thread(asyncio.run, run(folder)))  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "talking"}))
    return tmp_path


def test_a_replica_is_ready_when_its_model_is_and_a_step_that_does_not_return_ends_it(model: Path) -> None:
    async def test(behind: Behind, options: ServerOptions) -> None:
        tended = Tended(behind.figures, options)
        assert tended.member.trouble == "it is being started"
        await tended.until(lambda: tended.member.trouble is None)
        assert (tended.member.starts, tended.ended) == (1, 0)
        body = json.dumps({"messages": [{"role": "user", "content": "stuck"}]}).encode()
        async with tended.member.asked("POST", CHAT, [(b"host", b"localhost")], body) as answer:
            assert answer.status_code == 503  # by the server's own watch
        await tended.until(lambda: tended.ended == 1)
        tended.task.cancel()

    served(test, model)


def test_a_model_that_cannot_be_loaded_is_told_with_its_own_error() -> None:
    async def test(behind: Behind, options: ServerOptions) -> None:
        tended = Tended(behind.figures, options)
        await tended.until(lambda: bool(tended.failed))
        assert isinstance(tended.failed[0], ModelNotFoundError)
        tended.task.cancel()

    served(test, "/nowhere/at/all")


def test_one_that_does_not_answer_gets_nothing_and_is_ended_after_a_while() -> None:
    async def test() -> None:
        tended = Tended(asyncio.Event().wait, QUICK)  # type: ignore[arg-type]
        await tended.until(lambda: tended.member.trouble == "it does not answer")
        assert tended.ended == 0
        await tended.until(lambda: tended.ended == 1)
        tended.task.cancel()

    asyncio.run(test())


def test_one_that_has_ended_is_asked_again_until_its_successor_is_there(model: Path) -> None:
    async def test(behind: Behind, options: ServerOptions) -> None:
        answers: list[Exception] = []

        async def ask() -> Figures:
            if answers:
                raise answers.pop()
            return await behind.figures()

        tended = Tended(ask, options)
        await tended.until(lambda: tended.member.trouble is None)
        answers.append(Ended("it was shot"))
        await tended.until(lambda: tended.member.trouble == "it was shot")
        assert tended.member.figures is None
        await tended.until(lambda: tended.member.trouble is None)
        assert tended.member.starts == 1  # it is the same process after all
        # it was well once: what it cannot do later is no reason to end all
        answers.append(GenerationError("no memory now"))
        await tended.until(lambda: tended.ended == 1)
        assert not tended.failed
        assert "no memory now" in str(tended.member.trouble)
        tended.task.cancel()

    served(test, model)


@pytest.mark.parametrize(
    ("words", "ray", "told"),
    [
        (["--replicas", "2"], None, 'pip install "mlxengine-ray[serve]"'),
        (["--replicas", "9999"], ModuleType("ray"), "9999 replicas need 9999 logical CPUs, and there are 4"),
        (["--replicas", "2", "--manage"], None, "--manage"),
        (["--replicas", "0"], None, "--replicas"),
    ],
)
def test_the_verb_says_what_replicas_lack_before_anything_starts(
    words: list[str],
    ray: Any,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    model = ["--feature", "core.mock", "--model", "mock/llm"]
    assert main(["serve", "--port", "0", *model, *words]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert "serving" not in said.out
