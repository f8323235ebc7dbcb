"""Files with a field missing or of another type: the error is typed and names the field or the file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine.errors import LoadError
from mlxengine.toolkit.loading import building
from mlxengine_vlm import plugin as hooks
from mlxengine_vlm._network import build
from random_checkpoint import write
from test_checkpoints import CHECKPOINTS
from vlm_checkpoints import REFERENCES, lay_out
from vlm_harness import Plugin, card_of

FAMILIES = REFERENCES | CHECKPOINTS
FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
VALUES: tuple[Any, ...] = (None, "x", "64", [], [1, 2], {}, {"a": 1}, -1, 0, 1, 7, 3.7, True, 10**9)


def places(document: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in document.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def damaged(document: dict[str, Any], dice: random.Random) -> tuple[dict[str, Any], str]:
    """A copy with one field gone or of another value, and which."""
    copy = json.loads(json.dumps(document))
    *above, name = dice.choice([*places(copy)])
    part = copy
    for key in above:
        part = part[key]
    if dice.random() < 0.35:
        del part[name]
    else:
        part[name] = dice.choice(VALUES)
    return copy, name


def check(error: LoadError, file: str, field: str) -> None:
    assert file in str(error) or field in str(error)
    assert "download" not in str(error).lower()
    assert error.hint


def damages(*often: int) -> list[Any]:
    """How many damages are tried: a few each day, many in the long run."""
    few, many = often
    return [few, pytest.param(many, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", damages(5, 80))
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_damaged_configuration_is_refused_by_name(kind: str, count: int, tmp_path: Path) -> None:
    stored = FAMILIES[kind]
    folder = write(tmp_path / kind, stored["config"], stored["shapes"])
    for number in range(count):
        config, field = damaged(stored["config"], random.Random(f"{kind} {number}"))
        (folder / "config.json").write_text(json.dumps(config))
        card = card_of(folder)
        claim = hooks.claim_model(card)
        if claim is None:
            continue  # nothing says any more that it sees
        try:
            if claim.problem is not None:
                raise claim.problem
            with building(card.id):
                build(folder, card.config)
        except LoadError as error:
            check(error, "config.json", field)


@pytest.mark.parametrize("count", damages(1, 6))
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_of_any_kind_is_refused_by_name(
    file: str, count: int, plugin: Plugin, tmp_path: Path
) -> None:
    for kind in sorted(REFERENCES) if count > 1 else ("qwen3_vl", "smolvlm"):
        whole = lay_out(kind, tmp_path / kind)
        for number in range(count):
            folder = Path(shutil.copytree(whole, tmp_path / f"{kind}-{number}"))
            dice = random.Random(f"{kind} {file} {number}")
            document, field = damaged(json.loads((folder / file).read_text()), dice)
            (folder / file).write_text(json.dumps(document))
            if hooks.claim_model(card_of(folder)) is None:
                continue
            try:
                plugin.load(folder)
            except LoadError as error:
                check(error, file, field)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"text_config": {"num_hidden_layers": None}}, "config.json does not describe"),
        (
            "generation_config.json",
            {"eos_token_id": "end"},
            "eos_token_id in generation_config.json is 'end'",
        ),
        ("tokenizer.json", {"version": 1}, "cannot be read (tokenizer.json"),
        ("tokenizer_config.json", {"eos_token": 7}, "cannot be read (tokenizer_config.json"),
        ("preprocessor_config.json", {"image_processor_type": 3}, "cannot be read (preprocessor_config.json"),
    ],
)
def test_the_file_that_is_at_fault_is_named(
    file: str, change: dict[str, Any], said: str, plugin: Plugin, tmp_path: Path
) -> None:
    folder = lay_out("smolvlm", tmp_path / "smolvlm")
    document = json.loads((folder / file).read_text())
    for key, value in change.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(document))
    with pytest.raises(LoadError) as caught:
        plugin.load(folder)
    assert said in str(caught.value)
