"""The examples that an adapter is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlxengine.errors import InvalidParameterError


def dataset(file: Path, tokenizer: Any, least: int, *, mask_prompt: bool) -> Any:
    """mlx-lm's dataset of a file with one example a line.

    Raises:
        InvalidParameterError: it cannot be read or used, or has fewer examples than ``least``.
    """
    from mlx_lm.tuner.datasets import CacheDataset, create_dataset

    examples = []
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameterError(
            f"The examples cannot be read: {error}.", hint="Give a folder with train.jsonl."
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                examples.append(json.loads(line))
            except ValueError as error:
                raise InvalidParameterError(f"{file}, line {number} is not JSON: {error}.") from error
    if len(examples) < least:
        raise InvalidParameterError(f"{file} has {len(examples)} examples, {least} are needed at least.")
    try:
        found = CacheDataset(create_dataset(examples, tokenizer, SimpleNamespace(mask_prompt=mask_prompt)))
        for at in range(len(found)):
            found[at]
    except Exception as error:  # templates and examples are of any kind
        raise InvalidParameterError(
            f"The examples in {file} cannot be used: {type(error).__name__}: {error}.",
            hint='Write {"messages": …}, {"prompt": …, "completion": …} or {"text": …} on each line.',
        ) from error
    return found


__all__ = ["dataset"]
