"""A stream whose connection was lost is taken up where it was, within its time, in every dialect."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mlxengine import Event, Finished, Request, TextDelta
from mlxengine_serve import Key, ServerOptions, _relays
from mlxengine_serve._http import Caller
from serve_harness import Scripted, Served, said, serving, write_model

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, Any] = {
    CHAT: {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 9},
    "/v1/engine/TextRequest": {"request": {"prompt": "hi"}},
}
KEYS = {"authorization": "Bearer alices"}
KEYS_RAW = [(name.encode(), value.encode()) for name, value in KEYS.items()]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    folder = write_model(tmp_path / "scripted")
    keys = [Key.of("alices", "alice"), Key.of("bobs", "bob")]
    options = ServerOptions(
        models=[f"scripted={folder}"],
        keys=keys,
        resume_seconds=0.6,
        heartbeat_seconds=0.15,
        first_byte_seconds=0.1,
    )
    with serving(options, Scripted()) as served:
        served.client.headers.update(KEYS)
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        yield served


def counting(served: Served, words: int = 60, seconds: float = 0.005) -> threading.Event:
    """Requests say numbers; the event is set when one has come to its end."""
    over = threading.Event()

    def plan(_request: Request) -> Iterator[Event]:
        for number in range(words):
            time.sleep(seconds)
            yield TextDelta(text=f"{number} ")
        over.set()
        yield Finished()

    assert served.plugin is not None
    served.plugin.plan = plan
    return over


def begin(served: Served, path: str, least: int) -> bytes:
    """A stream's first bytes; then the connection is lost."""
    found = b""
    with served.client.stream("POST", path, json={**BODIES[path], "stream": True}) as answer:
        assert answer.status_code == 200
        for piece in answer.iter_raw():
            found += piece
            if found.count(b"\n\n") >= least:
                break
    return found[: found.rindex(b"\n\n") + 2]


def last_id(text: bytes) -> str:
    return [line[4:] for line in text.decode().splitlines() if line.startswith("id: ")][-1]


def resume(served: Served, path: str, last: str, **options: Any) -> httpx2.Response:
    return served.client.get(path, headers={"last-event-id": last}, **options)


def spoken(text: bytes) -> str:
    """All the numbers that a stream's frames say, whatever its dialect."""
    found = ""
    for line in text.decode().splitlines():
        if not line.startswith("data: {"):
            continue
        data = json.loads(line[6:])
        if "choices" in data:
            choice = data["choices"][0]
            found += choice.get("delta", {}).get("content", "") or choice.get("text", "")
        elif data.get("type") in ("response.output_text.delta", "content_block_delta"):
            delta = data["delta"]
            found += delta if isinstance(delta, str) else delta["text"]
        elif data.get("type") == "TextDelta":
            found += data["text"]
    return found


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_is_taken_up_behind_the_last_event_that_was_seen(own: Served, path: str) -> None:
    counting(own)
    seen = begin(own, path, least=12)
    time.sleep(0.1)
    rest = resume(own, path, last_id(seen))
    assert (rest.status_code, rest.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert spoken(seen + rest.content) == "".join(f"{number} " for number in range(60))
    ids = [line for line in (seen + rest.content).decode().splitlines() if line.startswith("id: ")]
    assert len(set(ids)) == len(ids), "no event came twice"
    own.wait_until(lambda: "mlxengine_http_resumable 0" in own.get("/metrics").text)


def test_a_stream_that_nobody_takes_up_ends_after_its_time_and_is_gone(own: Served) -> None:
    counting(own, words=10_000)
    seen = begin(own, CHAT, least=5)
    left = time.monotonic()
    assert own.plugin is not None
    time.sleep(0.3)
    assert own.plugin.alive == 1, "it goes on meanwhile"
    assert "mlxengine_http_resumable 1" in own.get("/metrics").text
    own.wait_until(lambda: own.plugin.alive == 0)  # type: ignore[union-attr]
    assert 0.4 < time.monotonic() - left < 1.5
    gone = resume(own, CHAT, last_id(seen))
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "stream_gone")


def test_a_stream_may_be_lost_and_taken_up_again_and_again(own: Served) -> None:
    counting(own, words=200)
    seen = begin(own, CHAT, least=4)
    for _ in range(5):
        with own.client.stream("GET", CHAT, headers={"last-event-id": last_id(seen)}) as answer:
            more = b""
            for piece in answer.iter_raw():
                more += piece
                if more.count(b"\n\n") >= 8:
                    break
        seen += more[: more.rindex(b"\n\n") + 2]
    seen += resume(own, CHAT, last_id(seen)).content
    assert spoken(seen) == "".join(f"{number} " for number in range(200))


def test_the_end_can_be_asked_for_again(own: Served) -> None:
    with own.client.stream("POST", CHAT, json={**BODIES[CHAT], "stream": True}) as answer:
        whole = answer.read().decode()
    ids = [line[4:] for line in whole.splitlines() if line.startswith("id: ")]
    again = resume(own, CHAT, ids[-2])
    assert again.content.endswith(b"data: [DONE]\n\n")
    assert again.content.count(b"\n\n") == 1


@pytest.mark.parametrize(
    "last", ["", "req_1:1", ":", "{}:x", "{}:999999", "{}:-1", "{}:²", "{}:" + "9" * 5000]
)
def test_what_names_no_event_is_gone(own: Served, last: str) -> None:
    counting(own)
    seen = last_id(begin(own, CHAT, least=3))
    asked = last.format(seen.partition(":")[0]).encode("latin-1")
    answer = own.client.get(CHAT, headers=[(b"last-event-id", asked), *KEYS_RAW])
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "stream_gone")


@pytest.mark.parametrize("number", ["{}", "999999"], ids=["taken-up", "asked-for-wrongly"])
def test_who_still_reads_is_cut_off_by_no_connection_before_his(own: Served, number: str) -> None:
    counting(own, words=250)
    with own.client.stream("POST", CHAT, json={**BODIES[CHAT], "stream": True}) as first:
        pieces = first.iter_raw()
        seen = b""
        while seen.count(b"\n\n") < 4:
            seen += next(pieces)
        name, _, last = last_id(seen[: seen.rindex(b"\n\n") + 2]).partition(":")
        second = resume(own, CHAT, f"{name}:{number.format(last)}")
        rest = b"".join(pieces)
    whole = second.content if second.status_code == 200 else seen + rest
    assert whole.endswith(b"data: [DONE]\n\n"), "it takes twice as long as a stream is kept"
    assert spoken(whole).endswith(" 248 249 ")


def test_a_connection_that_was_slow_to_break_takes_nothing_from_the_next_one() -> None:
    found: list[bytes] = []

    async def both() -> None:
        relay = _relays.Relay(Caller(id="req"))
        await relay.send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(4):
            await relay.send({"type": "http.response.body", "body": b"%d\n\n" % number, "more_body": True})
        held, going = asyncio.Event(), asyncio.Event()

        async def stuck(message: Any) -> None:
            if message.get("body"):
                held.set()
                await going.wait()

        async def open_to(message: Any) -> None:
            if message["type"] == "http.response.start":
                going.set()  # the first one's connection breaks now
                await asyncio.sleep(0.01)
            found.append(message.get("body", b""))

        first = asyncio.ensure_future(relay.read(stuck, relay.taken(0)))
        await held.wait()
        second = asyncio.ensure_future(relay.read(open_to, relay.taken(1)))
        await relay.ended()
        await asyncio.gather(first, second)

    asyncio.run(asyncio.wait_for(both(), 5))
    said = [line for line in b"".join(found).splitlines() if line and not line.startswith(b"id: ")]
    assert said == [b"1", b"2", b"3"]


def test_a_stream_that_nobody_reads_counts_among_those_of_its_key(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "scripted")
    options = ServerOptions(
        models=[f"scripted={folder}"], keys=[Key.of("alices", "alice", limit=1)], resume_seconds=0.6
    )
    with serving(options, Scripted()) as served:
        served.client.headers.update(KEYS)
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        counting(served, words=10_000)
        seen = begin(served, CHAT, least=5)
        time.sleep(0.1)
        again = served.post(CHAT, BODIES[CHAT])
        assert (again.status_code, again.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        with served.client.stream("GET", CHAT, headers={"last-event-id": last_id(seen)}) as answer:
            assert answer.status_code == 200, "it is no further one"
        served.wait_until(lambda: served.plugin.alive == 0)  # type: ignore[union-attr]
        served.plugin.plan = said("again")  # type: ignore[union-attr]
        assert served.post(CHAT, BODIES[CHAT]).status_code == 200


def test_another_key_does_not_get_it(own: Served) -> None:
    counting(own)
    seen = begin(own, CHAT, least=3)
    theirs = own.client.get(CHAT, headers={"last-event-id": last_id(seen), "authorization": "Bearer bobs"})
    assert theirs.status_code == 410
    assert resume(own, CHAT, last_id(seen)).status_code == 200


def test_an_error_before_the_stream_began_is_a_status_and_nothing_is_kept(own: Served) -> None:
    from mlxengine import errors

    def broken(_request: Request) -> Iterator[Event]:
        raise errors.PromptTooLongError("long")
        yield

    assert own.plugin is not None
    own.plugin.plan = broken
    assert own.post(CHAT, {**BODIES[CHAT], "stream": True}).status_code == 400
    assert "mlxengine_http_resumable 0" in own.get("/metrics").text


def test_who_leaves_before_anything_was_said_ends_it_at_once(tmp_path: Path) -> None:
    def silent(_request: Request) -> Iterator[Event | None]:
        while True:
            time.sleep(0.002)
            yield None

    folder, plugin = write_model(tmp_path / "scripted"), Scripted()
    options = ServerOptions(models=[f"a={folder}"], resume_seconds=30, first_byte_seconds=30)
    with serving(options, plugin) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        plugin.plan = silent
        with pytest.raises(httpx2.ReadTimeout):
            served.post(CHAT, {**BODIES[CHAT], "stream": True}, timeout=0.3)
        served.wait_until(lambda: plugin.alive == 0, 2)


def test_no_more_is_kept_than_may_be_and_the_model_waits_meanwhile(
    own: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_relays, "MOST_BYTES", 20_000)
    over = counting(own, words=400, seconds=0.0002)
    seen = begin(own, CHAT, least=3)
    time.sleep(0.4)
    assert not over.is_set(), "400 words are 80 kB"
    rest = resume(own, CHAT, last_id(seen))
    assert spoken(seen + rest.content) == "".join(f"{number} " for number in range(400))
    assert resume(own, CHAT, last_id(seen)).status_code == 410, (
        "the reader has them: they are not kept for ever"
    )


def test_without_the_option_a_stream_has_no_ids_and_ends_with_its_connection(served: Served) -> None:
    assert not [
        line for line in served.lines(CHAT, {**BODIES[CHAT], "stream": True}) if line.startswith("id:")
    ]
    assert served.client.get(CHAT, headers={"last-event-id": "req_1:1"}).status_code == 405


def test_a_heartbeat_is_of_its_dialect_and_no_event_unless_clients_want_one(own: Served) -> None:
    beats = {
        CHAT: ": ",
        "/v1/completions": "data: {",
        "/v1/engine/TextRequest": ": ",
        "/v1/responses": "event: response.in_progress",
        "/v1/messages": "event: ping",
    }
    for path, beat in beats.items():
        counting(own, words=1, seconds=0.6)
        lines = own.lines(path, {**BODIES[path], "stream": True})
        assert any(line.startswith(beat) for line in lines), (path, lines)
        if path != "/v1/engine/TextRequest":  # nobody else's clients speak that
            assert not lines[0].startswith(":"), "a comment in front broke a client"
        assert own.plugin is not None
        own.plugin.plan = said("quick")
        quick = own.lines(path, {**BODIES[path], "stream": True})
        assert not [line for line in quick if line.startswith((": ", "event: ping"))], (
            "none where it is quick"
        )
