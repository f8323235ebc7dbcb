"""What other servers' tests assert, and what this one does: the cases behind docs/reference/peers.md.

``python plugins/mlxengine-serve/tests/peers.py`` writes the page; a test compares it.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "peers.md"
CHAT, MESSAGES, EMBED, RERANK = "/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/v1/rerank"
HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
HEAD = """\
# What other servers' tests assert

Written by `plugins/mlxengine-serve/tests/peers.py`; do not edit it by hand.

Cases that the test suites of vLLM, llama.cpp, Ollama and Rapid-MLX hold their servers to, in our words, and
what [`mlxengine serve`](../how-to/serve.md) does. A test runs each row against a server. Where the right
column differs, it says why.
"""


@frozen(kw_only=True)
class Case:
    """One row.

    Args:
        peer: whose test it is.
        theirs, ours: what is asserted there, and what is true here.
        path, body: what is asked here; a body that is bytes is sent as it is.
        status: how it is answered.
        param: the field that a refusal names.
        headers: sent with it.
        check: looks at the answer: decoded, or the decoded frames of a stream.
        where: which server is asked: one with a scripted model, the mock back end's, or one with a key.
    """

    peer: str
    theirs: str
    ours: str
    path: str = CHAT
    body: Any = None
    method: str = "POST"
    status: int = 200
    param: str | None = None
    headers: Mapping[str, str] = field(factory=dict)
    check: Callable[[Any], bool] | None = None
    ignored: str | None = None
    asked: Callable[[Any], bool] | None = None
    where: str = "scripted"


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": HI, **more}


def says(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


def turns(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*HI, *messages]}


def message(**more: Any) -> dict[str, Any]:
    return {"messages": HI, "max_tokens": 9, **more}


def answered(*blocks: dict[str, Any]) -> dict[str, Any]:
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    back = [{"role": "assistant", "content": [use]}, {"role": "user", "content": list(blocks)}]
    return {"messages": [*HI, *back], "max_tokens": 9}


def result(**more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t1", "content": "sunny", **more}


def deltas(frames: list[Any]) -> list[dict[str, Any]]:
    return [item["choices"][0]["delta"] for item in frames if item != "[DONE]" and item["choices"]]


def reasons(frames: list[Any]) -> list[Any]:
    found = [item["choices"][0]["finish_reason"] for item in frames if item != "[DONE]" and item["choices"]]
    return [reason for reason in found if reason is not None]


def usages(frames: list[Any]) -> list[Any]:
    return [item["usage"] for item in frames if item != "[DONE]" and item.get("usage")]


def vectors(body: Any) -> list[Any]:
    return [item["embedding"] for item in body["data"]]


def decoded(text: str) -> tuple[float, ...]:
    raw = base64.b64decode(text)
    return struct.unpack(f"{len(raw) // 4}f", raw)


EMBEDDER, RANKER = {"model": "mock/embed"}, {"model": "mock/embed", "query": "x"}
WORDS = ["alike", "alike", "other"]
KEY = {"authorization": "Bearer s3cret"}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
FILE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
LLAMA, VLLM, OLLAMA, RAPID = "llama.cpp", "vLLM", "Ollama", "Rapid-MLX"
_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": 123}}

CASES: tuple[Case, ...] = (
    # -- streams of chat
    Case(
        peer=LLAMA,
        theirs="The first chunk has the role and no text; no later one has the role.",
        ours="The same; the text is an empty one.",
        body=chat(stream=True),
        check=lambda f: (
            deltas(f)[0] == {"role": "assistant", "content": ""}
            and all("role" not in item for item in deltas(f)[1:])
        ),
    ),
    Case(
        peer=LLAMA,
        theirs="All chunks have one id.",
        ours="The same.",
        body=chat(stream=True),
        check=lambda f: len({item["id"] for item in f if item != "[DONE]"}) == 1,
    ),
    Case(
        peer=LLAMA,
        theirs="The chunk that ends an answer has no text.",
        ours="The same.",
        body=chat(stream=True),
        check=lambda f: deltas(f)[-1] == {},
    ),
    Case(
        peer=VLLM,
        theirs="Just one chunk says why the answer ended, and it is the last.",
        ours="The same.",
        body=chat(stream=True),
        check=lambda f: reasons(f) == ["stop"] and f[-1] == "[DONE]",
    ),
    Case(
        peer=VLLM,
        theirs="The chunks' texts joined are the whole answer's text.",
        ours="The same.",
        body=chat(stream=True),
        check=lambda f: "".join(item.get("content", "") for item in deltas(f)) == "Hello world",
    ),
    Case(
        peer=VLLM,
        theirs="With `include_usage: false` no chunk has usage.",
        ours="The same.",
        body=chat(stream=True, stream_options={"include_usage": False}),
        check=lambda f: usages(f) == [],
    ),
    Case(
        peer=VLLM,
        theirs="With `include_usage: true` one chunk without choices has it, after the end.",
        ours="The same.",
        body=chat(stream=True, stream_options={"include_usage": True}),
        check=lambda f: (
            len(usages(f)) == 1 and f[-2]["choices"] == [] and f[-2]["usage"]["total_tokens"] == 5
        ),
    ),
    Case(
        peer=VLLM,
        theirs="`stream_options` without a stream is a 400.",
        ours="The same, with `param`.",
        body=chat(stream_options={"include_usage": True}),
        status=400,
        param="stream_options",
    ),
    Case(
        peer=VLLM,
        theirs="`continuous_usage_stats` puts usage into every chunk.",
        ours="One chunk has it: clients add up what they see.",
        body=chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}),
        check=lambda f: len(usages(f)) == 1,
    ),
    # -- bodies of chat
    Case(
        peer=VLLM,
        theirs="A body that is a list, a number or a text is a 4xx, not a 500.",
        ours="400.",
        body=b'["not", "an", "object"]',
        status=400,
    ),
    Case(
        peer=LLAMA,
        theirs="`messages: null` is a 400 or a 500.",
        ours="400.",
        body={"messages": None},
        status=400,
        param="messages",
    ),
    Case(
        peer=LLAMA,
        theirs="`messages` that is a text is a 400 or a 500.",
        ours="400.",
        body={"messages": "hi"},
        status=400,
        param="messages",
    ),
    Case(
        peer=LLAMA,
        theirs="A message that is a number is a 400 or a 500.",
        ours="400, and which one.",
        body={"messages": [*HI, 123]},
        status=400,
        param="messages[1]",
    ),
    Case(
        peer=LLAMA,
        theirs="A message without a role is a 400 or a 500.",
        ours="400, and which one.",
        body={"messages": [*HI, {}]},
        status=400,
        param="messages[1].role",
    ),
    Case(
        peer=OLLAMA,
        theirs="Content that is a number is an `invalid_request_error`.",
        ours="The same, and where.",
        body={"messages": [{"role": "user", "content": 2}]},
        status=400,
        param="messages[0].content",
        check=lambda b: b["error"]["type"] == "invalid_request_error",
    ),
    Case(
        peer=LLAMA,
        theirs="Texts in parts are one message.",
        ours="The same.",
        body=says({"type": "text", "text": "What is"}, {"type": "text", "text": " it"}),
        asked=lambda request: [part.text for part in request.messages[0].parts] == ["What is", " it"],
    ),
    Case(
        peer=LLAMA,
        theirs="A `response_format` of an unknown type is a 400.",
        ours="The same.",
        body=chat(response_format={"type": "sound"}),
        status=400,
        param="response_format",
    ),
    Case(
        peer=LLAMA,
        theirs="A schema that is a number is a 400.",
        ours="The same.",
        body=chat(response_format=_FORMAT),
        status=400,
    ),
    Case(
        peer=LLAMA,
        theirs="`grammar` (in its own language) constrains the answer.",
        ours="Not known here, and named in `x-mlxengine-ignored`; write a JSON schema.",
        body=chat(grammar='root ::= "a"'),
        ignored="grammar",
    ),
    Case(
        peer=LLAMA,
        theirs="`timings_per_token` adds timings to chunks.",
        ours="Named in `x-mlxengine-ignored`: strict clients refuse what is not in the dialect.",
        body=chat(timings_per_token=True),
        ignored="timings_per_token",
    ),
    Case(
        peer=VLLM,
        theirs="`prompt_logprobs` scores the prompt.",
        ours="Named in `x-mlxengine-ignored`.",
        body=chat(prompt_logprobs=1),
        ignored="prompt_logprobs",
    ),
    # -- sampling
    Case(
        peer=VLLM,
        theirs="`logprobs: false` gives null.",
        ours="The same.",
        body=chat(logprobs=False),
        check=lambda b: b["choices"][0]["logprobs"] is None,
    ),
    Case(
        peer=VLLM,
        theirs="More than 20 `top_logprobs` are a 400.",
        ours="The same.",
        body=chat(logprobs=True, top_logprobs=21),
        status=400,
        param="top_logprobs",
    ),
    Case(
        peer=RAPID,
        theirs="A temperature that is no number (NaN) is refused.",
        ours="400: it is no JSON.",
        body=b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
        status=400,
    ),
    Case(
        peer=RAPID,
        theirs="A temperature that is infinite is refused.",
        ours="400.",
        body=b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
        status=400,
        param="temperature",
    ),
    Case(
        peer=RAPID,
        theirs="A temperature below 0 is refused.",
        ours="400.",
        body=chat(temperature=-0.1),
        status=400,
        param="temperature",
    ),
    Case(
        peer=OLLAMA,
        theirs="`top_p: 6` is handed on.",
        ours="400: a probability is at most 1.",
        body=chat(top_p=6.0),
        status=400,
        param="top_p",
    ),
    Case(
        peer=OLLAMA,
        theirs="`stop` may be several texts.",
        ours="The same.",
        body=chat(stop=["\n", "stop"]),
        asked=lambda request: request.params.stop == ("\n", "stop"),
    ),
    # -- tools
    Case(
        peer=VLLM,
        theirs="`tool_choice: null` is as good as none.",
        ours="The same.",
        body=chat(tools=[TOOL], tool_choice=None),
        asked=lambda request: request.tool_choice == "auto",
    ),
    Case(
        peer=VLLM,
        theirs="A `tool_choice` that there is not is refused.",
        ours="400.",
        body=chat(tools=[TOOL], tool_choice="bogus"),
        status=400,
        param="tool_choice",
    ),
    Case(
        peer=OLLAMA,
        theirs="An assistant's turn of calls alone, without content, is taken.",
        ours="The same.",
        body=turns(
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "20 degrees"},
        ),
        asked=lambda request: len(request.messages) == 3,
    ),
    Case(
        peer=OLLAMA,
        theirs="A tool's result is given the name of the tool by its call's id.",
        ours="The same.",
        body=turns(
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "20 degrees"},
        ),
        asked=lambda request: request.messages[2].parts[0].name == "look",
    ),
    # -- pictures
    Case(
        peer=OLLAMA,
        theirs="A picture in a `data:` URL goes to the model.",
        ours="The same.",
        body=says({"type": "text", "text": "Hello"}, IMAGE),
        asked=lambda request: type(request.messages[0].parts[1]).__name__ == "ImagePart",
    ),
    Case(
        peer=LLAMA,
        theirs="A `file://` URL is a 400, unless a folder is opened for them.",
        ours="Always a 400.",
        body=says(FILE),
        status=400,
        param="messages[0].content[0].image_url.url",
    ),
    # -- who may come
    Case(
        peer=LLAMA,
        theirs="`/health` needs no key.",
        ours="The same; nor does `/ready`.",
        path="/health",
        method="GET",
        where="locked",
    ),
    Case(
        peer=LLAMA, theirs="The page needs no key.", ours="The same.", path="/", method="GET", where="locked"
    ),
    Case(
        peer=LLAMA,
        theirs="The list of models needs no key.",
        ours="It does: it tells what is on the machine.",
        path="/v1/models",
        method="GET",
        status=401,
        where="locked",
    ),
    Case(
        peer=LLAMA,
        theirs="Without a key, or with a wrong one: 401, `authentication_error`.",
        ours="The same.",
        body=chat(),
        status=401,
        headers={"authorization": "Bearer wrong"},
        where="locked",
        check=lambda b: b["error"]["type"] == "authentication_error",
    ),
    Case(
        peer=LLAMA,
        theirs="A key may come as `Authorization: Bearer`.",
        ours="The same.",
        body=chat(),
        headers=KEY,
        where="locked",
    ),
    Case(
        peer=LLAMA,
        theirs="A key may come as `x-api-key`.",
        ours="The same.",
        body=chat(),
        headers={"x-api-key": "s3cret"},
        where="locked",
    ),
    Case(
        peer=LLAMA,
        theirs="Pages of any origin may call, with credentials.",
        ours="403, unless the origin was named: a page must not use what runs on its reader's machine.",
        body=chat(),
        status=403,
        headers={"origin": "https://web.example"},
    ),
    # -- embeddings and ranks
    Case(
        peer=LLAMA,
        theirs="Several texts give as many vectors, in order.",
        ours="The same.",
        path=EMBED,
        body={**EMBEDDER, "input": WORDS},
        where="mock",
        check=lambda b: [item["index"] for item in b["data"]] == [0, 1, 2],
    ),
    Case(
        peer=LLAMA,
        theirs="Equal texts give equal vectors.",
        ours="The same.",
        path=EMBED,
        body={**EMBEDDER, "input": WORDS},
        where="mock",
        check=lambda b: vectors(b)[0] == vectors(b)[1] != vectors(b)[2],
    ),
    Case(
        peer=LLAMA,
        theirs="Token ids are one text.",
        ours="The same.",
        path=EMBED,
        body={**EMBEDDER, "input": [12, 34, 56]},
        where="mock",
        check=lambda b: len(b["data"]) == 1,
    ),
    Case(
        peer=LLAMA,
        theirs="Token ids and words may be mixed in one text.",
        ours="400: whose ids would they be?",
        path=EMBED,
        body={**EMBEDDER, "input": [12, "text", 56]},
        status=400,
        where="mock",
    ),
    Case(
        peer=LLAMA,
        theirs="An empty list is a 400.",
        ours="The same.",
        path=EMBED,
        body={**EMBEDDER, "input": []},
        status=400,
        param="input",
        where="mock",
    ),
    Case(
        peer=LLAMA,
        theirs="`prompt_tokens` and `total_tokens` are the same.",
        ours="The same.",
        path=EMBED,
        body={**EMBEDDER, "input": WORDS},
        where="mock",
        check=lambda b: 0 < b["usage"]["prompt_tokens"] == b["usage"]["total_tokens"],
    ),
    Case(
        peer=LLAMA,
        theirs="`base64` is little-endian float32.",
        ours="The same.",
        path=EMBED,
        body={**EMBEDDER, "input": "x", "encoding_format": "base64"},
        where="mock",
        check=lambda b: len(decoded(vectors(b)[0])) > 1,
    ),
    Case(
        peer=LLAMA,
        theirs="A rank of no documents is a 400.",
        ours="The same.",
        path=RERANK,
        body={**RANKER, "documents": []},
        status=400,
        param="documents",
        where="mock",
    ),
    Case(
        peer=LLAMA,
        theirs="Documents that are numbers are a 400.",
        ours="The same, and which one.",
        path=RERANK,
        body={**RANKER, "documents": ["a", 2]},
        status=400,
        param="documents[1]",
        where="mock",
    ),
    Case(
        peer=LLAMA,
        theirs="A `top_n` above their number gives all.",
        ours="The same.",
        path=RERANK,
        body={**RANKER, "documents": WORDS, "top_n": 99},
        where="mock",
        check=lambda b: len(b["results"]) == 3,
    ),
    Case(
        peer=LLAMA,
        theirs="`texts` instead of `documents` is another server's form, and served.",
        ours="400: `documents` is missing.",
        path=RERANK,
        body={**RANKER, "texts": WORDS},
        status=400,
        param="documents",
        where="mock",
    ),
    # -- messages
    Case(
        peer=LLAMA,
        theirs="A message's usage counts cached tokens, and has no timings.",
        ours="The same.",
        path=MESSAGES,
        body=message(),
        check=lambda b: isinstance(b["usage"]["cache_read_input_tokens"], int) and "timings" not in b,
    ),
    Case(
        peer=LLAMA,
        theirs="Its stream has its six kinds of events, in order.",
        ours="The same.",
        path=MESSAGES,
        body=message(stream=True),
        check=lambda f: (
            list(dict.fromkeys(item["type"] for item in f))
            == [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]
        ),
    ),
    Case(
        peer=LLAMA,
        theirs="A tool's result becomes a turn of the tool.",
        ours="The same.",
        path=MESSAGES,
        body=answered(result()),
        asked=lambda request: request.messages[-1].role == "tool",
    ),
    Case(
        peer=LLAMA,
        theirs="A result with text beside it becomes two turns.",
        ours="The same.",
        path=MESSAGES,
        body=answered({"type": "text", "text": "here"}, result()),
        asked=lambda request: {item.role for item in request.messages[-2:]} == {"user", "tool"},
    ),
    Case(
        peer=LLAMA,
        theirs="A result may say that it is an error.",
        ours="The same.",
        path=MESSAGES,
        body=answered(result(is_error=True)),
        asked=lambda request: request.messages[-1].role == "tool",
    ),
)


def page() -> str:
    """The page."""
    rows = [f"| {case.peer} | {case.theirs} | {case.ours} |" for case in CASES]
    return "\n".join([HEAD, "| whose | theirs | ours |", "|-|-|-|", *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
