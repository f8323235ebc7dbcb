"""A rank that dies or stops: its answer goes on, nothing hangs, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from mlxengine import InferenceEngine, TextDelta, TextHandle
from shard_harness import GREEDY, cpu_seconds, running, text_of, until

LONG = evolve(GREEDY, max_tokens=80)
PROMPT = "once upon a time"


LEADER = """
import sys
from mlxengine import GenerateParams, InferenceEngine
handle = InferenceEngine().load_text(sys.argv[1], features={"shard.ranks": 2, "shard.step_seconds": 5.0})
print(*handle.info["pids"], flush=True)
for event in handle.stream("x", GenerateParams(max_tokens=4000, temperature=0, ignore_eos=True)):
"""


@pytest.fixture(scope="module")
def wanted(tiny: Path) -> str:
    with InferenceEngine() as engine:
        return engine.load_text(str(tiny)).generate(PROMPT, LONG).text


@pytest.fixture(scope="module")
def engine() -> Iterator[InferenceEngine]:
    with InferenceEngine() as found:
        yield found


@pytest.fixture(scope="module")
def spread(engine: InferenceEngine, tiny: Path) -> TextHandle:
    return engine.load_text(str(tiny), features={"shard.ranks": 2})


def _begun(handle: TextHandle) -> tuple[Any, list[Any]]:
    """A stream that has said something, and what it said."""
    stream = handle.stream(PROMPT, LONG)
    said: list[Any] = []
    while len([event for event in said if isinstance(event, TextDelta)]) < 5:
        said.append(next(stream))
    return stream, said


@pytest.mark.feature("shard.step_seconds")
@pytest.mark.parametrize(
    ("rank", "sign"),
    [
        (1, signal.SIGKILL),
        (1, signal.SIGSTOP),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_answer_goes_on_after_a_rank_was_lost(
    spread: TextHandle, wanted: str, rank: int, sign: signal.Signals
) -> None:
    stream, said = _begun(spread)
    before = list(spread.info["pids"])
    os.kill(before[rank], sign)
    began = time.monotonic()
    rest = list(stream)
    seconds = time.monotonic() - began
    assert text_of(said + rest) == wanted
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert seconds < 10 * busy, f"{seconds:.1f} s from the signal to the end of the answer"
    assert not set(before) & set(running())
    assert len(running()) == 2
    assert spread.generate(PROMPT, LONG).text == wanted


def test_a_rank_that_was_stopped_before_its_first_step_is_seen_in_seconds(
    spread: TextHandle, wanted: str
) -> None:
    stopped = spread.info["pids"][1]
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    assert spread.generate(PROMPT, LONG).text == wanted
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert time.monotonic() - began < 12 * busy  # of a row's first step nothing is known: it may take 120 s
    assert stopped not in running()


@pytest.mark.slow
def test_ranks_that_were_stopped_together_with_their_leader_go_on(tiny: Path) -> None:
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER + "    pass\n", str(tiny)], stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    try:
        everyone = [leader.pid, *(int(word) for word in leader.stdout.readline().split())]
        time.sleep(0.5)
        for sign, seconds in ((signal.SIGSTOP, 8.0), (signal.SIGCONT, 3.0)):
            for pid in everyone:
                os.kill(pid, sign)
            time.sleep(seconds)
        assert leader.poll() is None
        assert all(Path(f"/proc/{pid}").exists() for pid in everyone)
    finally:
        leader.kill()
        leader.wait()
        leader.stdout.close()
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everyone), 10)


@pytest.mark.slow
def test_a_rank_that_dies_while_nobody_asks_is_seen_and_started_again(
    engine: InferenceEngine, spread: TextHandle, wanted: str
) -> None:
    os.kill(spread.info["pids"][1], signal.SIGKILL)
    assert until(lambda: "rank 1 has died" in str(engine.health()), 5)
    assert spread.generate(PROMPT, LONG).text == wanted


def test_ranks_that_wait_take_no_time(spread: TextHandle) -> None:
    spread.generate(PROMPT, GREEDY)
    time.sleep(0.5)  # they have let go of the last answer
    before = {pid: cpu_seconds(pid) for pid in running()}
    assert len(before) == 2
    time.sleep(3)
    for pid, seconds in before.items():
        assert cpu_seconds(pid) - seconds < 0.02 * 3


def test_a_rank_that_waits_for_a_stopped_one_ends_with_its_leader(tiny: Path) -> None:
    program = LEADER + "    pass\n"
    leader = subprocess.Popen([sys.executable, "-c", program, str(tiny)], stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    waits, stopped = (int(word) for word in leader.stdout.readline().split())
    try:
        time.sleep(0.5)  # in the middle of the answer
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(0.5)
        leader.kill()
        leader.wait()
        assert until(lambda: not Path(f"/proc/{waits}").exists(), 10)
    finally:
        os.kill(stopped, signal.SIGKILL)  # it cannot know of anything
        leader.stdout.close()
    assert until(lambda: not Path(f"/proc/{stopped}").exists(), 10)


@pytest.mark.parametrize("end", ["killed", pytest.param("exits", marks=pytest.mark.slow)])
def test_the_ranks_of_a_leader_that_is_gone_end(tiny: Path, end: str) -> None:
    program = LEADER + ("    pass\n" if end == "killed" else "    sys.exit(0)\n")
    leader = subprocess.Popen([sys.executable, "-c", program, str(tiny)], stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    pids = [int(word) for word in leader.stdout.readline().split()]
    assert len(pids) == 2
    if end == "killed":
        time.sleep(0.5)  # in the middle of the answer
        leader.kill()
    else:
        os.kill(pids[1], signal.SIGSTOP)  # it cannot see that its line is closed
    leader.wait()
    leader.stdout.close()
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)
