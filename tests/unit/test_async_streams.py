"""Readers on one event loop: none waits for what has come, and a burst of events calls into the loop once."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path

import pytest
from mlxengine import Event, Finished, TextDelta
from mlxengine._scheduling.bell import Bell
from mlxengine._scheduling.channel import Channel
from mlxengine.streams import AsyncEventStream

STREAMS = 32


def streams() -> tuple[list[Channel], list[AsyncEventStream]]:
    channels = [Channel(64, lambda: None) for _ in range(STREAMS)]
    return channels, [AsyncEventStream(channel, lambda: None) for channel in channels]


def test_the_events_of_many_streams_call_into_their_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called = 0

    async def burst() -> list[Event]:
        channels, readers = streams()
        plain = Bell.ring

        def counted(bell: Bell) -> None:
            nonlocal called
            called += 1
            plain(bell)

        monkeypatch.setattr(Bell, "ring", counted)
        waiting = [asyncio.create_task(anext(reader)) for reader in readers]
        await asyncio.sleep(0)
        for channel in channels:  # the loop does not get to it before all are there
            channel.put(TextDelta(text="a"))
        return await asyncio.wait_for(asyncio.gather(*waiting), 5)

    found = asyncio.run(burst())
    assert [event.text for event in found if isinstance(event, TextDelta)] == ["a"] * STREAMS
    assert called == 1


def test_no_event_is_missed_however_writer_and_loop_meet() -> None:
    channels, readers = streams()
    count = 300

    def write() -> None:
        for number in range(count):
            for channel in channels:
                channel.put(TextDelta(text=str(number)))
        for channel in channels:
            channel.put(Finished())
            channel.end()

    async def read(reader: AsyncEventStream) -> list[str]:
        return [event.text async for event in reader if isinstance(event, TextDelta)]

    async def read_all() -> list[list[str]]:
        reading = [asyncio.create_task(read(reader)) for reader in readers]
        await asyncio.sleep(0)
        writer.start()
        return await asyncio.wait_for(asyncio.gather(*reading), 30)

    writer = threading.Thread(target=write)
    assert asyncio.run(read_all()) == [[str(number) for number in range(count)]] * STREAMS
    writer.join()


def test_a_loop_that_is_closed_stops_no_writer() -> None:
    channels, readers = streams()

    async def leave() -> None:
        waiting = [asyncio.create_task(anext(reader)) for reader in readers]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()

    asyncio.run(leave())
    for channel in channels:
        channel.put(TextDelta(text="a"))
        channel.end()


def opened() -> int:
    gc.collect()
    return len(list(Path("/dev/fd").iterdir()))


def test_a_loop_that_is_closed_before_its_event_comes_is_freed() -> None:
    def late() -> None:
        channel = Channel(64, lambda: None)
        reader = AsyncEventStream(channel, lambda: None)

        async def leave() -> None:
            waiting.append(asyncio.create_task(anext(reader)))
            await asyncio.sleep(0)

        waiting: list[asyncio.Task[Event]] = []
        asyncio.run(leave())
        channel.put(TextDelta(text="a"))

    late()
    before = opened()
    for _ in range(8):
        late()
    assert opened() == before


def test_a_task_that_only_its_stream_holds_is_not_collected() -> None:
    def begin(told: list[str]) -> Channel:
        channel = Channel(64, lambda: None)
        reader = AsyncEventStream(channel, lambda: None)

        async def read() -> None:
            told.extend([event.text async for event in reader if isinstance(event, TextDelta)])

        asyncio.create_task(read())  # noqa: RUF006
        return channel

    async def forgotten() -> list[str]:
        told: list[str] = []
        channel = begin(told)
        await asyncio.sleep(0)
        gc.collect()
        channel.put(TextDelta(text="a"))
        channel.end()
        del channel
        gc.collect()  # what was woken is held as well
        await asyncio.sleep(0.1)
        return told

    assert asyncio.run(forgotten()) == ["a"]


def test_loops_that_come_and_go_leave_no_descriptor() -> None:
    async def read() -> str:
        channel = Channel(64, lambda: None)
        reader = AsyncEventStream(channel, lambda: None)
        threading.Timer(0.001, channel.put, [TextDelta(text="a")]).start()
        event = await asyncio.wait_for(anext(reader), 5)
        channel.end()
        return getattr(event, "text", "")

    assert asyncio.run(read()) == "a"
    before = opened()
    for _ in range(8):
        assert asyncio.run(read()) == "a"
    assert opened() == before


def test_what_has_come_meanwhile_is_taken_at_once_and_an_error_waits_behind_it() -> None:
    async def read() -> tuple[list[str], list[str], type[Exception] | None]:
        space = 0

        def on_space() -> None:
            nonlocal space
            space += 1

        channel = Channel(4, on_space)
        reader = AsyncEventStream(channel, lambda: None)
        for text in "abcd":
            channel.put(TextDelta(text=text))
        channel.end(RuntimeError("then it failed"))
        events = aiter(reader)
        first = await anext(events)
        together = [first, *reader.arrived(1), *reader.arrived()]
        assert space == 1, "the writer may go on"
        later = reader.arrived()
        try:
            await anext(events)
        except RuntimeError as error:
            return _texts(together), _texts(later), type(error)
        return _texts(together), _texts(later), None

    assert asyncio.run(read()) == (list("abcd"), [], RuntimeError)


def test_the_last_event_is_known_when_it_was_taken_with_others() -> None:
    async def read() -> Finished | None:
        [channel, *_], [reader, *_] = streams()
        channel.put(TextDelta(text="a"))
        channel.put(Finished())
        channel.end()
        found = [[event, *reader.arrived()] async for event in reader]
        assert [len(several) for several in found] == [2]
        return reader.finished

    assert asyncio.run(read()) is not None


def _texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, TextDelta)]
