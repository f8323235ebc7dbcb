"""What the engine asks of mlx itself."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from mlxengine._machine.backend import limit_cache

import mlx.core as mx  # isort: skip


@pytest.fixture
def unlimited() -> Iterator[None]:
    before = mx.set_cache_limit(1 << 50)
    yield
    mx.set_cache_limit(before)


@pytest.mark.usefixtures("unlimited")
def test_mlx_keeps_an_eighth_of_a_gpus_memory_at_most() -> None:
    assert limit_cache(64 << 30) == 8 << 30
    assert mx.set_cache_limit(1 << 50) == 8 << 30


@pytest.mark.usefixtures("unlimited")
def test_a_smaller_limit_that_was_set_before_stays() -> None:
    mx.set_cache_limit(1 << 20)
    assert limit_cache(64 << 30) == 1 << 20
    assert mx.set_cache_limit(1 << 50) == 1 << 20


@pytest.mark.usefixtures("unlimited")
def test_where_the_memory_is_unknown_nothing_is_set() -> None:
    assert limit_cache(None) is None
    assert mx.set_cache_limit(1 << 50) == 1 << 50


_PAGES = """
import os, resource, sys
from mlxengine.toolkit.cache import clear_cache, keep_pages
import mlx.core as mx

mx.set_default_device(mx.cpu)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    mx.eval(x + 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

x = mx.ones((4096, 4096))
mx.eval(x)
asked = faults(), faults()
assert keep_pages()
faults()
kept, held = faults(), resident()
clear_cache()
print(min(asked), kept, held - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_on_a_cpu_freed_memory_is_kept_where_that_is_wanted_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _PAGES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked, kept, given_back = map(int, done.stdout.split())
    assert kept < asked / 4, (asked, kept)
    assert given_back > 48, given_back  # of 64 MiB
