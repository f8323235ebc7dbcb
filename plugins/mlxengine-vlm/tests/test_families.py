"""Every family with tiny random weights: as the table says, positions kept apart, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import mlx.core as mx
import pytest
from families import FAMILIES, Served, examine, written
from mlxengine import Claim, Fit
from mlxengine.errors import UnsupportedInputError
from mlxengine_vlm import _prefill
from mlxengine_vlm._claim import FAULTS, claim
from vlm_harness import card_of

DAILY = ("qwen2_vl", "glm4v", "mllama", "llava_next", "mistral3")


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_is_served_as_the_table_says(name: str, tmp_path: Path) -> None:
    """The page's rows are written by ``families.py --write``; what is wrong stays in it."""
    assert examine(name, tmp_path) == written()[name]


def test_the_table_has_every_family_that_is_tried() -> None:
    assert list(written()) == list(FAMILIES)
    assert len(FAMILIES) >= 25
    assert FAULTS.keys() <= FAMILIES.keys()


def test_without_a_prompts_own_positions_the_table_would_have_another_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GLM's network notes positions by itself, those of the last prompt that it was shown."""
    monkeypatch.setattr(_prefill, "_positions", lambda *_: {})
    assert examine("glm4v", tmp_path / "noted").together == "no"
    monkeypatch.setattr(_prefill, "_positions", lambda *_: {"rope_deltas": mx.zeros((1, 1), dtype=mx.int32)})
    assert examine("glm4v", tmp_path / "zeros").alone == "no"


@pytest.mark.parametrize("name", ["llama4", "mllama", "jina_vlm"])
def test_a_family_that_has_no_batch_is_served_one_at_a_time_and_says_so(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whys = {
        "llama4": "its caches cannot be merged into a batch's",
        "mllama": "every token of an answer takes its pictures' states from outside of the caches",
        "jina_vlm": "a batch changes its tokens",
    }
    with caplog.at_level(logging.WARNING, "mlxengine.vlm.batch"):
        served = Served(name, tmp_path)
        together = served.said(*map(served.start, served.prompts))
    why = whys[name]
    assert together == served.cold
    assert [record.message for record in caplog.records] == [f"Requests are served one at a time: {why}"]
    assert served.model.missing == {"vlm.batch": why}
    assert served.model.info["batch"] == served.model.batch.max_rows == 1
    served.close()


@pytest.mark.parametrize(
    ("name", "pictures", "match"),
    [
        ("llava_next", (1,), "88 embeddings of a prompt of 60 tokens, 36 of them placeholders"),
        ("paligemma", (1, 2), "one picture in a prompt, found 2"),
    ],
)
def test_pictures_that_would_not_be_seen_are_refused_and_text_is_answered(
    name: str, pictures: tuple[int, ...], match: str, tmp_path: Path
) -> None:
    served = Served(name, tmp_path)
    shown, text = served.family.prompt([60 + at for at in range(21)], *pictures), served.family.prompt([44])
    ((error,),) = served.plugin.run([served.start(shown)])
    assert isinstance(error, UnsupportedInputError)
    assert error.hint
    with pytest.raises(UnsupportedInputError, match=match):
        raise error
    assert served.said(served.start(text)) == served.wanted([text])
    served.close()


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
def test_a_family_with_a_known_fault_is_claimed_as_partial_with_the_reason(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    Served(name, folder).close()
    found = claim(card_of(folder))
    assert isinstance(found, Claim)
    assert found.fit is (Fit.PARTIAL if name in FAULTS else Fit.NATIVE)
    assert FAULTS.get(name, "mlx-vlm's qwen2_vl") in found.reason
