"""Prompt caches on disk: they survive a restart, and nothing that was damaged is used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlxengine import TextRequest
from mlxengine.toolkit.packed import PackedKVCache
from mlxengine.toolkit.prefix import Entry
from mlxengine.toolkit.shelf import DiskShelf

from .subjects import KINDS, PICTURE, Subject, drawn

from vlm_harness import asking  # isort: skip (found where `subjects` says)
from vlm_pictures import Thing, draw  # isort: skip

pytestmark = [pytest.mark.feature("llm.prompt_cache_folder"), pytest.mark.feature("vlm.prompt_cache_folder")]

LONG = "the same instructions for everybody, " * 12


def ask(subject: Subject, model: Any, text: str = LONG, **flags: Any) -> tuple[tuple[int, ...], int]:
    """The answer's tokens, and how many of the prompt's were not computed again."""
    request = subject.kind.conversation(text, max_tokens=12, ignore_eos=True, temperature=0.0)
    (events,) = subject.run(model, request, **flags)
    return drawn(events), events[-1].usage.cached_tokens


def load(subject: Subject, shelf: Path, folder: Path | None = None, **flags: Any) -> Any:
    return subject.load(folder, flags={"prompt_cache_folder": str(shelf), **flags})


def test_a_prefix_on_disk_survives_a_restart(subject: Subject, tmp_path: Path) -> None:
    cold, none = ask(subject, load(subject, tmp_path))
    warm, cached = ask(subject, load(subject, tmp_path))
    assert (warm, none) == (cold, 0)
    assert cached > len(LONG) // 8
    (left,) = tmp_path.rglob("*.safetensors")  # what a prompt left is not written apart from its answer's
    assert left.with_suffix(".json").exists()


@pytest.mark.feature("llm.kv_bits")
@pytest.mark.feature("vlm.kv_bits")
def test_packed_caches_are_kept_apart_from_others(subject: Subject, tmp_path: Path) -> None:
    folder = subject.kind.wide(tmp_path)
    found = {}
    for bits in (None, 8, 4):
        cold, none = ask(subject, load(subject, tmp_path / "shelf", folder, kv_bits=bits))
        found[bits] = ask(subject, load(subject, tmp_path / "shelf", folder, kv_bits=bits))
        assert (found[bits][0], none) == (cold, 0), bits
        assert found[bits][1] > 0
    assert len(list((tmp_path / "shelf").iterdir())) == 3


def test_another_model_does_not_see_it(subject: Subject, tmp_path: Path) -> None:
    ask(subject, load(subject, tmp_path / "shelf"))
    other = shutil.copytree(subject.folder, tmp_path / "other")
    assert ask(subject, load(subject, tmp_path / "shelf", other))[1] == 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "notes", "others"])
def test_a_damaged_prefix_on_disk_is_not_used_and_made_again(
    subject: Subject, tmp_path: Path, damage: str
) -> None:
    cold, _ = ask(subject, load(subject, tmp_path))
    (file,) = tmp_path.rglob("*.safetensors")
    content, notes = bytearray(file.read_bytes()), file.with_suffix(".json")
    if damage == "flip":
        content[-1000] ^= 4
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1000])
    elif damage == "delete":
        file.unlink()
    elif damage == "others":
        notes.write_text(notes.read_text().replace('"others": {', '"others": {"9.0": 1, '))
    else:
        notes.write_text("{}")
    assert ask(subject, load(subject, tmp_path)) == (cold, 0)
    again, cached = ask(subject, load(subject, tmp_path))
    assert again == cold
    assert cached > 0


@pytest.mark.parametrize("subject", KINDS[1:], indirect=True, ids=["vlm"])
def test_after_a_restart_another_picture_never_gets_the_firsts_state(
    subject: Subject, tmp_path: Path
) -> None:
    def asked(picture: Any) -> TextRequest:
        return asking(LONG, picture, max_tokens=8, ignore_eos=True)

    pictures = [PICTURE, draw([Thing("square", "green")])]
    wanted = [drawn(subject.run(subject.load(), asked(picture))[0]) for picture in pictures]
    assert wanted[0] != wanted[1]
    subject.run(load(subject, tmp_path), asked(PICTURE))
    model = load(subject, tmp_path)
    found = [subject.run(model, asked(picture))[0] for picture in reversed(pictures)]
    assert [drawn(events) for events in reversed(found)] == wanted
    assert [events[-1].usage.cached_tokens > 0 for events in found] == [False, True]


def test_the_same_tokens_about_another_picture_are_another_entry(tmp_path: Path) -> None:
    shelf = DiskShelf(tmp_path, "a model", lambda: [PackedKVCache(32, 8)])
    for at, media in enumerate(("one", "other")):
        layer = PackedKVCache(32, 8)
        layer.update_and_fetch(*[mx.full((1, 2, 128, 32), float(at))] * 2)
        shelf.save(Entry(tokens=np.arange(128), layers=[layer], nbytes=0, media=(media,)))
    found = {}
    for entry in shelf.entries():
        (layer,) = shelf.load(entry) or ()
        keys = mx.dequantize(*layer.state[:3], group_size=32, bits=8)
        found[entry.media] = (layer.offset, keys.min().item(), keys.max().item())
    assert found == {("one",): (128, 0.0, 0.0), ("other",): (128, 1.0, 1.0)}
