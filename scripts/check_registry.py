"""Compare every entry of the model registry with the hub.

    python scripts/check_registry.py [--endpoint URL] [--kind KIND] [--json FILE]

For each entry the repository's description is fetched, never its weights: does it exist, and do size,
quantization, context length and license agree with what it says? The exit code is 1 if an entry is wrong.
What was confirmed is printed as the entry's ``provenance``, to be put into the plugin's ``models.py``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from mlxengine import InferenceEngine, MLXEngineError, ModelCard, ModelConfiguration

CLOSE = 0.12  # "1.7B" is a rounded figure


def parameters(card: ModelCard) -> float | None:
    """Number of parameters by the tensors' shapes; packed words count as the weights that they hold."""
    bits = (card.quantization or {}).get("bits")
    packed = {item.name.removesuffix(".scales") for item in card.tensors if item.name.endswith(".scales")}
    total = 0
    for item in card.tensors:
        stem, _, leaf = item.name.rpartition(".")
        if stem in packed and leaf in ("scales", "biases"):
            continue
        words = prod(item.shape)
        total += words * 32 // int(bits) if stem in packed and leaf == "weight" and bits else words
    return float(total) or None


def facts(card: ModelCard) -> dict[str, Any]:
    """What the repository says about itself, by the names of an entry's fields."""
    text = card.config.get("text_config") or card.config
    bits = (card.quantization or {}).get("bits")
    return {
        "size": parameters(card),
        "quantization": f"{bits}bit" if bits else "none",
        "context_length": text.get("max_position_embeddings"),
        "license": card.license,
    }


def compare(entry: ModelConfiguration, card: ModelCard) -> Iterator[tuple[str, object, object, bool]]:
    """(field, the entry's value, the hub's, whether they agree) for each fact that both know."""
    for name, found in facts(card).items():
        stated = getattr(entry, name)
        if stated is None or found is None:
            continue
        if name == "size":
            agrees = abs(found / (entry.parameters or 1) - 1) <= CLOSE
            yield name, stated, f"{found / 1e6:.0f}M", agrees
        else:
            yield name, stated, found, str(stated).lower() == str(found).lower()


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
            confirmed = sorted(row[0] for row in rows if row[3])
            results[entry.id] = {"checked": today, "fields": confirmed, "wrong": [row[:3] for row in wrong]}
            print(f"{'WRONG ' if wrong else 'ok    '} {entry.id}")
            for name, stated, found, _ in wrong:
                print(f"         {name}: the registry says {stated}, the hub {found}")
            fields = ", ".join(f'"{name}"' for name in confirmed)
            print(f'         provenance=Provenance(checked="{today}", source="hub", fields=({fields},))')
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    bad = sum("error" in item or bool(item["wrong"]) for item in results.values())
    print(f"{len(results)} entries, {bad} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
