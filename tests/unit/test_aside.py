"""Work beside the device: the threads that do it give way to the scheduler's, and leave no trace of that."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
from mlxengine.toolkit.aside import Aside


@pytest.fixture
def aside() -> Iterator[Aside]:
    found = Aside(threads=2)
    yield found
    found.close()


def test_threads_hand_over_sooner_while_something_is_prepared_and_as_before_afterwards(aside: Aside) -> None:
    usual, go = sys.getswitchinterval(), threading.Event()
    first = aside.submit(lambda: (go.wait(20), sys.getswitchinterval())[1])
    failing = aside.submit(lambda: 1 // 0)
    assert isinstance(failing.exception(20), ZeroDivisionError)
    assert sys.getswitchinterval() == pytest.approx(0.0005), "the first one is not done"
    go.set()
    assert first.result(20) == pytest.approx(0.0005)
    assert sys.getswitchinterval() == usual


def test_what_somebody_else_sets_meanwhile_stays(aside: Aside) -> None:
    usual = sys.getswitchinterval()
    try:
        aside.submit(lambda: sys.setswitchinterval(0.02)).result(20)
        aside.submit(lambda: None).result(20)
        assert sys.getswitchinterval() == pytest.approx(0.02)
    finally:
        sys.setswitchinterval(usual)


def test_an_interval_that_is_shorter_already_is_left_alone(aside: Aside) -> None:
    usual = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.0001)
        short = sys.getswitchinterval()
        assert [aside.submit(sys.getswitchinterval).result(20) for _ in range(3)] == [short] * 3
    finally:
        sys.setswitchinterval(usual)


def test_no_interval_drifts_however_often_something_is_prepared(aside: Aside) -> None:
    usual = sys.getswitchinterval()
    try:
        for microseconds in (600, 1001, 4999, 7003, 12_345):
            sys.setswitchinterval((microseconds + 0.5) / 1e6)
            kept = sys.getswitchinterval()
            for _ in range(20):
                aside.submit(lambda: None).result(20)
            assert sys.getswitchinterval() == kept
    finally:
        sys.setswitchinterval(usual)
