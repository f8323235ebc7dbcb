"""The page in a real browser: headless Chromium, driven by its own protocol. ``make test-clients``."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from mlxengine import ReasoningDelta, TextDelta, ToolCall  # noqa: E402
from mlxengine_serve import ServerOptions  # noqa: E402
from serve_harness import Scripted, Served, planned, serving, write_model  # noqa: E402

SHOTS = os.environ.get("MLXENGINE_SCREENSHOTS")  # a folder where pictures of the page are put


class Browser:
    """One tab of a browser."""

    def __init__(self, url: str) -> None:
        self._socket = connect(url, max_size=1 << 26, legacy=True)
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.problems: list[str] = []
        target = self.say("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.say("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.say(f"{domain}.enable")

    def say(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            found = json.loads(self._socket.recv(timeout=30))
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]
            if found.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(json.dumps(found["params"]))

    def run(self, code: str) -> Any:
        done = self.say("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, code: str, seconds: float = 15) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := self.run(f"!!({code})")):
            assert time.monotonic() < deadline, (code, self.problems, self.run("document.body.innerText"))
            time.sleep(0.05)
        return found

    def key(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.say(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text
            )

    def shot(self, name: str) -> None:
        picture = base64.b64decode(self.say("Page.captureScreenshot", format="png")["data"])
        assert len(picture) > 2000
        if SHOTS:
            (Path(SHOTS) / f"{name}.png").write_bytes(picture)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program is not None, "apt install chromium"
    words = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        "--window-size=1000,760",
    ]
    command = [program, *words, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if match := re.search(r"DevTools listening on (ws://\S+)", line):
                break
        try:
            yield Browser(match[1])  # type: ignore[index]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    names = {"chat": "llm", "painter": "diffusion", "vectors": "embed"}
    models = [f"{name}={write_model(folder / name, kind=kind)}" for name, kind in names.items()]
    with serving(ServerOptions(models=models, manage=True), Scripted()) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, server: Served) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as made:
        made.say("Page.navigate", url=server.url)
        made.until("document.querySelector('#chat-model')?.options.length")
        made.until("document.querySelector('#state').textContent === 'Ready'")
        yield made


@pytest.mark.timeout(120)
def test_a_chat_by_keyboard_shows_reasoning_folded_text_and_calls(server: Served, browser: Browser) -> None:
    from mlxengine import Finished, TokenUsage

    server.plugin.plan = planned(  # type: ignore[union-attr]
        ReasoningDelta(text="A greeting."), TextDelta(text="Hello "), TextDelta(text="<b>you</b>."),
        ToolCall(id="c", name="clock", arguments={"zone": "utc"}),
        Finished(usage=TokenUsage(prompt_tokens=7, completion_tokens=3)),
    )  # fmt: skip
    browser.run("document.querySelector('#chat-text').focus()")
    browser.say("Input.insertText", text="Hi there")
    browser.key("Enter", 13)
    browser.until("document.querySelector('#talk small')")
    talk = browser.run("document.querySelector('#talk').textContent")
    assert "Hi there" in talk
    assert "Hello <b>you</b>." in talk, "what a model says is text, never markup"
    assert 'clock {"zone": "utc"}' in talk
    assert "7 tokens read, 3 made" in talk
    assert browser.run("document.querySelector('#talk details').open") is False
    assert browser.run("document.querySelectorAll('#talk b').length") == 0
    browser.shot("serve-chat")


@pytest.mark.timeout(120)
def test_tabs_move_by_arrow_keys_and_embeddings_and_models_are_shown(
    server: Served, browser: Browser
) -> None:
    import array

    from mlxengine import Array, Embeddings, Finished

    vectors = Array(data=array.array("f", [1, 0, 0.6, 0.8]).tobytes(), shape=(2, 2), dtype="float32")
    server.plugin.plan = planned(Embeddings(indices=(0, 1), vectors=vectors), Finished())  # type: ignore[union-attr]
    browser.run("document.querySelector('#tab-chat').focus()")
    browser.key("ArrowRight", 39)
    browser.key("ArrowRight", 39)
    assert browser.run("document.activeElement.id") == "tab-vectors"
    assert browser.run("document.querySelector('#vectors').hidden") is False
    browser.run("document.querySelector('#vector-texts').value = 'a boat\\na ship'")
    browser.run("document.querySelector('#vector-form').requestSubmit()")
    browser.until("!document.querySelector('#vector-table').hidden")
    assert "0.600" in browser.run("document.querySelector('#vector-table').textContent")
    browser.run("document.querySelector('#tab-models').click()")
    browser.until("document.querySelectorAll('#figures tr').length > 3")
    browser.run("[...document.querySelectorAll('#model-table button')][0].click()")
    browser.until("document.querySelector('#model-state').textContent.includes('out of memory')")
    browser.run("[...document.querySelectorAll('#model-table button')][0].click()")
    browser.until("document.querySelector('#model-state').textContent.includes('is loaded')")
    browser.shot("serve-models")


@pytest.mark.timeout(120)
def test_a_picture_is_painted_with_previews(server: Served, browser: Browser) -> None:
    from mlxengine import Array, Finished, ImagePreview, ImageReady

    pixels = Array(data=bytes((200, 60, 60)) * 64 * 64, shape=(64, 64, 3), dtype="uint8")
    server.plugin.plan = planned(ImagePreview(step=1, pixels=pixels), ImageReady(pixels=pixels), Finished())  # type: ignore[union-attr]
    browser.run("document.querySelector('#tab-pictures').click()")
    browser.run("document.querySelector('#picture-text').value = 'a red square'")
    browser.run("document.querySelector('#picture-form').requestSubmit()")
    browser.until("document.querySelector('#picture-state').textContent.startsWith('Done')")
    assert browser.run("document.querySelector('#picture').naturalWidth") == 64
    assert browser.run("document.querySelector('#picture').alt") == "a red square"


def test_the_browser_had_nothing_to_complain_of(browser: Browser) -> None:
    assert browser.problems == [], "a policy was broken, a file was missing, or an exception was thrown"
