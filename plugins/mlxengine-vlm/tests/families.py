"""Families of mlx-vlm with tiny random weights, through the plugin and through the library alone.

``python plugins/mlxengine-vlm/tests/families.py --write`` runs them all and writes the table in
``docs/reference/vision-families.md``; names as arguments run only those.
"""

# ruff: noqa: E402 (a BLAS is loaded before mlx)

from __future__ import annotations

import argparse
import functools
import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

import mlx.core as mx
import numpy as np
from attrs import asdict, evolve, fields, frozen

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "parity")]

from family_configs import CHECKPOINTS, FAMILIES, REFERENCES, Family
from mlxengine import GenerateParams, Message, RunContext, TextPart, TextRequest
from mlxengine.errors import FeatureUnavailableError, UnsupportedInputError
from mlxengine_vlm._checkpoint import fitted, normalise
from mlxengine_vlm._claim import FAULTS
from mlxengine_vlm._generate import _answer
from mlxengine_vlm._language import KV, packing
from mlxengine_vlm._model import VisionModel
from mlxengine_vlm._sight import Prompt
from vlm_checkpoints import write_tokenizer
from vlm_harness import Plugin, card_of, text_of

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "vision-families.md"
MENDED = ("gemma3", "mllama")
"""Where the plugin answers as transformers does and mlx-vlm does not, as the parity tests hold."""

TOKENS = 10
SHORT, LONG = [44, 9], [60 + at % 40 for at in range(21)]


@frozen(kw_only=True)
class Row:
    """What holds for a family: ``yes``, ``no``, or a word that says what else.

    Args:
        name: mlx-vlm's.
        alone: greedy tokens of prompts with a picture and without are those of mlx-vlm's `generate_step`.
        together: so are those of four requests of different lengths that come at once.
        staggered: and of four that come one after the other.
        pictures: a prompt with two pictures is answered as mlx-vlm does, and the second one matters.
        again: a second question about a picture is answered as if it were the first.
        packed: with a key-value cache of 8 bits, and heads wide enough for it, what comes together is
            answered as alone; or ``refused`` by the plugin's trial.
        transformers: the logits are those of transformers on the same weights; or what is known to be wrong.
        served: how prompts are read and rows decoded.
    """

    name: str
    alone: str = "-"
    together: str = "-"
    staggered: str = "-"
    pictures: str = "-"
    again: str = "-"
    packed: str = "-"
    transformers: str = "-"
    served: str = "-"


def widened(config: dict[str, Any]) -> dict[str, Any]:
    """The same with half as many heads of twice the width: mlx packs 32 numbers together."""
    found = dict(config)
    for key in ("num_attention_heads", "num_key_value_heads", "n_heads", "n_kv_heads"):
        if found.get(key, 0) > 1:
            found[key] //= 2
    for key in ("head_dim", "global_head_dim"):
        if key in found:
            found[key] = 32
    if "kv_lora_rank" in found:  # of keys some numbers turn with the position
        found |= {"qk_nope_head_dim": 32 - found["qk_rope_head_dim"], "v_head_dim": 32}
    for key in ("rope_scaling", "rope_parameters"):
        if "mrope_section" in (found.get(key) or {}):
            sections = [2 * size for size in found[key]["mrope_section"]]
            found[key] = {**found[key], "mrope_section": sections}
    for key in ("text_config", "llm_config"):
        if key in found:
            found[key] = widened(found[key])
    return found


def build(name: str, config: dict[str, Any] | None = None) -> Any:
    """Random weights of a family, none of them so that a layer does nothing."""
    from mlx.utils import tree_map_with_path
    from mlx_vlm import utils

    config = normalise(config or FAMILIES[name].config)
    module, _ = utils.get_model_and_args(config)
    config = fitted(module, config)
    settings = module.ModelConfig.from_dict(config)
    parts = ["text", "vision", "perceiver", "projector", "audio"]
    settings = utils.update_module_configs(settings, module, config, parts)
    mx.random.seed(7)
    network = module.Model(settings)

    def stirred(_path: str, value: mx.array) -> mx.array:
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        return value + 0.05 * mx.random.normal(value.shape).astype(value.dtype)

    network.update(tree_map_with_path(stirred, network.parameters()))
    network.eval()
    mx.eval(network.parameters())
    return network


def model_of(name: str, folder: Path, bits: int | None = None) -> VisionModel:
    """The family as the plugin serves it, without a processor.

    Raises:
        FeatureUnavailableError: it cannot be served from caches of so many bits.
    """
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[name]
    config = family.config if bits is None else widened(family.config)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, {7: "<image>"}, "<image>")
    network, media_tokens, kv = build(name, config), frozenset({family.placeholder}), KV()
    if bits is not None:
        trial = packing(network, name, media_tokens)
        kv = KV(bits, trial.group_size(bits))
        list(trial.check(bits, kv.group))
    return VisionModel(
        card=card_of(folder),
        kind=name,
        network=network,
        kv=kv,
        processor=PreTrainedTokenizerFast.from_pretrained(str(folder)),
        config=normalise(config),
        context=2048,
        defaults={},
        stop_ids=frozenset({2}),
        media_tokens=media_tokens,
        image_token=family.placeholder,
        image_tag="<image>",
        video_tag=None,
        audio_tag=None,
        takes=frozenset({"image"}),
        template_takes_parts=True,
        cache_bytes=2**24,
        max_rows=8,
    )


def given(arrays: dict[str, Any]) -> dict[str, Any]:
    return {key: mx.array(value) for key, value in arrays.items()}


def reference(network: Any, ids: Sequence[int], arrays: dict[str, Any]) -> list[int]:
    """mlx-vlm's own greedy tokens."""
    from mlx_vlm.generate import generate_step

    language = getattr(network, "language_model", network)
    for kept in ("_position_ids", "_rope_deltas"):  # of the prompt before
        if hasattr(language, kept):
            setattr(language, kept, None)
    media = given(arrays)
    pixels = media.pop("pixel_values", None)
    tokens = mx.array([list(ids)])
    steps = generate_step(
        tokens,
        network,
        pixels,
        mx.ones(tokens.shape, dtype=mx.int32),
        max_tokens=TOKENS,
        temperature=0.0,
        prefill_step_size=None,
        **media,
    )
    return [int(token.item() if isinstance(token, mx.array) else token) for token, _ in steps]


class Served:
    """One family as the plugin serves it, and mlx-vlm's answers beside it."""

    def __init__(self, name: str, folder: Path, bits: int | None = None) -> None:
        self.family: Family = FAMILIES[name]
        self.plugin = Plugin()
        with self.plugin.backend.stream():
            self.model = model_of(name, folder, bits)
        prompt = self.family.prompt
        self.prompts = [prompt(SHORT), prompt(LONG, 1), prompt(LONG), prompt(SHORT, 2)]

    def wanted(self, prompts: Sequence[Any]) -> list[list[int]]:
        with self.plugin.backend.stream():
            return [reference(self.model.network, *prompt) for prompt in prompts]

    @functools.cached_property
    def cold(self) -> list[list[int]]:
        """The answers to the four prompts, one by one."""
        return self.solo(self.prompts)

    def start(self, prompt: tuple[list[int], dict[str, Any]], *, cached: bool = False) -> Any:
        ids, arrays = prompt
        media = (str(hash(arrays["pixel_values"].tobytes())),) if arrays else ()
        request = TextRequest(
            messages=(Message.user([TextPart("?")]),),
            params=GenerateParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.0),
        )
        context = RunContext(features=self.plugin.features(prompt_cache=cached), budget_ms=100.0)
        with self.plugin.backend.stream():
            return _answer(
                self.model, request, context, Prompt(ids=list(ids), given=given(arrays), media=media)
            )

    def said(self, *streams: Any, **options: Any) -> list[list[int]]:
        found = []
        for events in self.plugin.run(streams, **options):
            text_of(events)  # raises what a request ended with
            found.append([t for event in events for t in getattr(event, "token_ids", None) or ()])
        return found

    def solo(self, prompts: Sequence[Any]) -> list[list[int]]:
        return [self.said(self.start(prompt))[0] for prompt in prompts]

    def same(self, found: list[list[int]], wanted: list[list[int]]) -> str:
        """Whether answers are mlx-vlm's."""
        if found != wanted and self.model.kind in MENDED:
            return "not as mlx-vlm, but as transformers"
        return _yes(found == wanted)

    def close(self) -> None:
        with self.plugin.backend.stream():
            self.model.close()
        self.plugin.close()


def examine(name: str, folder: Path) -> Row:
    """Everything about one family; what is wrong is a word in the row, never an exception."""
    row = Row(name=name, transformers=FAULTS.get(name) or _compared(name))
    try:
        served = Served(name, folder / name)
    except Exception as error:
        return evolve(row, alone=_brief(error))
    try:
        checks: dict[str, Callable[[], str]] = {
            "alone": lambda: _alone(served),
            "together": lambda: _together(served),
            "staggered": lambda: _staggered(served),
            "pictures": lambda: _pictures(served),
            "again": lambda: _again(served),
            "packed": lambda: _packed(name, folder / f"{name}-packed"),
            "served": lambda: str(served.model.trial),
        }
        return evolve(row, **{key: _word(check) for key, check in checks.items()})
    finally:
        served.close()


def _compared(name: str) -> str:
    return "yes" if name in REFERENCES else "text and features" if name in CHECKPOINTS else "-"


def _word(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            logging.exception("")
        return _brief(error)


def _brief(error: Exception) -> str:
    if isinstance(error, UnsupportedInputError | FeatureUnavailableError):
        return "refused"
    text = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
    return text[:90]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _alone(served: Served) -> str:
    return served.same(served.cold, served.wanted(served.prompts))


def _together(served: Served) -> str:
    return _yes(served.said(*map(served.start, served.prompts)) == served.cold)


def _staggered(served: Served) -> str:
    later = {
        2 + 3 * at: [lambda prompt=prompt: served.start(prompt)] for at, prompt in enumerate(served.prompts)
    }
    return _yes(served.said(later=later) == served.cold)


def _pictures(served: Served) -> str:
    prompts = [served.family.prompt(SHORT, 1, second) for second in (2, 3, 4)]
    found = served.solo(prompts)
    if not _matters(served, *prompts[:2]):
        return "no: the second one changes nothing"
    return served.same(found, served.wanted(prompts))


def _matters(served: Served, one: Any, other: Any) -> bool:
    """Whether the language model is given something else for other pictures."""
    shown = []
    with served.plugin.backend.stream():
        for ids, arrays in (one, other):
            inputs = served.model.sight(Prompt(ids=ids, given=given(arrays)), remember=False)().inputs
            names = ("inputs_embeds", "cross_attention_states")
            shown.append([np.array(inputs[name]) for name in names if name in inputs])
    return any(np.abs(a - b).max() > 1e-3 for a, b in zip(*shown, strict=True))


def _again(served: Served) -> str:
    prompts = [served.family.prompt(text, 1) for text in ([*LONG, 33], [*LONG, 45, 9])]
    cold = served.solo(prompts)
    warm = [served.said(served.start(prompt, cached=True))[0] for prompt in (*prompts, prompts[0])]
    return _yes(warm == [*cold, cold[0]])


def _packed(name: str, folder: Path) -> str:
    served = Served(name, folder, bits=8)
    try:
        return _together(served)
    finally:
        served.close()


HEADINGS = {
    "name": "family",
    "alone": "alone",
    "together": "four at once",
    "staggered": "four staggered",
    "pictures": "two pictures",
    "again": "second question",
    "packed": "8-bit cache",
    "transformers": "transformers",
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
        if line.startswith("|") and len(cells) == len(names) and cells[0] in FAMILIES:
            found[cells[0]] = Row(**dict(zip(names, cells, strict=True)))
    return found


def write(rows: Iterable[Row]) -> None:
    """Put the rows in the place of the page's table."""
    parts = re.split(r"(?m)^\| family \|.*(?:\n\|.*)*\n", PAGE.read_text("utf-8"))
    assert len(parts) == 2, "the page has one table"
    PAGE.write_text(table(rows).join(parts), "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these; all without a name")
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    parser.add_argument("--verbose", action="store_true", help="show where errors come from")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.ERROR)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or FAMILIES:
            rows[name] = examine(name, Path(folder))
            print(" | ".join(map(str, asdict(rows[name]).values())), flush=True)
            mx.clear_cache()
    if options.write:
        found = {**written(), **rows}
        write(found[name] for name in FAMILIES if name in found)


if __name__ == "__main__":
    main()
