"""The code of the page about frameworks runs where they are installed."""

from __future__ import annotations

from pathlib import Path

from tests.docs.test_pages import ELSEWHERE, surroundings, test_every_code_block_of_the_page_runs  # noqa: F401


def test_the_code_of_the_page_runs(surroundings: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    test_every_code_block_of_the_page_runs(ELSEWHERE, surroundings, tmp_path)
