"""Every architecture of mlx-lm with tiny random weights, through the plugin and through the library alone.

``python plugins/mlxengine-llm/tests/architectures.py --write`` runs them all and writes the table in
``docs/reference/architectures.md``; names as arguments run only those.
"""

# ruff: noqa: E402 (a BLAS is loaded before mlx)

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

import mlx.core as mx
from attrs import asdict, evolve, fields, frozen

sys.path.insert(0, str(Path(__file__).parent))

from llm_harness import Plugin, raw, text_of, tokens_of, write_tokenizer
from mlx_lm.models.cache import make_prompt_cache
from mlxengine import Grammar
from mlxengine.errors import MLXEngineError
from mlxengine_llm._trial import Trial

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "architectures.md"
CONFIGS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("architectures.json").read_text("utf-8")
)
TOKENS = 12
PROMPTS = [
    "ab",
    "a longer one",
    "the third of them takes some more tokens than those before it did",
    "number four: " + "what was said so far, and what was not; " * 3,
]
SHARED = "these words come first in each of the prompts that follow, and they are many. " * 2
SCHEMA = Grammar.json(
    {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "on": {"type": "boolean"}},
        "required": ["kind", "on"],
        "additionalProperties": False,
    }
)


@frozen(kw_only=True)
class Row:
    """What holds for an architecture: ``yes``, ``no``, or a word that says what else.

    Args:
        name: of the configuration.
        alone: greedy tokens are those of mlx-lm's own `generate_step`.
        together: so are those of four requests of different lengths that come at once.
        staggered: and of four that come one after the other.
        prefix: a prompt that begins like an earlier one is answered as if it were the first.
        schema: an answer under a JSON schema fits it.
        seeds: a seed gives the same tokens again, alone and beside others.
        memory: the cache takes what is reserved for a request, within 15 %.
        served: how prompts are read and rows decoded.
    """

    name: str
    alone: str = "-"
    together: str = "-"
    staggered: str = "-"
    prefix: str = "-"
    schema: str = "-"
    seeds: str = "-"
    memory: str = "-"
    served: str = "-"


def config_of(name: str) -> dict[str, Any]:
    """The whole configuration of one of them."""
    common = {"model_type": name, "architectures": ["TinyForCausalLM"], "eos_token_id": 2, "bos_token_id": 1}
    return {**common, **CONFIGS[name]}


def write_model(folder: Path, name: str) -> Path:
    """Random weights of an architecture, none of them so that a layer does nothing."""
    from mlx.utils import tree_map
    from mlx_lm.utils import _get_classes

    config = config_of(name)
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    folder.joinpath("config.json").write_text(json.dumps(config))
    network_class, args_class = _get_classes(config)
    mx.random.seed(7)
    network = network_class(args_class.from_dict(config))

    def stirred(value: mx.array) -> mx.array:
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        return value + 0.05 * mx.random.normal(value.shape).astype(value.dtype)

    network.update(tree_map(stirred, network.parameters()))
    network.save_weights(str(folder / "model.safetensors"))
    return folder


def reference(model: Any, prompt: str) -> list[int]:
    """mlx-lm's own greedy tokens."""
    from mlx_lm.generate import generate_step

    found = []
    tokens = mx.array(model.tokenizer.encode(prompt))
    for token, _ in generate_step(tokens, model.network, max_tokens=TOKENS):
        found.append(int(token))
    return found


def examine(name: str, folder: Path) -> Row:
    """Everything about one architecture; what is wrong is a word in the row, never an exception."""
    row = Row(name=name)
    plugin = Plugin()
    try:
        try:
            model = plugin.load(write_model(folder / name, name))
        except MLXEngineError as error:
            said = str(error).replace(str(folder / name), name)
            return evolve(row, alone=type(error).__name__, served=said.split(". ")[0])
        with plugin.backend.stream():
            wanted = [reference(model, prompt) for prompt in PROMPTS]
        checks: dict[str, Callable[[], str]] = {
            "alone": lambda: _alone(plugin, model, wanted),
            "together": lambda: _together(plugin, model, wanted),
            "staggered": lambda: _staggered(plugin, model, wanted),
            "prefix": lambda: _prefix(plugin, model),
            "schema": lambda: _schema(plugin, model),
            "seeds": lambda: _seeds(plugin, model),
            "memory": lambda: _memory(plugin, model),
            "served": lambda: _served(plugin, model),
        }
        return evolve(row, **{key: _word(check) for key, check in checks.items()})
    except Exception as error:
        return evolve(row, alone=_brief(error))
    finally:
        plugin.close()


def _word(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        return _brief(error)


def _brief(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
    return text[:90]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _ask(prompt: str, **params: Any) -> Any:
    return raw(prompt, **{"max_tokens": TOKENS, "ignore_eos": True, "temperature": 0.0, **params})


def _start(plugin: Plugin, model: Any, prompt: str, **params: Any) -> Any:
    return plugin.start(model, _ask(prompt, **params), prompt_cache=False)


def _alone(plugin: Plugin, model: Any, wanted: Sequence[list[int]]) -> str:
    found = [plugin.run([_start(plugin, model, prompt)])[0] for prompt in PROMPTS]
    return _same(found, wanted)


def _together(plugin: Plugin, model: Any, wanted: Sequence[list[int]]) -> str:
    return _same(plugin.run([_start(plugin, model, prompt) for prompt in PROMPTS]), wanted)


def _staggered(plugin: Plugin, model: Any, wanted: Sequence[list[int]]) -> str:
    later = {
        2 + 3 * at: [lambda prompt=prompt: _start(plugin, model, prompt)] for at, prompt in enumerate(PROMPTS)
    }
    return _same(plugin.run([], later=later), wanted)


def _same(found: Sequence[Any], wanted: Sequence[list[int]]) -> str:
    for events in found:
        text_of(events)  # raises what a request ended with
    return _yes([tokens_of(events) for events in found] == list(wanted))


def _prefix(plugin: Plugin, model: Any) -> str:
    prompts = [SHARED + end for end in ("one", "two and more", "three")]
    cold = [tokens_of(plugin.run([_start(plugin, model, prompt)])[0]) for prompt in prompts]
    warm, reused = [], 0
    for prompt in (*prompts, prompts[-1]):
        (events,) = plugin.run([plugin.start(model, _ask(prompt))])
        text_of(events)
        warm.append(tokens_of(events))
        reused += events[-1].usage.cached_tokens or 0
    if warm != [*cold, cold[-1]]:
        return "no"
    return "yes" if reused else "yes (nothing is reused)"


def _schema(plugin: Plugin, model: Any) -> str:
    asked = [
        _start(plugin, model, prompt, grammar=SCHEMA, max_tokens=80, ignore_eos=False)
        for prompt in PROMPTS[:2]
    ]
    for events in plugin.run(asked):
        found = json.loads(text_of(events))
        if set(found) != {"kind", "on"} or found["kind"] not in ("a", "b"):
            return "no"
    return "yes"


def _seeds(plugin: Plugin, model: Any) -> str:
    def drawn(*seeds: int) -> list[list[int]]:
        asked = [_start(plugin, model, PROMPTS[1], temperature=1.0, seed=seed) for seed in seeds]
        return [tokens_of(events) for events in plugin.run(asked)]

    first, other = drawn(5)[0], drawn(6)[0]
    return _yes(first != other and drawn(5, 6) == [first, other])


def _memory(plugin: Plugin, model: Any) -> str:
    length = 768
    with plugin.backend.stream():
        layers = make_prompt_cache(model.network)
        for first, last in ((0, 256), (256, 512), (512, length - 1), (length - 1, length)):
            tokens = [5 + at % 200 for at in range(first, last)]
            model.network(mx.array([tokens]), cache=layers)
            mx.eval([layer.state for layer in layers])
        took = sum(layer.nbytes for layer in layers)
    ratio = model.batch.account.cost_of(length) / took if took else 0.0
    return "yes" if abs(ratio - 1) <= 0.15 else f"{ratio:.2f} ×"


def _served(plugin: Plugin, model: Any) -> str:
    """How, and whether the same is found out about weights of 16 bits."""
    found = str(model.trial)
    if model.trial.company.together:
        with plugin.backend.stream():
            model.network.set_dtype(mx.bfloat16)
            half = Trial(model.network, model.adapters, partial(make_prompt_cache, model.network))
            half.hold()
        found += "" if str(half) == found else f" (in 16 bits: {half})"
    return found


HEADINGS = {
    "name": "architecture",
    "alone": "alone",
    "together": "four at once",
    "staggered": "four staggered",
    "prefix": "shared prefix",
    "schema": "JSON schema",
    "seeds": "seeds",
    "memory": "memory",
    "served": "served",
}


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown."""
    names = [item.name for item in fields(Row)]
    lines = [" | ".join(HEADINGS[name] for name in names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(asdict(row)[name]) for name in names) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def written() -> dict[str, Row]:
    """The rows of the page."""
    names = [item.name for item in fields(Row)]
    found = {}
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == len(names) and cells[0] in CONFIGS:
            found[cells[0]] = Row(**dict(zip(names, cells, strict=True)))
    return found


def write(rows: Iterable[Row]) -> None:
    """Put the rows in the place of the page's table."""
    text = PAGE.read_text("utf-8")
    parts = re.split(r"(?m)^\| architecture \|.*(?:\n\|.*)*\n", text)
    assert len(parts) == 2, "the page has one table"
    PAGE.write_text(table(rows).join(parts), "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these; all without a name")
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    options = parser.parse_args(arguments)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or CONFIGS:
            rows[name] = examine(name, Path(folder))
            print(" | ".join(map(str, asdict(rows[name]).values())), flush=True)
            for file in Path(folder, name).glob("*"):
                file.unlink()
            mx.clear_cache()
    if options.write:
        rows = {**written(), **rows}
        write(rows[name] for name in CONFIGS)


if __name__ == "__main__":
    main()
