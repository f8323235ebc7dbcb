"""Answer one prompt with a language model; with other kinds, make one picture or vectors.

The prompt is the rest of the command line, or comes through a pipe. A picture goes to the file that
--output names; vectors are printed as one JSON list for each text.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..contract.events import Progress
from ..errors import InvalidParameterError, UnsupportedInputError
from ..handle import ModelHandle
from ..pictures.handle import ImageHandle, Picture
from ..pictures.outputs import ImageReady
from ..pictures.requests import ImageRequest
from ..text.handle import TextHandle
from ..text.messages import ImagePart, Message, TextPart
from ..text.outputs import TextDelta
from ..text.replies import TextReply
from ..vectors.requests import EmbedRequest
from . import _engine
from ._frame import UsageError
from ._output import Output
from ._progress import ProgressLine


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help='what to ask; "-" reads it from stdin')
    _engine.add_model(parser)
    _engine.add_params(parser)
    parser.add_argument("--stats", action="store_true", help="say how long it took, on stderr")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture in the question"
    )
    group = parser.add_argument_group("pictures")
    group.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the picture goes")
    group.add_argument("--size", type=_engine.size, metavar="WxH")
    group.add_argument("--steps", type=int)
    group.add_argument("--guidance", type=float)
    group.add_argument("--negative", metavar="TEXT", help="what the picture should not show")


def run(arguments: argparse.Namespace, out: Output) -> int:
    chosen = _engine.params(arguments)
    with _engine.engine(arguments, out) as engine:
        handle = _engine.load(engine, arguments, out)
        prompt = _engine.prompt_words(arguments.prompt, handle.configuration.default_prompt)
        if isinstance(handle, TextHandle):
            images = [ImagePart(name) for name in arguments.image]
            question: str | Message = Message.user([*images, TextPart(prompt)]) if images else prompt
            events = []
            with handle.stream(question, chosen, instructions=arguments.system) as stream:
                for event in stream:
                    events.append(event)
                    if isinstance(event, TextDelta) and not out.json:
                        out.write(event.text)
            reply = TextReply.of(events)
            out.end_line()
            if out.json:
                out.value({"model": handle.id, **_reply(reply)})
            if arguments.stats:
                out.note(_engine.stats(reply.usage, reply.metrics))
        elif isinstance(handle, ImageHandle):
            _picture(handle, prompt, arguments, out)
        elif handle.kind == "embed":
            _vectors(handle, arguments.prompt if len(arguments.prompt) > 1 else prompt.splitlines(), out)
        else:
            raise UnsupportedInputError(
                f"`mlxengine run` does not know how to ask a model of kind {handle.kind!r}.",
                hint=f"See whether the plugin {handle.plugin!r} brings a verb of its own: mlxengine --help.",
            )
    return 0


def _reply(reply: TextReply) -> dict[str, object]:
    return {
        "text": reply.text,
        "reasoning": reply.reasoning or None,
        "finish_reason": reply.finish_reason,
        "usage": reply.usage,
        "metrics": reply.metrics,
        "mock": reply.mock,
    }


def _picture(handle: ImageHandle, prompt: str, arguments: argparse.Namespace, out: Output) -> None:
    if arguments.output is None:
        raise UsageError("A picture needs a file to go to.", hint="Add --output picture.png.")
    if not arguments.output.absolute().parent.is_dir():
        raise InvalidParameterError(f"There is no folder {arguments.output.parent}.", hint="Make it first.")
    request = ImageRequest(
        prompt=prompt,
        negative=arguments.negative,
        size=arguments.size,
        steps=arguments.steps,
        guidance=arguments.guidance,
        seed=arguments.seed,
    )
    ready: ImageReady | None = None
    with ProgressLine(out) as progress, handle.stream(request) as stream:
        for event in stream:
            if isinstance(event, Progress):
                progress(event)
            elif isinstance(event, ImageReady):
                ready = event
    assert ready is not None
    picture = Picture(pixels=ready.pixels, recipe=ready.recipe)
    try:
        path = picture.save(arguments.output)
    except (OSError, ValueError) as error:  # no such format, no space
        raise InvalidParameterError(f"{arguments.output} cannot be written: {error}.") from error
    value = {"model": handle.id, "path": path, "recipe": ready.recipe, "mock": ready.mock}
    out.emit(value, lambda: out.line(str(path)))
    if arguments.stats:
        out.note(_engine.recipe(ready.recipe))


def _vectors(handle: ModelHandle, texts: list[str], out: Output) -> None:
    import struct

    from ..vectors.outputs import Embeddings

    rows: dict[int, list[float]] = {}
    mock = False
    with handle.stream(EmbedRequest(texts=tuple(texts))) as stream:
        for event in stream:
            if isinstance(event, Embeddings) and event.vectors is not None:
                mock = event.mock
                count, size = event.vectors.shape
                values = struct.unpack(f"{count * size}f", bytes(event.vectors.data))
                for place, index in enumerate(event.indices):
                    rows[index] = [round(value, 7) for value in values[place * size : (place + 1) * size]]
    vectors = [rows[index] for index in sorted(rows)]

    def lines() -> None:
        for vector in vectors:
            out.value(vector)

    out.emit({"model": handle.id, "vectors": vectors, "mock": mock}, lines)
