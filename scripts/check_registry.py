"""Compare every entry of the model registry with the hub.

    python scripts/check_registry.py [--endpoint URL] [--kind KIND] [--json FILE]

For each entry the repository's description is fetched, never its weights: does it exist, and do size, number
of weights, their memory, quantization, context length, license, base model and what the chat template takes
agree with what it says? The exit code is 1 if an entry is wrong. What was confirmed is printed as an entry's
``provenance``, and what a plugin's ``models.json`` may name as the source ``"hub"``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from mlxengine import InferenceEngine, MLXEngineError, ModelCard, ModelConfiguration
from mlxengine.contract.configuration import TensorInfo

CLOSE = 0.12  # "1.7B" is a rounded figure
EXACT = 0.01  # position tables and the like are counted by some and not by others


def parameters(card: ModelCard) -> float | None:
    """Number of parameters by the tensors' shapes; packed words count as the weights that they hold."""
    general = card.quantization or {}
    packed = {item.name.removesuffix(".scales") for item in card.tensors if item.name.endswith(".scales")}
    unused, total = spare(card), 0
    for item in card.tensors:
        stem, _, leaf = item.name.rpartition(".")
        if (stem in packed and leaf in ("scales", "biases")) or item in unused:
            continue
        words, own = prod(item.shape), general.get(stem)
        bits = (own if isinstance(own, Mapping) else general).get("bits")
        total += words * 32 // int(bits) if stem in packed and leaf == "weight" and bits else words
    return float(total) or None


def spare(card: ModelCard) -> list[TensorInfo]:
    """An output layer that some checkpoints store although it is the embedding once more."""
    if not card.config.get("tie_word_embeddings"):
        return []
    return [item for item in card.tensors if item.name == "lm_head.weight"]


def facts(card: ModelCard) -> dict[str, Any]:
    """What the repository says about itself, by the names of an entry's fields."""
    text = card.config.get("text_config") or card.config
    bits = (card.quantization or {}).get("bits")
    kinds = {item.dtype for item in card.tensors if item.name.endswith("weight")}
    full = "fp32" if kinds == {"F32"} else "none"
    count = parameters(card)
    return {
        "size": count,
        "parameter_count": count,
        "memory_bytes": (card.weight_bytes - sum(item.nbytes for item in spare(card))) or None,
        "quantization": f"{bits}bit" if bits else full,
        "context_length": text.get("max_position_embeddings"),
        "license": card.license,
        "base_model": next(
            (tag.rpartition(":")[2] for tag in card.tags if tag.startswith("base_model:")), None
        ),
        "template_notes": template(card),
    }


def template(card: ModelCard) -> str | None:
    """The text of the repository's chat template, where one of its JSON files holds it."""
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = (card.documents.get(name) or {}).get("chat_template")
        if isinstance(found, str):
            return found
    return None


def compare(entry: ModelConfiguration, card: ModelCard) -> Iterator[tuple[str, object, object, bool]]:
    """(field, the entry's value, the hub's, whether they agree) for each fact that both know."""
    for name, found in facts(card).items():
        stated = getattr(entry, name)
        if stated is None or found is None or (name == "license" and found == "other"):
            continue  # the hub calls "other" what has a name of its own in the repository
        if name == "size":
            agrees = abs(found / (entry.parameter_count or entry.parameters or 1) - 1) <= CLOSE
            yield name, stated, f"{found / 1e6:.0f}M", agrees
        elif name in ("parameter_count", "memory_bytes"):
            yield name, stated, int(found), abs(found / stated - 1) <= (EXACT if name[0] == "p" else CLOSE)
        elif name == "context_length":  # some publishers advise less than the configuration allows
            yield name, stated, found, stated <= found
        elif name == "template_notes":
            yield from (("template_notes", *row) for row in notes(stated, found))
        else:
            yield name, stated, found, str(stated).lower() == str(found).lower()


def notes(stated: str, template: str) -> Iterator[tuple[str, str, bool]]:
    """(what the entry notes, what was looked for in the template, whether it agrees), word by word."""
    for switch in ("enable_thinking", "reasoning_effort", "thinking_budget"):
        if switch in stated:
            yield stated, switch, switch in template
    yield stated, "tools", ("tools" in stated and "no tools" not in stated) == ("tools" in template)


def main() -> int:
    """Check, print, and say whether everything agreed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--endpoint", help="another hub than HF_ENDPOINT's")
    parser.add_argument("--kind", help="only this kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    results: dict[str, Any] = {}
    with InferenceEngine(endpoint=arguments.endpoint) as engine:
        for entry in engine.registry.filter(kind=arguments.kind):
            if entry.ref.repo_id is None:
                continue
            try:
                rows = list(compare(entry, engine.resolve(entry)))
            except MLXEngineError as error:
                results[entry.id] = {"error": str(error)}
                print(f"WRONG  {entry.id}: {error}")
                continue
            wrong = [row for row in rows if not row[3]]
            confirmed = sorted({row[0] for row in rows} - {row[0] for row in wrong})
            results[entry.id] = {"checked": today, "fields": confirmed, "wrong": [row[:3] for row in wrong]}
            print(f"{'WRONG ' if wrong else 'ok    '} {entry.id}")
            for name, stated, found, _ in wrong:
                print(f"         {name}: the registry says {stated}, the hub {found}")
            fields = ", ".join(f'"{name}"' for name in confirmed)
            print(f'         provenance=Provenance(checked="{today}", source="hub", fields=({fields},))')
            print(f'         "from": {{"hub": "{" ".join(confirmed)}"}}')
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    bad = sum("error" in item or bool(item["wrong"]) for item in results.values())
    print(f"{len(results)} entries, {bad} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
