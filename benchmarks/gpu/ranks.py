"""Two ranks of one model, on one GPU by mlx's ring: do they say what one says, and what does the plan cost?

    python -m benchmarks.gpu.ranks [--shapes llama-2M llama-1B] [--ranks 2] [--streams 1 8] [--new 64]
        [--transport ring|nccl] [--seconds 110] [--output FILE.jsonl] [--tiny]

NCCL wants a device for each rank (``--transport nccl`` where there are two). The ring does not: its sums are
done on the processor's stream, over loopback, so that two ranks can share a card. That is no way to serve,
but all that is ours runs as it would: texts, faults, and per step the time of the whole call, of the longest
decoder under it, and what is left for making, sending, reading and digesting the plan. Texts of
weights in fp32, which the 2M shape has, have to be equal; in bf16 sums in another order tell two tokens apart
sooner or later.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

import mlx.core as mx  # noqa: E402
from mlxengine import GenerateParams, InferenceEngine, MLXEngineError, TextDelta, TextRequest  # noqa: E402

from benchmarks.shapes import BIG, SHAPES, write_checkpoint  # noqa: E402
from benchmarks.sides import TINY, Report, parser, prompts  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import sys, time, mlx.core as mx
group = mx.distributed.init(strict=True, backend=sys.argv[1])
for size in (1, 2048, 1 << 20):
    here = mx.ones(size, mx.bfloat16) * (group.rank() + 1)
    spent = []
    for _ in range(20):
        mx.eval(here)
        began = time.perf_counter()
        found = mx.distributed.all_sum(here, group=group) * 2
        mx.eval(found)
        spent.append(time.perf_counter() - began)
    wrong = bool((found != 2 * sum(range(1, group.size() + 1))).any().item())
    print(2 * size, "bytes on", mx.default_device(), f"median {1e6 * sorted(spent)[10]:.0f} us, {wrong=}")
"""


def rank(descriptor: int) -> None:
    """A rank that says with each answer how long its decoder and its digest took."""
    from mlxengine_shard import _rank

    plain = _rank._Rank._say

    def say(self: Any, message: dict[str, Any], data: bytes = b"") -> None:
        if message.get("ready"):
            message = {**message, "silent": spent.pop("silent", 0.0)}
            time_calls()
        if "digest" in message:
            more = {name: spent.pop(name, 0.0) for name in ("decoder", "all", "silent")}
            message = {**message, **more}
        plain(self, message, data)

    spent: dict[str, float] = {}

    def time_calls() -> None:
        from mlxengine_shard._mirror import Mirror

        def timed(name: str, call: Any) -> Any:
            def run(*arguments: Any) -> Any:
                began = time.perf_counter()
                found = call(*arguments)
                spent[name] = time.perf_counter() - began
                return found

            return run

        Mirror.CALLS = {name: timed("decoder", call) for name, call in Mirror.CALLS.items()}
        Mirror.answer = timed("all", Mirror.answer)  # type: ignore[method-assign]

    def beat() -> None:
        last = time.perf_counter()
        while True:
            time.sleep(_rank.BEAT_SECONDS)  # as the rank's own thread
            now = time.perf_counter()
            spent["silent"], last = max(spent.get("silent", 0.0), now - last), now

    threading.Thread(target=beat, daemon=True).start()
    _rank._Rank._say = say  # type: ignore[method-assign, assignment]
    _rank._Rank(descriptor).serve()


def probe(count: int, transport: str) -> str:
    """What two bare processes say that add arrays of the GPU up."""
    from mlxengine_shard._ranks import Ranks, Settings

    settings = Settings(
        path="",
        ranks=count,
        split="tensor",
        transport=transport,
        context=None,
        prefix_bytes=0,
        token_bytes=1,
        shape_seconds=0.0,
    )
    ranks = Ranks(settings)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROBE, transport],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        for environment in ranks._environments(count)
    ]
    said = ""
    for process in started:
        try:
            said = said or process.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:
            said = "it hangs (30 s)"
        finally:
            process.kill()
            process.wait()
    return said.strip()[-600:]


STEPS: list[dict[str, float]] = []
STARTS: list[float] = []
SILENT: list[float] = []  # between two times that a thread of a rank could run, most


@contextmanager
def watched(wanted: str) -> Iterator[None]:
    """Ranks of this file over the ring on any device; what each step of them, or of one alone, took."""
    from mlxengine_llm import _decoder
    from mlxengine_shard import _load, _ranks

    popen, call, step = subprocess.Popen, _ranks.Ranks.call, _decoder.BatchDecoder.step
    tell, agreed, transport = _ranks.Ranks._tell, _ranks.Ranks._agreed, _load.transport_of
    heard = _ranks.Ranks._heard
    told: list[float] = []
    spent: list[tuple[float, float]] = []
    SILENT.clear()

    def start(command: list[str], **more: Any) -> Any:
        return popen(
            [word.replace("mlxengine_shard._rank", "benchmarks.gpu.ranks") for word in command], **more
        )

    def called(self: Any, name: str, *arguments: Any, **more: Any) -> Any:
        told.clear()
        began = time.perf_counter()
        found = call(self, name, *arguments, **more)
        if name == "step" and (found["drawn"] or found["prompt_tokens"]):
            STEPS.append(
                {
                    "step": time.perf_counter() - began,
                    "decoder": max(decoder for decoder, _ in spent),
                    "digest": max(every - decoder for decoder, every in spent),
                    "tell": sum(told),
                    "draws": len(found["drawn"]) * (not found["prompt_tokens"]),
                }
            )
        return found

    def telling(self: Any, content: bytes) -> None:
        began = time.perf_counter()
        tell(self, content)
        told.append(time.perf_counter() - began)

    def hearing(self: Any, *arguments: Any) -> Any:
        found = heard(self, *arguments)
        if found is not None and "ready" in found[1].message:
            STARTS.append(found[1].message["silent"])
        return found

    def agreeing(self: Any, answers: dict[int, Any]) -> None:
        spent[:] = [(answer["decoder"], answer["all"]) for answer in answers.values()]
        SILENT.append(max(answer["silent"] for answer in answers.values()))
        agreed(self, answers)

    def stepped(self: Any, *arguments: Any, **more: Any) -> Any:
        began = time.perf_counter()
        done = step(self, *arguments, **more)
        if done.drawn or done.prompt_tokens:
            draws = len(done.drawn) * (not done.prompt_tokens)
            STEPS.append({"step": time.perf_counter() - began, "draws": draws})
        return done

    _ranks.subprocess.Popen = start  # type: ignore[misc, assignment]
    _ranks.Ranks.call, _ranks.Ranks._tell = called, telling  # type: ignore[method-assign]
    _ranks.Ranks._agreed, _ranks.Ranks._heard = agreeing, hearing  # type: ignore[method-assign]
    _decoder.BatchDecoder.step = stepped  # type: ignore[method-assign]
    _load.transport_of = lambda *_: wanted
    try:
        yield
    finally:
        subprocess.Popen = popen  # type: ignore[misc]
        _ranks.Ranks.call, _ranks.Ranks._tell = call, tell  # type: ignore[method-assign]
        _ranks.Ranks._agreed, _ranks.Ranks._heard = agreed, heard  # type: ignore[method-assign]
        _decoder.BatchDecoder.step = step  # type: ignore[method-assign]
        _load.transport_of = transport


def answers(handle: Any, wanted: list[list[int]], new: int) -> list[list[int]]:
    """The greedy tokens of each, asked for at once."""
    found: list[list[int]] = [[] for _ in wanted]
    params = GenerateParams(max_tokens=new, temperature=0, ignore_eos=True)

    def ask(at: int) -> None:
        for event in handle.stream(TextRequest(prompt_tokens=wanted[at], params=params)):
            if isinstance(event, TextDelta):
                found[at].extend(event.token_ids)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def median(name: str) -> float | None:
    """Milliseconds of the steps that draw for all and read no prompt."""
    most = max((step["draws"] for step in STEPS), default=0)
    found = [1000 * step[name] for step in STEPS if step["draws"] == most > 0 and name in step]
    return round(statistics.median(found), 4) if found else None


def measure(handle: Any, report: Report, shape: str, ranks: int, streams: list[int], options: Any) -> Any:
    said = {}
    for count in streams:
        wanted = prompts(count, options.length, 0, options.vocabulary)
        for _ in range(2):  # the first compiles
            STEPS.clear()
            said[count] = answers(handle, wanted, options.new)
        row = {name: median(name) for name in ("step", "decoder", "digest", "tell")}
        if row["step"] and row["decoder"]:
            row["plan"] = round(row["step"] - row["decoder"], 4)
            row["plan_share"] = round(row["plan"] / row["step"], 4)
        report.add(what="ms a step", shape=shape, ranks=ranks, streams=count, steps=len(STEPS), **row)
    return said


def fault(handle: Any, sign: signal.Signals, wanted: list[int], whole: list[int], new: int) -> dict[str, Any]:
    """End or stop the last rank in mid-answer."""
    params = GenerateParams(max_tokens=new, temperature=0, ignore_eos=True)
    said: list[int] = []
    before = list(handle.info["pids"])
    hurt = 0.0
    longest = last = 0.0
    for event in handle.stream(TextRequest(prompt_tokens=wanted, params=params)):
        if isinstance(event, TextDelta):
            said.extend(event.token_ids)
            now = time.perf_counter()
            longest, last = max(longest, now - last if hurt else 0.0), now
            if not hurt and len(said) > new // 3:
                os.kill(before[-1], sign)
                hurt = last = time.perf_counter()
    same = next(
        (at for at, pair in enumerate(zip(said, whole, strict=False)) if pair[0] != pair[1]), len(said)
    )
    left = [pid for pid in before if Path(f"/proc/{pid}").exists()]
    return {"tokens": len(said), "same": same, "gap_s": round(longest, 2), "processes left": left}


def main() -> None:
    made = parser(__doc__ or "")
    made.set_defaults(seconds=110.0)
    made.add_argument("--shapes", nargs="+", default=[TINY, "llama-1B"])
    made.add_argument("--transport", choices=("ring", "nccl"), default="ring")
    made.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the weights; fp32 on a CPU")
    made.add_argument("--ranks", type=int, default=2)
    made.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    made.add_argument("--length", type=int, default=128)
    made.add_argument("--new", type=int, default=64)
    options = made.parse_args()
    if options.tiny:
        options.shapes, options.streams, options.length, options.new = [TINY], [1, 2], 32, 24
    faulthandler.dump_traceback_later(options.seconds, exit=True)  # ranks end with their leader
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    report = Report(options)
    report.add(
        what="probe",
        device=str(mx.default_device()),
        mlx=mx.__version__,
        backends={name: mx.distributed.is_available(name) for name in ("ring", "nccl")},
        transport=options.transport,
        said=probe(options.ranks, options.transport).splitlines(),
    )
    with watched(options.transport):
        for shape in options.shapes:
            if report.left < 15:
                report.add(what="left out for want of time", shape=shape)
                continue
            run(shape, report, options)


def stored(shape: str, dtype: str) -> Path:
    """The folder of a shape whose weights are of a kind, written when it is first asked for."""
    folder = Path(tempfile.gettempdir(), "mlxengine-benchmarks", dtype, shape)
    if not (folder / "tokenizer_config.json").exists():
        write_checkpoint(folder, {**SHAPES, **BIG}[shape], dtype)
    return folder


def run(shape: str, report: Report, options: Any) -> None:
    folder = stored(shape, options.dtype or ("float32" if shape == TINY else "bfloat16"))
    options.vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    flags: dict[str, Any] = {"llm.prompt_cache": False}
    with InferenceEngine() as engine:
        alone = measure(
            engine.load_text(str(folder), features=flags), report, shape, 1, options.streams, options
        )
    began = time.perf_counter()
    try:
        with InferenceEngine() as engine:
            handle = engine.load_text(str(folder), features={**flags, "shard.ranks": options.ranks})
            report.add(
                what="started", shape=shape, seconds=round(time.perf_counter() - began, 1), **handle.info
            )
            said = measure(handle, report, shape, options.ranks, options.streams, options)
            for count, rows in said.items():
                same = [
                    next(
                        (at for at, pair in enumerate(zip(*both, strict=True)) if pair[0] != pair[1]),
                        len(both[0]),
                    )
                    for both in zip(rows, alone[count], strict=True)
                ]
                report.add(
                    what="tokens like one rank's", shape=shape, streams=count, of=options.new, same=same
                )
            first = prompts(1, options.length, 0, options.vocabulary)[0]
            report.add(
                what="longest silence of a rank, s",
                shape=shape,
                starting=round(max(STARTS), 2),
                at_work=round(max(SILENT), 2),
            )
            STARTS.clear()
            SILENT.clear()
            for sign in (signal.SIGKILL, signal.SIGSTOP):
                if report.left > 15:
                    found = fault(handle, sign, first, said[options.streams[0]][0], options.new)
                    report.add(what=sign.name, shape=shape, **found)
    except MLXEngineError as error:
        report.add(what="refused", shape=shape, error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    rank(int(sys.argv[1])) if sys.argv[1:2] and sys.argv[1].isdigit() else main()
