"""The ledger against what mlx says, with real models coming and going under a budget."""

import contextlib
import gc
import itertools
import threading
import time

import pytest
from mlxengine import GenerateParams, InferenceEngine, TextDelta, TextRequest, TextWorkload, errors

from benchmarks.shapes import llama, write_checkpoint

PARAMS = GenerateParams(max_tokens=4, ignore_eos=True)
REQUEST = TextRequest(prompt_tokens=tuple(range(2, 40)), params=PARAMS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from mlxengine.toolkit import backend  # noqa: F401 - a fast BLAS before mlx

    folder = tmp_path_factory.mktemp("models")
    shape = llama(128, 3, 4, 2, 512, vocabulary=16000)
    return [write_checkpoint(folder / name, shape, "float32") for name in "abc"]


def budget_for(models, count):
    with InferenceEngine() as engine:
        need = engine.fit(models[0]).needed
    return int(need * (count + 0.5))


def held_by_others():
    """What earlier tests in this process left: mlx counts for the process, not for an engine."""
    import mlx.core as mx

    gc.collect()
    return mx.get_active_memory()


def cycle(models, times):
    footprints = []
    others = held_by_others()
    with InferenceEngine(memory_budget=budget_for(models, 2)) as engine:
        handles = [engine.load(path) for path in models]
        for turn in range(times):
            handle = handles[turn % 3]
            assert handle.run(REQUEST).usage.completion_tokens == 4
            report = engine.memory()
            assert report.reserved <= report.budget
            if turn >= 6:
                footprints.append(report.active - others + report.cache)
                assert report.weights == pytest.approx(report.active - others, rel=0.05)
        evictions = engine.memory().evictions
    assert len(evictions) >= times - 3
    assert not [item for item in evictions if item.short]
    first = sum(footprints[:3]) / 3
    assert all(item == pytest.approx(first, rel=0.05) for item in footprints), footprints


def test_models_that_take_turns_under_a_budget_keep_the_footprint_flat(models):
    cycle(models, 18)


@pytest.mark.slow
def test_two_hundred_turns_under_a_budget_keep_the_footprint_flat(models):
    cycle(models, 200)


def test_threads_that_load_at_random_never_exceed_the_budget(models):
    failures, over = [], []
    with InferenceEngine(memory_budget=budget_for(models, 2)) as engine:

        def work(seed):
            for turn in range(5):
                try:
                    with engine.load(models[(seed * 7 + turn * 5) % 3]) as handle:
                        handle.run(REQUEST)
                        report = engine.memory()
                        if report.reserved > report.budget:
                            over.append(report)
                except errors.MLXEngineError as error:
                    failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
        assert not over
        assert all(type(error) is errors.InsufficientMemoryError for error in failures), failures
        assert engine.memory().reserved == 0


@pytest.mark.slow
def test_loading_half_a_gigabyte_never_stalls_a_running_stream_for_long(models, tmp_path):
    large = write_checkpoint(tmp_path / "large", llama(1024, 8, 16, 8, 4096, vocabulary=8000), "float32")
    request = TextRequest(prompt_tokens=(2, 3, 4), params=GenerateParams(max_tokens=4000, ignore_eos=True))
    with InferenceEngine() as engine:
        stream = engine.load(models[0]).stream(request)
        arrivals = []

        def read():
            with contextlib.suppress(errors.CancelledError):
                for event in stream:
                    if isinstance(event, TextDelta):
                        arrivals.append(time.perf_counter())

        reader = threading.Thread(target=read)
        reader.start()
        while len(arrivals) < 50:
            time.sleep(0.01)
        began = time.perf_counter()
        engine.load(large)
        ended = time.perf_counter()
        stream.cancel()
        reader.join()
    during = [moment for moment in arrivals if began <= moment <= ended]
    assert max(b - a for a, b in itertools.pairwise(during)) < 0.25


def test_with_warm_caches_the_ledger_is_what_mlx_reports(models):
    others = held_by_others()
    with InferenceEngine(memory_budget=budget_for(models, 2)) as engine:
        handles = [engine.load(path) for path in models[:2]]
        for turn in range(4):
            prompt = (5 + turn, *range(2, 300))
            for handle in handles:
                handle.run(TextRequest(prompt_tokens=prompt, params=PARAMS))
        report = engine.memory()
        assert report.caches > report.weights / 10
        held = report.active - others
        assert report.weights + report.caches == pytest.approx(held, rel=0.05)
        assert report.reserved <= report.budget
        handles[0].pin(), handles[1].pin()
        room = report.budget - report.reserved
        engine._pool.ledger.reserve(engine, "something large", room + report.caches // 2)
        after = engine.memory()
        engine._pool.ledger.release(engine)
        assert after.caches <= report.caches - report.caches // 2
        assert after.evictions == ()
        assert after.weights + after.caches == pytest.approx(after.active - others, rel=0.05)


@pytest.mark.feature("core.degrade")
def test_a_real_model_is_loaded_with_less_where_less_fits(models):
    with InferenceEngine() as engine:
        asked, half = (
            engine.fit(models[0], TextWorkload(context_length=tokens)).needed for tokens in (4096, 2048)
        )
        packed = engine.fit(models[0], TextWorkload(context_length=2048, kv_bits=8)).needed
    prompt = TextRequest(prompt_tokens=tuple(2 + index % 250 for index in range(600)), params=PARAMS)
    for budget, info, bits in ((asked, None, None), (half, 2048, None), (packed, 2048, 8)):
        with InferenceEngine(memory_budget=budget) as engine:
            model = engine.load(models[0])
            assert ("degraded" in model.info) is (info is not None)
            assert info in (None, model.info["context_length"])
            assert model.explain("llm.kv_bits").value == bits
            assert model.run(prompt).usage.completion_tokens == 4
            if info is not None:
                long = TextRequest(prompt_tokens=(2,) * 2050, params=PARAMS)
                with pytest.raises(errors.PromptTooLongError):
                    model.run(long)


def test_requests_that_would_exceed_the_budget_together_wait_and_the_report_says_so(models):
    params = GenerateParams(max_tokens=3000, ignore_eos=True)
    with InferenceEngine() as engine:
        fit = engine.fit(models[0], TextWorkload(context_length=4096))
    with InferenceEngine(memory_budget=fit.needed + fit.estimate.cache) as engine:
        model = engine.load(models[0])
        assert engine.health().ok
        prompts = [tuple(2 + (at + index) % 250 for index in range(2400)) for at in range(5)]
        streams = [model.stream(TextRequest(prompt_tokens=prompt, params=params)) for prompt in prompts]
        deadline = time.monotonic() + 60
        while "there is memory for 2 requests at once" not in engine.health().reason:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        report = engine.memory()
        assert report.reserved <= report.budget
        assert report.models[0].running + report.models[0].waiting == 5
        assert report.models[0].waiting >= 3
        for stream in streams:
            stream.close()
        assert model.run(REQUEST).usage.completion_tokens == 4
        assert engine.health().ok
