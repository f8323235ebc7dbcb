"""The simulation of several machines gives what one machine was measured with, and the page has its table."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from attrs import evolve

from benchmarks.engine.cost import ANSWER, MEASURED, NETWORKS, ROOT, Group, Machine, between, measured


@pytest.fixture(scope="module")
def machine() -> Machine:
    return measured(MEASURED, "llama-8B")


@pytest.mark.parametrize("streams", [1, 8, 32, 128])
def test_streams_at_once_are_as_quick_as_they_were(machine: Machine, streams: int) -> None:
    rows = map(json.loads, MEASURED.read_text().splitlines())
    [rate] = [row["tokens_per_second"]["ours"] for row in rows if row.get("streams") == streams]
    first, ended = Group(machine=machine).serve([0.0] * streams)
    assert len(first) == streams
    assert streams * ANSWER / ended == pytest.approx(rate, rel=0.12)


def test_replicas_multiply_answers_and_share_requests(machine: Machine) -> None:
    alone = Group(machine=machine)
    first, ended = evolve(alone, replicas=2).serve([0.0] * 16)
    half, half_ended = alone.serve([0.0] * 8)
    assert sorted(first)[::2] == pytest.approx(sorted(half))
    assert ended == pytest.approx(half_ended)


def test_ranks_pay_for_each_layer_of_a_step(machine: Machine) -> None:
    network = NETWORKS[0]
    bare = evolve(network, latency=0.0)
    paid = machine.step(8, 4, network) - machine.step(8, 4, bare)
    assert paid == pytest.approx(2 * machine.layers * network.latency)
    free = evolve(bare, bandwidth=float("inf"))
    share = between(machine.shares, 8)
    assert machine.step(8, 4, free) == pytest.approx(machine.step(8) * (1 - share * 3 / 4))
    moved = 2 * 3 / 4 * 8 * machine.width * 2 * 2 * machine.layers / network.bandwidth
    assert machine.step(8, 4, bare) - machine.step(8, 4, free) == pytest.approx(moved)


def test_the_table_of_the_page_is_current() -> None:
    command = [sys.executable, "-m", "benchmarks.engine.cost", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
