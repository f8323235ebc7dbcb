"""Finding and fetching models: the only package that uses huggingface_hub, imported lazily."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..configuration import FileInfo, ModelCard, ModelConfiguration, Source
from ..errors import ModelNotFoundError
from ..events import Event


def offline_by_default() -> bool:
    """Whether ``HF_HUB_OFFLINE`` asks for no network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true")


def resolve(
    configuration: ModelConfiguration,
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    token: str | None = None,
    offline: bool = False,
) -> ModelCard:
    """What can be found out about a local folder."""
    del endpoint, cache_dir, token, offline
    path = configuration.ref.path
    if path is None or not path.is_dir():
        raise ModelNotFoundError(f"There is no folder {configuration.id}.")
    files = sorted(item for item in path.rglob("*") if item.is_file())
    names = [item.relative_to(path).as_posix() for item in files]
    documents = {
        name: json.loads(item.read_text())
        for name, item in zip(names, files, strict=True)
        if item.suffix == ".json" and item.stat().st_size <= 1 << 20
    }
    infos = tuple(
        FileInfo(path=name, size=item.stat().st_size) for name, item in zip(names, files, strict=True)
    )
    return ModelCard(
        ref=configuration.ref,
        configuration=configuration,
        source=Source.FOLDER,
        commit=hashlib.sha1(repr(infos).encode()).hexdigest(),
        path=path,
        files=infos,
        documents=documents,
    )


def fetch(
    card: ModelCard,
    patterns: Sequence[str],
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    token: str | None = None,
    offline: bool = False,
    report: Callable[[Event], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    verify: str | None = None,
) -> Path:
    """The folder that holds the model's files."""
    del patterns, endpoint, cache_dir, token, offline, report, cancelled, verify
    assert card.path is not None
    return card.path
