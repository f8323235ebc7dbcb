"""A process with one of several servers: ``python behind_process.py FOLDER MODEL``; it says its socket.

Its model says the id of the process and as many words as the last message asks for, slowly.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mlxengine import Event, Finished, ReasoningDelta, Request, TextDelta, TextRequest, TokenUsage
from mlxengine_serve import Key, ServerOptions
from mlxengine_serve._behind import Behind
from serve_harness import Scripted

KEY = Key.of("secret", "alice", limit=3)


def options_of(model: str, keys: bool = False) -> ServerOptions:
    return ServerOptions(
        models=[f"m={model}"], keys=[KEY] if keys else [], resume_seconds=None if keys else 30
    )


def plan(request: Request) -> Iterator[Event]:
    assert isinstance(request, TextRequest)
    count = int(request.messages[-1].text.split()[-1]) if request.messages else int(str(request.prompt))
    yield ReasoningDelta(text="hm")
    yield TextDelta(text=f"{os.getpid()}")
    for number in range(count):
        time.sleep(0.003)
        yield TextDelta(text=f" {number}")
    yield Finished(usage=TokenUsage(prompt_tokens=1, completion_tokens=count))


async def main(folder: str, model: str, keys: str) -> None:
    engine = {"plugins": [("scripted", Scripted(plan=plan))]}
    behind = Behind(options_of(model, keys == "keys"), Path(folder), engine)
    print((await behind.figures()).path, flush=True)
    while True:
        await asyncio.sleep(0.1)
        await behind.figures()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
