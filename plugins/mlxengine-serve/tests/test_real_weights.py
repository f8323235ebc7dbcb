"""Real models of every kind behind one server: over HTTP they give what they give to Python."""

from __future__ import annotations

import base64
import threading
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import pytest
from mlxengine import GenerateParams
from mlxengine_serve import ServerOptions
from PIL import Image
from serve_harness import Served, serving

from tests.hub import weights

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
NAMES = {
    "chat": weights.SMOLLM2,
    "vectors": weights.MINILM,
    "painter": weights.TINY_SD,
    "seer": weights.TINY_VLM,
}


@pytest.fixture(scope="module")
def real() -> Iterator[Served]:
    models = [f"{name}={weights.folder_of(repo)}" for name, repo in NAMES.items()]
    with serving(ServerOptions(models=models)) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200, 120)
        yield made


def test_a_chat_gives_the_librarys_own_text_whole_and_streamed(real: Served) -> None:
    handle = real.engine.sync.load_text(weights.folder_of(weights.SMOLLM2))
    reply = handle.generate("What is the capital of France?", GenerateParams(max_tokens=12, temperature=0))
    body = {"model": "chat", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    answer = real.post(CHAT, body).json()
    assert answer["choices"][0]["message"]["content"] == reply.text
    assert answer["usage"]["prompt_tokens"] == reply.usage.prompt_tokens
    frames = real.frames(CHAT, {**body, "stream": True})[:-1]
    assert "".join(item["choices"][0]["delta"].get("content", "") for item in frames) == reply.text
    message = {"model": "chat", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    assert real.post("/v1/messages", message).json()["content"][0]["text"] == reply.text
    response = {"model": "chat", "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
    output = real.post("/v1/responses", response).json()["output"]
    assert output[0]["content"][0]["text"] == reply.text


HALF = "\\ud800"  # of a surrogate pair, as JSON can write it
VECTORS, PICTURES, TEXTS = "/v1/embeddings", "/v1/images/generations", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "model", "body", "param", "said"),
    [
        (
            VECTORS,
            "vectors",
            '"input": "a", "dimensions": 9999',
            "dimensions",
            "dimensions=9999 is more than",
        ),
        (VECTORS, "vectors", '"input": [[1], [99999]]', "input[1]", "input[1] holds 99999, "),
        (VECTORS, "vectors", '"input": [1, 99999]', "input", "input holds 99999, "),
        (VECTORS, "vectors", f'"input": "a{HALF}"', "input", "input: The text "),
        (VECTORS, "vectors", f'"input": "a", "prompt": "{HALF}"', "prompt", "prompt: The text "),
        (VECTORS, "vectors", '"input": "a", "prompt_name": "b"', "prompt_name", "prompt_name='b' is no "),
        (
            VECTORS,
            "vectors",
            '"input": ["a", {"image": "data:;base64,AA=="}]',
            "input[1]",
            "input[1]: vectors ",
        ),
        ("/v1/rerank", "vectors", f'"query": "{HALF}", "documents": ["b"]', "query", "query: The text "),
        (
            "/v1/rerank",
            "vectors",
            f'"query": "a", "documents": ["{HALF}"]',
            "documents",
            "documents: The text ",
        ),
        (PICTURES, "painter", '"prompt": "a", "size": "30x32"', "size", "width=30 must be a multiple"),
        (PICTURES, "painter", '"prompt": "a", "scheduler": "b"', "scheduler", "scheduler='b' is not known"),
        (PICTURES, "painter", '"prompt": "a", "guidance": -1', "guidance", "guidance=-1 must be"),
        (
            PICTURES,
            "painter",
            f'"prompt": "a", "negative_prompt": "{HALF}"',
            "negative_prompt",
            "negative_prompt: ",
        ),
        (TEXTS, "chat", '"prompt": [1, 99999]', "prompt", "prompt: 99999 is not a token id"),
        (TEXTS, "chat", f'"prompt": ["a", "{HALF}"]', "prompt", "prompt: The text "),
        (
            TEXTS,
            "chat",
            '"prompt": "a", "logit_bias": {"99999": 1}',
            "logit_bias",
            "logit_bias names the token",
        ),
        (TEXTS, "chat", '"prompt": "a", "adapter": "b"', "adapter", "adapter='b' is not loaded"),
        (TEXTS, "chat", '"prompt": "a", "max_tokens": 0', "max_tokens", "max_tokens=0 must be"),
    ],
)
def test_an_error_names_the_clients_own_field(
    real: Served, path: str, model: str, body: str, param: str, said: str
) -> None:
    answer = real.client.post(path, content=f'{{"model": "{model}", {body}}}')
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(said)


def test_a_prompt_that_is_too_long_is_theirs_to_shorten(real: Served) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "word " * 20_000}], "stream": True}
    answer = real.post(CHAT, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_vectors_are_the_librarys_to_the_bit(real: Served) -> None:
    texts = ["a cat", "a kitten"]
    handle = real.engine.sync.load_embeddings(weights.folder_of(weights.MINILM))
    body = {"model": "vectors", "input": texts, "encoding_format": "base64"}
    data = real.post("/v1/embeddings", body).json()["data"]
    found = [array("f", base64.b64decode(item["embedding"])).tolist() for item in data]
    assert found == [pytest.approx(list(map(float, row)), abs=1e-6) for row in handle.embed(texts).numpy()]


def test_a_picture_that_was_made_here_is_seen_here(real: Served) -> None:
    asked = {"model": "painter", "prompt": "a large red circle", "steps": 12, "seed": 1}
    picture = real.post("/v1/images/generations", asked).json()["data"][0]["b64_json"]
    assert Image.open(BytesIO(base64.b64decode(picture))).size == (64, 64)
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": "Is there a red circle?"},
    ]
    body = {"model": "seer", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    assert "yes" in real.post(CHAT, body).json()["choices"][0]["message"]["content"].lower()


def test_chat_vectors_and_a_picture_at_once_all_come_and_the_chat_goes_on(real: Served) -> None:
    arrived: list[float] = []
    answers: dict[str, Any] = {}

    def chat() -> None:
        body = {"model": "chat", "messages": QUESTION, "max_tokens": 60, "ignore_eos": True, "stream": True}
        with real.client.stream("POST", CHAT, json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    arrived.append(time.monotonic())

    def post(name: str, path: str, body: dict[str, Any]) -> None:
        answers[name] = real.post(path, {"model": name, **body}).status_code

    many = {"input": [f"sentence number {number}" for number in range(300)]}
    threads = [
        threading.Thread(target=chat),
        threading.Thread(target=post, args=("vectors", "/v1/embeddings", many)),
        threading.Thread(
            target=post, args=("painter", "/v1/images/generations", {"prompt": "x", "steps": 8})
        ),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == {"vectors": 200, "painter": 200}
    assert len(arrived) >= 60


def test_a_picture_edited_where_a_mask_is_transparent_is_the_librarys_own(real: Served) -> None:
    start, mask = Image.new("RGB", (32, 32), "red"), Image.new("RGBA", (32, 32), "white")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 16))
    light = Image.new("L", (32, 32))
    light.paste(255, (0, 0, 32, 16))
    handle = real.engine.sync.load_images(weights.folder_of(weights.TINY_SD))
    made = handle.image("a blue square", init_image=start, mask=light, steps=4, seed=1, size=(32, 32))
    answer = real.client.post(
        "/v1/images/edits",
        data={"model": "painter", "prompt": "a blue square", "steps": "4", "seed": "1"},
        files={"image": ("a.png", _png(start)), "mask": ("m.png", _png(mask))},
    )
    assert answer.status_code == 200, answer.text
    shown = Image.open(BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert shown.tobytes() == bytes(made.pixels.data)
    assert shown.crop((0, 16, 32, 32)).tobytes() == start.crop((0, 16, 32, 32)).tobytes()
    assert shown.crop((0, 0, 32, 16)).tobytes() != start.crop((0, 0, 32, 16)).tobytes()


def _png(picture: Image.Image) -> bytes:
    found = BytesIO()
    picture.save(found, "PNG")
    return found.getvalue()


def test_a_hung_step_of_a_real_batch_turns_ready_red_by_what_the_batch_says_of_it(
    real: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxengine.toolkit.batch import Batch

    def ready() -> bool:
        return real.get("/ready").status_code == 200

    hang, hold, step = threading.Event(), threading.Event(), Batch.step
    monkeypatch.setattr(Batch, "step", lambda batch: (hang.is_set() and hold.wait(20), step(batch))[1])
    body = {"model": "chat", "messages": QUESTION, "max_tokens": 40, "ignore_eos": True}
    status = real.engine.sync.status
    with ThreadPoolExecutor() as pool:
        answering = pool.submit(real.post, CHAT, body)
        real.wait_until(lambda: status().patience is not None)  # it decodes
        hang.set()
        real.wait_until(lambda: status().running_seconds > 0.5)
        patience = status().patience
        assert patience is not None
        assert real.wait_until(lambda: not ready()) < patience
        hold.set()
        assert answering.result(30).status_code == 200, "it returned in time after all"
    real.wait_until(ready)
