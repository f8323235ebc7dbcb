"""Sixteen requests at once, no two alike: ours, ``mlx_lm.server`` and a raw ``BatchGenerator`` side by side.

    python -m benchmarks.language.mix [--shape llama-2M] [--rounds 3] [--output FILE.json]

Each is given the same requests, first one by one and then all at once, on the same random weights in fp32.
For every request: whether the answer among the others is the one that it got alone, and whether what was
special about it (a schema, a stop text, two answers, an adapter, …) was honoured. The server is a process of
its own, spoken to over HTTP on loopback; the generator is given what its arguments can express, and what they
cannot counts as not honoured. Times are wall times.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

import mlx.core as mx  # noqa: E402
from attrs import frozen  # noqa: E402
from mlxengine import GenerateParams, Grammar, InferenceEngine, Message  # noqa: E402
from mlxengine.toolkit.loading import descriptor_limit_kept  # noqa: E402

with descriptor_limit_kept():
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_logits_processors, make_sampler
    from mlx_lm.utils import load

from benchmarks.shapes import SHAPES, write_checkpoint  # noqa: E402

TOKENS = 24
TEMPLATE = (
    "{% if tools %}<tool_call>{{ tools }}{# tool_call.name #}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
)
PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


@frozen(kw_only=True)
class Wish:
    """A request in OpenAI's words, and how to tell from the texts of its answers that it was honoured."""

    name: str
    fields: dict[str, Any]
    honoured: Callable[[Sequence[str]], bool] = bool


def fits(texts: Sequence[str]) -> bool:
    try:
        return [sorted(json.loads(text)) for text in texts] == [["age"]]
    except (ValueError, TypeError):
        return False


def wishes(adapters: Sequence[str]) -> list[Wish]:
    schema = {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}}
    colours = {"response_format": {"type": "regex", "regex": "red|green|blue"}}
    warm = {"temperature": 1.0}
    return [
        Wish(name="greedy", fields={}),
        Wish(name="temperature", fields={"temperature": 0.7, "seed": 1}),
        Wish(name="top_p", fields={**warm, "top_p": 0.8, "seed": 2}),
        Wish(name="top_k", fields={**warm, "top_k": 5, "seed": 3}),
        Wish(name="min_p", fields={**warm, "min_p": 0.05, "seed": 4}),
        Wish(name="schema", fields=schema, honoured=fits),
        Wish(name="schema, warm", fields={**schema, **warm, "seed": 5}, honoured=fits),
        Wish(
            name="regex",
            fields={**colours, **warm, "seed": 6},
            honoured=lambda texts: all(re.fullmatch("red|green|blue", text) for text in texts),
        ),
        Wish(name="stop", fields={"stop": ["1", "e"]}, honoured=lambda texts: "1" not in texts[0]),
        Wish(name="logprobs", fields={"logprobs": True, "top_logprobs": 3}),
        Wish(name="repetition", fields={"repetition_penalty": 1.3}),
        Wish(name="presence", fields={**warm, "presence_penalty": 1.0, "seed": 7}),
        Wish(name="adapter a", fields={"adapters": adapters[0]}),
        Wish(name="adapter b", fields={"adapters": adapters[1], **warm, "seed": 8}),
        Wish(name="tools", fields={"tools": [TOOL]}),
        Wish(name="n = 2", fields={"n": 2, **warm, "seed": 9}, honoured=lambda texts: len(texts) == 2),
    ]


class Ours:
    """The engine."""

    knows: frozenset[str] | None = None

    def __init__(self, folder: str, adapters: Sequence[str]) -> None:
        self._engine = InferenceEngine()
        self._model = self._engine.load_text(folder, features={"llm.prompt_cache": False})
        for path in adapters:
            self._model.load_adapter(path, Path(path).name)

    def __call__(self, wish: Wish) -> list[str]:
        fields = dict(wish.fields)
        grammar = None
        if (wanted := fields.pop("response_format", None)) is not None:
            schema = wanted.get("json_schema", {}).get("schema")
            grammar = Grammar.json(schema) if schema else Grammar.regex(wanted["regex"])
        tools = tuple(item["function"] for item in fields.pop("tools", ()))
        if "adapters" in fields:
            fields["adapter"] = Path(fields.pop("adapters")).name
        params = GenerateParams(max_tokens=TOKENS, grammar=grammar, **{"temperature": 0, **fields})
        reply = self._model.generate([Message.user(f"tell me: {wish.name}")], params, tools=tools)
        return [choice.text for choice in reply.choices] or [reply.text]

    def all(self, found: Sequence[Wish]) -> list[list[str]]:
        with ThreadPoolExecutor(len(found)) as pool:
            return list(pool.map(self, found))

    def close(self) -> None:
        self._engine.close()


class Server:
    """``mlx_lm.server`` over HTTP, which takes every field and ignores what it does not know."""

    knows: frozenset[str] | None = None

    def __init__(self, folder: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._folder, self._base = folder, f"http://127.0.0.1:{port}"
        code = "from mlxengine.toolkit import blas; blas.load(); from mlx_lm.server import main; main()"
        command = [sys.executable, "-c", code, "--model", folder, "--port", str(port), "--log-level", "ERROR"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self._base}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit("mlx_lm.server does not answer")

    def __call__(self, wish: Wish) -> list[str]:
        messages = [{"role": "user", "content": f"tell me: {wish.name}"}]
        body = {"model": self._folder, "messages": messages, "max_tokens": TOKENS, **wish.fields}
        request = urllib.request.Request(
            f"{self._base}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return [item["message"].get("content") or "" for item in json.load(response)["choices"]]
        except urllib.error.HTTPError as error:
            return [f"error {error.code}"]

    def all(self, found: Sequence[Wish]) -> list[list[str]]:
        with ThreadPoolExecutor(len(found)) as pool:
            return list(pool.map(self, found))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


class Generator:
    """A raw ``BatchGenerator``, given what can be said to it."""

    knows: frozenset[str] | None = frozenset(
        {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"}
        | {"tools", "n", "logprobs", "top_logprobs"}
    )

    def __init__(self, folder: str) -> None:
        self._network, self._tokenizer = load(folder)[:2]

    def __call__(self, wish: Wish) -> list[str]:
        return self.all([wish])[0]

    def all(self, found: Sequence[Wish]) -> list[list[str]]:
        generator = BatchGenerator(
            self._network, max_tokens=TOKENS, stop_tokens=[[item] for item in self._tokenizer.eos_token_ids]
        )
        rows: dict[int, tuple[int, list[int]]] = {}
        for at, wish in enumerate(found):
            fields = wish.fields
            settings = {key: fields[key] for key in ("top_p", "top_k", "min_p") if key in fields}
            penalties = {
                key: fields[key] for key in ("repetition_penalty", "presence_penalty") if key in fields
            }
            prompt = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": f"tell me: {wish.name}"}],
                tools=fields.get("tools"),
                add_generation_prompt=True,
            )
            for _ in range(fields.get("n", 1)):
                (uid,) = generator.insert(
                    [list(prompt)],
                    samplers=[make_sampler(fields.get("temperature", 0.0), **settings)],
                    logits_processors=[make_logits_processors(**penalties)],
                )
                rows[uid] = (at, [])
        live = len(rows)
        while live:
            for answer in generator.next()[1]:
                if answer.finish_reason != "stop":
                    rows[answer.uid][1].append(answer.token)
                live -= answer.finish_reason is not None
        generator.close()
        texts: list[list[str]] = [[] for _ in found]
        for at, tokens in rows.values():
            texts[at].append(self._tokenizer.decode(tokens))
        return texts

    def close(self) -> None:
        """Nothing is running."""


def measure(served: Any, found: Sequence[Wish], rounds: int) -> dict[str, Any]:
    began = time.perf_counter()
    alone = [served(wish) for wish in found]
    one_by_one = time.perf_counter() - began
    seconds, together = [], alone
    for _ in range(rounds):
        began = time.perf_counter()
        together = served.all(found)
        seconds.append(time.perf_counter() - began)
    served.close()
    requests = [
        {
            "name": wish.name,
            "equals_alone": mine == other,
            "honoured": (served.knows is None or served.knows.issuperset(wish.fields))
            and wish.honoured(mine),
        }
        for wish, mine, other in zip(found, together, alone, strict=True)
    ]
    for key in ("equals_alone", "honoured"):
        print(f"  {key}: {sum(bool(item[key]) for item in requests)} of {len(requests)}")
    print(f"  seconds: {statistics.median(seconds):.2f} at once, {one_by_one:.2f} one by one", flush=True)
    return {
        "requests": requests,
        "seconds_at_once": statistics.median(seconds),
        "seconds_one_by_one": one_by_one,
    }


def write_adapter(folder: Path, network: Any, seed: int) -> str:
    """A random LoRA of rank 8 on the attention's queries and values."""
    mx.random.seed(seed)
    weights = {}
    for path, module in network.named_modules():
        if path.endswith(("q_proj", "v_proj")):
            outputs, inputs = module.weight.shape
            weights[f"{path}.lora_a"] = mx.random.normal((inputs, 8)) * 0.2
            weights[f"{path}.lora_b"] = mx.random.normal((8, outputs)) * 0.2
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    parameters = {"rank": 8, "scale": 2.0, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    folder.joinpath("adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-2M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_checkpoint(Path(scratch) / "model", SHAPES[options.shape], "float32")
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
        network = load(str(folder))[0]
        adapters = [write_adapter(Path(scratch) / name, network, at) for at, name in enumerate("ab")]
        found = wishes(adapters)
        results = {}
        for name, start in (
            ("ours", lambda: Ours(str(folder), adapters)),
            ("mlx_lm.server", lambda: Server(str(folder))),
            ("BatchGenerator", lambda: Generator(str(folder))),
        ):
            print(name)
            results[name] = measure(start(), found, options.rounds)
    if options.output:
        options.output.write_text(json.dumps({"shape": options.shape, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
