"""A back end in pure Python for MLXEngine's language models: it says what it is told."""

import json
from pathlib import Path

__all__ = ["write_model"]


def write_model(folder: Path, *, context_length: int = 4096) -> Path:
    """Write a model that says what it is told; its folder.

    Args:
        folder: where; made if it is not there.
        context_length: words of conversation and answer together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "echo", "context_length": context_length}
    (folder / "config.json").write_text(json.dumps(config) + "\n")
    return folder
