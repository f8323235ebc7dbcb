"""What a hub may call a file, how its JSON is read, how long is waited, and what messages leave out."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from mlxengine._hub.access import Policy, backoff, pause, retry_after
from mlxengine._hub.names import check_path, problem_with, read_json
from mlxengine._hub.secrets import redact
from mlxengine.errors import CancelledError, CorruptFileError, IncompatibleWeightsError

HOSTILE = [
    "",
    "/etc/passwd",
    "../outside",
    "a/../../outside",
    "a/./b",
    "a//b",
    "a/",
    "..\\outside",
    "C:\\windows",
    "C:evil",
    "con",
    "weights/NUL.json",
    "com1.safetensors",
    "a\0b",
    "a\nb",
    "trailing.",
    "trailing ",
    "x" * 256,
    "x" * 300 + ".json",
    "/".join(["deep"] * 300),
    "\ud800",
    None,
    7,
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_name_that_could_leave_the_cache_is_refused(path: object) -> None:
    assert problem_with(path)
    with pytest.raises(CorruptFileError) as caught:
        check_path(path, "org/name")
    assert not caught.value.recoverable


@pytest.mark.parametrize(
    "path", ["config.json", "a/b/c.safetensors", "1_Pooling/config.json", ".hidden", "naïve", "name:tag"]
)
def test_ordinary_names_are_kept(path: str) -> None:
    assert check_path(path, "org/name") == path


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"{",
        b"\xff\xfe",
        b"[" * 200 + b"]" * 200,
        b"[" * 100_000,
        b'{"a":' * 101 + b"1" + b"}" * 101,
    ],
)
def test_what_is_not_sound_json_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(IncompatibleWeightsError, match="config"):
        read_json(data, "config.json")


def test_brackets_inside_texts_do_not_count_as_depth() -> None:
    assert read_json(b'{"template": "' + b"[" * 500 + b'\\"{"}', "x")["template"] == "[" * 500 + '"{'


@pytest.mark.parametrize("data", [b'"' + b'\\"' * 30_000, b"[" * 10_000_000], ids=["no end", "too deep"])
def test_a_hostile_document_is_refused_in_no_time(data: bytes) -> None:
    start = time.monotonic()
    with pytest.raises(IncompatibleWeightsError):
        read_json(data, "config.json")
    assert time.monotonic() - start < 1


def test_waits_double_are_drawn_at_random_and_stay_below_the_cap() -> None:
    policy = Policy(base=0.2, cap=30)
    for failures in range(1, 20):
        draws = [backoff(policy, failures) for _ in range(50)]
        assert max(draws) <= min(30, 0.2 * 2 ** (failures - 1))
        assert len(set(draws)) > 1


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    assert retry_after("3") == 3
    assert retry_after(None) is None
    assert retry_after("soon") is None
    found = retry_after(formatdate(time.time() + 10, usegmt=True))
    assert found is not None
    assert 8 <= found <= 11


def test_a_pause_ends_at_once_when_the_caller_gives_up() -> None:
    start = time.monotonic()
    with pytest.raises(CancelledError):
        pause(30, lambda: time.monotonic() - start > 0.1)
    assert time.monotonic() - start < 1


def test_addresses_in_messages_have_no_password_and_no_signature() -> None:
    assert redact("https://me:secret@mirror.org/a?Signature=xyz") == "https://mirror.org/a"
