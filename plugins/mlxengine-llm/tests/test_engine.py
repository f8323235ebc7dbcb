"""The plugin under the real engine: from threads, from asyncio, load after load, and on real weights."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import raw, tokens_of
from mlxengine import AsyncInferenceEngine, GenerateParams, InferenceEngine
from mlxengine.toolkit import backend

REQUESTS = [
    raw("tell me " + "more " * i, max_tokens=20 + i, temperature=0, ignore_eos=True) for i in range(8)
]
TASKS = Path("/proc/self/task")
GREEDY = GenerateParams(max_tokens=64, temperature=0, ignore_eos=True)
QUESTIONS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "List three prime numbers.",
    "Explain why the sky is blue.",
    "Translate 'good morning' into German.",
]


@pytest.fixture(scope="module")
def engine() -> Any:
    with InferenceEngine() as found:
        yield found


@pytest.mark.feature("llm.batch")
@pytest.mark.feature("llm.streaming")
def test_eight_threads_get_what_each_gets_alone(engine: InferenceEngine, tiny: Path) -> None:
    with engine.load_text(str(tiny)) as model:
        alone = [tokens_of(list(model.stream(request))) for request in REQUESTS]
        found: dict[int, list[int]] = {}

        def ask(i: int) -> None:
            found[i] = tokens_of(list(model.stream(REQUESTS[i])))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[i] for i in range(8)] == alone


def test_eight_coroutines_get_what_each_gets_alone(engine: InferenceEngine, tiny: Path) -> None:
    with engine.load_text(str(tiny)) as model:
        alone = [tokens_of(list(model.stream(request))) for request in REQUESTS]

    async def ask(model: Any, i: int) -> list[int]:
        await asyncio.sleep(0.01 * i)
        return tokens_of([event async for event in model.stream(REQUESTS[i])])

    async def main() -> list[list[int]]:
        async with AsyncInferenceEngine() as other:
            model = await other.load_text(str(tiny))
            return list(await asyncio.gather(*(ask(model, i) for i in range(8))))

    assert asyncio.run(main()) == alone


def test_threads_that_computed_last_as_long_as_the_engine(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends while others free what it compiled waits for ever, with the GIL held by the other."""
    ended: list[str] = []
    end_thread = backend.MLXBackend.end_thread

    def noted(self: backend.MLXBackend) -> None:
        ended.append(threading.current_thread().name)
        end_thread(self)

    monkeypatch.setattr(backend.MLXBackend, "end_thread", noted)
    with InferenceEngine() as engine:
        for _ in range(2):
            engine.load_text(str(tiny)).close()
        assert not ended
    assert sorted(ended) == ["mlxengine-builder", "mlxengine-scheduler"]


@pytest.mark.skipif(not TASKS.exists(), reason="only Linux lists the threads of the system")
def test_a_load_leaves_no_thread_of_the_system_behind(engine: InferenceEngine, tiny: Path) -> None:
    def threads_after_one() -> int:
        with engine.load_text(str(tiny)) as model:
            model.generate(REQUESTS[0])
        return len(list(TASKS.iterdir()))

    first = threads_after_one()
    assert max(threads_after_one() for _ in range(3)) <= first


@pytest.mark.slow
def test_two_hundred_loads_leave_memory_and_threads_as_they_were(tiny: Path) -> None:
    def memory() -> int:
        mx.clear_cache()
        return mx.get_active_memory() + mx.get_cache_memory()

    with InferenceEngine() as engine:

        def cycle() -> None:
            with engine.load_text(str(tiny)) as model:
                model.generate(REQUESTS[0])

        for _ in range(5):
            cycle()
        before, threads = memory(), threading.active_count()
        for _ in range(200):
            cycle()
        assert memory() <= before * 1.05 + 4096
        assert threading.active_count() <= threads


@pytest.mark.slow
def test_real_weights_give_the_tokens_of_mlx_lm(engine: InferenceEngine, smollm2: Any) -> None:
    """SmolLM2, five questions of 64 tokens, alone and together."""
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load
    from mlxengine.toolkit.dtype import unpack_where_faster, upcast_for_cpu

    network, tokenizer = load(str(smollm2.folder), lazy=True)[:2]
    unpack_where_faster(network, 1 << 40)
    upcast_for_cpu(network)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": item}], add_generation_prompt=True)
        for item in QUESTIONS
    ]
    wanted = [
        [int(token) for token, _ in generate_step(mx.array(prompt), network, max_tokens=64)]
        for prompt in prompts
    ]
    with engine.load_text(str(smollm2.folder)) as model:
        streams = [model.stream(item, GREEDY) for item in QUESTIONS]
        assert [tokens_of(list(stream)) for stream in streams] == wanted
        assert tokens_of(list(model.stream(QUESTIONS[0], GREEDY))) == wanted[0]


def test_real_weights_answer_from_the_gguf_file(engine: InferenceEngine, smollm2_gguf: Any) -> None:
    (file,) = smollm2_gguf.folder.glob("*.gguf")
    with engine.load_text(str(file)) as model:
        reply = model.generate("What is the capital of France?", GenerateParams(max_tokens=12, temperature=0))
    assert "Paris" in reply.text
