"""Each fault does what it says, seen by a plain socket client, and the log counts what was sent."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator

import pytest

from tests.hub.server import HubServer

DATA = bytes(range(251)) * 9000
PATH = "/org/name/resolve/main/model.safetensors"


@pytest.fixture
def connection(hub: HubServer) -> Iterator[http.client.HTTPConnection]:
    hub.repos.add("org/name", {"model.safetensors": DATA})
    made = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
    yield made
    made.close()


def _get(connection: http.client.HTTPConnection, **headers: str) -> http.client.HTTPResponse:
    connection.request("GET", PATH, headers=headers)
    return connection.getresponse()


def _read_until_error(answer: http.client.HTTPResponse) -> tuple[bytes, type[Exception] | None]:
    got = b""
    try:
        while block := answer.read1(1 << 16):
            got += block
    except OSError as error:
        return got, type(error)
    return got, None


def test_an_unknown_fault_is_refused(hub: HubServer) -> None:
    with pytest.raises(ValueError, match="no fault"):
        hub.faults.add("gremlin")


def test_reset_is_a_real_rst_after_exactly_so_many_bytes(
    hub: HubServer, connection: http.client.HTTPConnection
) -> None:
    hub.faults.add("reset", PATH, after=1_000_001)
    got, error = _read_until_error(_get(connection))
    assert error is ConnectionResetError
    assert got == DATA[:1_000_001]
    (entry,) = hub.log.entries()
    assert (entry.bytes, entry.end) == (1_000_001, "reset")


def test_reset_early_sends_nothing(hub: HubServer, connection: http.client.HTTPConnection) -> None:
    hub.faults.add("reset_early")
    with pytest.raises(ConnectionResetError):
        _get(connection)
    assert hub.log.bytes() == 0


def test_truncate_ends_in_order(hub: HubServer, connection: http.client.HTTPConnection) -> None:
    hub.faults.add("truncate", after=5000)
    answer = _get(connection)
    assert int(answer.headers["Content-Length"]) == len(DATA)
    assert _read_until_error(answer) == (DATA[:5000], None)


def test_stall_sends_no_more(hub: HubServer, connection: http.client.HTTPConnection) -> None:
    hub.faults.add("stall", after=4096)
    connection.timeout = 0.3
    got, error = _read_until_error(_get(connection))
    assert (got, error) == (DATA[:4096], TimeoutError)


def test_delay_and_status_act_together_as_often_as_asked(
    hub: HubServer, connection: http.client.HTTPConnection
) -> None:
    hub.faults.add("status", PATH, status=429, headers={"Retry-After": "3"}, skip=1, times=1)
    hub.faults.add("delay", PATH, seconds=0.2, skip=1, times=1)
    seen = []
    for _ in range(3):
        start = time.monotonic()
        answer = _get(connection)
        answer.read()
        seen.append((answer.status, answer.headers["Retry-After"], time.monotonic() - start >= 0.2))
    assert seen[0][:2] == seen[2][:2] == (200, None)
    assert seen[1] == (429, "3", True)


def test_corrupt_changes_one_bit_of_the_file_wherever_the_range_begins(
    hub: HubServer, connection: http.client.HTTPConnection
) -> None:
    for offset, header in ((-1, ""), (0, ""), (1_500_000, "bytes=1499999-")):
        hub.faults.add("corrupt", PATH, offset=offset, mask=0x80)
        got = _get(connection, **({"Range": header} if header else {})).read()
        right = DATA[1_499_999:] if header else DATA
        differing = [(a, b) for a, b in zip(got, right, strict=True) if a != b]
        assert len(differing) == 1
        assert differing[0][0] ^ differing[0][1] == 0x80


def test_range_faults(hub: HubServer, connection: http.client.HTTPConnection) -> None:
    hub.faults.add("ignore_range", PATH)
    answer = _get(connection, Range="bytes=10-")
    assert (answer.status, answer.read()) == (200, DATA)
    hub.faults.add("wrong_range", PATH, shift=5)
    answer = _get(connection, Range="bytes=10-")
    assert answer.headers["Content-Range"].startswith("bytes 15-")
    assert answer.read() == DATA[15:]


def test_length_and_header_faults(hub: HubServer, connection: http.client.HTTPConnection) -> None:
    hub.faults.add("short_length", PATH, cut=100)
    assert _get(connection).read() == DATA[:-100]
    hub.faults.add("oversize", PATH, extra=70_000)
    got = _get(connection).read()
    assert (len(got), got[: len(DATA)]) == (len(DATA) + 70_000, DATA)
    hub.faults.add("drop_header", PATH, header="X-Repo-Commit")
    hub.faults.add("set_header", PATH, header="ETag", value='"beef"')
    answer = _get(connection)
    assert (answer.headers["X-Repo-Commit"], answer.headers["ETag"]) == (None, '"beef"')
    answer.read()


def test_slow_keeps_to_its_rate(hub: HubServer, connection: http.client.HTTPConnection) -> None:
    hub.faults.add("slow", PATH, rate=len(DATA) * 2)
    start = time.monotonic()
    assert _get(connection).read() == DATA
    assert 0.4 < time.monotonic() - start < 2.0


@pytest.mark.parametrize("part", ["headers", "body"])
def test_drip_sends_a_byte_at_a_time(
    hub: HubServer, connection: http.client.HTTPConnection, part: str
) -> None:
    hub.faults.add("drip", PATH, seconds=0.2, part=part, after=100)
    hub.faults.add("drip", PATH, seconds=0.0, part="headers")
    connection.request("GET", PATH)
    assert connection.sock is not None
    got, times = b"", []
    while len(times) < 4:
        got += connection.sock.recv(1 << 16)
        if part == "headers" or b"\r\n\r\n" in got:
            times.append(time.monotonic())
    assert 0.15 < times[3] - times[2] < 1.0
    connection.close()
    connection.connect()
    answer = _get(connection)
    assert answer.headers["X-Filler"] == "x" * 10_000
    assert answer.read() == DATA


def test_replace_answers_with_something_else(hub: HubServer, connection: http.client.HTTPConnection) -> None:
    hub.faults.add("replace", PATH, body=b"7")
    assert _get(connection).read() == b"7"
    assert _get(connection).read() == DATA
