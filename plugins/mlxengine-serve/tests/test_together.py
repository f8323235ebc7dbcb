"""Real models at once, and models that do not fit together: nobody waits long, nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine_serve import ServerOptions
from safetensors.numpy import load_file, save_file
from serve_harness import Served, serving

from tests.hub import weights

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "Tell me a story."}]


class Steps:
    """Records whose each step of the device's thread was, and how long it took."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, int, float]] = []
        rounds = served.engine.sync._scheduler._rounds
        measure = rounds._measure

        def timed(task: Any, function: Any) -> None:
            began = time.perf_counter()
            measure(task, function)
            self.seen.append((task.record.name, id(task.group), time.perf_counter() - began))

        monkeypatch.setattr(rounds, "_measure", timed)

    def between(self) -> float:
        """The longest that others had of the device between two steps of the chat."""
        longest = run = 0.0
        for plugin, _, seconds in self.seen:
            run = 0.0 if plugin == "llm" else run + seconds
            longest = max(longest, run)
        return longest

    def longest(self) -> tuple[float, list[float]]:
        """The chat's longest step, and that of each other model."""
        found: dict[tuple[bool, int], float] = {}
        for plugin, group, seconds in self.seen:
            key = (plugin == "llm", group)
            found[key] = max(found.get(key, 0.0), seconds)
        return (
            max(seconds for (own, _), seconds in found.items() if own),
            [seconds for (own, _), seconds in found.items() if not own],
        )


@contextlib.contextmanager
def ending(over: threading.Event) -> Iterator[None]:
    """Whatever goes wrong, what runs beside ends."""
    try:
        yield
    finally:
        over.set()


def write_ranker(folder: Path) -> Path:
    """A cross-encoder of an embedding model's layers; its scores mean nothing, its work is real."""
    source = weights.folder_of(weights.MINILM)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"bert.{name}": value for name, value in load_file(source / "model.safetensors").items()}
    head = np.full((1, config["hidden_size"]), 0.01, np.float32)
    tensors |= {"classifier.weight": head, "classifier.bias": np.zeros(1, np.float32)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def several(tmp_path: Path) -> Iterator[Served]:
    names = {"chat": weights.SMOLLM2, "vectors": weights.MINILM, "painter": weights.TINY_SD}
    models = [f"{name}={weights.folder_of(repo)}" for name, repo in names.items()]
    models.append(f"ranker={write_ranker(tmp_path / 'ranker')}")
    with serving(ServerOptions(models=models)) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200, 120)
        yield made


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_chat_waits_for_one_long_step_of_others_whatever_else_is_asked_at_once(
    several: Served, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    steps = Steps(several, monkeypatch)
    arrived: list[float] = []
    over = threading.Event()
    body = {"model": "chat", "messages": QUESTION, "ignore_eos": True, "stream": True, "max_tokens": 2000}

    def chat() -> None:
        with several.client.stream("POST", CHAT, json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    arrived.append(time.perf_counter())
                if over.is_set():
                    return

    def post(path: str, name: str, asked: dict[str, Any]) -> int:
        status: int = several.post(path, {"model": name, **asked}, timeout=600).status_code
        return status

    texts = [f"sentence number {number} of many" for number in range(count)]
    with ThreadPoolExecutor() as pool, ending(over):
        chatting = pool.submit(chat)
        several.wait_until(lambda: len(arrived) > 10, 30)
        steps.seen.clear()
        begin = len(arrived)
        others = [
            pool.submit(post, "/v1/embeddings", "vectors", {"input": texts}),
            pool.submit(
                post, "/v1/rerank", "ranker", {"query": "number 7", "documents": texts[: count // 10]}
            ),
            pool.submit(post, "/v1/images/generations", "painter", {"prompt": "a circle", "steps": 10}),
        ]
        assert [item.result() for item in others] == [200] * 3
        seen, times = list(steps.seen), arrived[begin:]
        over.set()
        chatting.result(60)
    steps.seen = seen
    gap = max(later - earlier for earlier, later in itertools.pairwise(times))
    own, others_longest = steps.longest()
    between = steps.between()
    print(
        f"longest gap {gap:.3f} s, others between {between:.3f} s, own step {own:.3f} s, "
        f"others' longest steps {others_longest}, {len(times)} words"
    )
    assert len(times) > 2
    # Others may have twice as long as a step of the chat, and go beyond that by the step that it is in.
    assert between <= 2 * own + max(others_longest)
    assert gap <= between + own + 0.25, "what HTTP adds"


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[tuple[Served, float]]:
    """Three models of about 100 MB of which one fits; the server, and bytes that were active before."""
    import mlx.core as mx

    twin = tmp_path / "twin"
    twin.symlink_to(weights.folder_of(weights.MINILM), target_is_directory=True)
    models = [
        f"vectors={weights.folder_of(weights.MINILM)}",
        f"twin={twin}",
        f"seer={weights.folder_of(weights.TINY_VLM)}",
    ]
    before = mx.get_active_memory()
    with serving(ServerOptions(models=models), memory_budget="200MB") as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200, 60)
        yield made, before


@pytest.mark.slow
def test_of_two_hundred_requests_over_three_models_that_do_not_fit_together_none_is_lost(
    cramped: tuple[Served, float],
) -> None:
    served, before = cramped
    draw = random.Random(7)
    names = [draw.choice(("vectors", "twin", "seer")) for _ in range(200)]
    expected = {
        name: served.post("/v1/embeddings", {"model": name, "input": "a cat"}).json()["data"]
        for name in ("vectors", "twin")
    }

    def ask(name: str) -> tuple[str, bool]:
        if name == "seer":
            body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
            answer = served.post(CHAT, body, timeout=300)
            return name, answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] > 0
        answer = served.post("/v1/embeddings", {"model": name, "input": "a cat"}, timeout=300)
        return name, answer.status_code == 200 and answer.json()["data"] == expected[name]

    with ThreadPoolExecutor(12) as pool:
        answers = Counter(pool.map(ask, names))
    assert answers == Counter((name, True) for name in names)
    report = served.engine.sync.memory()
    assert report.active is not None
    held = sum((item.weights or 0) + item.caches for item in report.models if not item.evicted)
    really = report.active - before
    print(f"{len(report.evictions)} evictions; the ledger says {held}, really {really} bytes")
    assert sum(not item.evicted for item in report.models) == 1, "they take turns"
    assert len(report.evictions) >= 3
    assert held == pytest.approx(really, rel=0.05)
