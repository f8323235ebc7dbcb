"""The code of the page about frameworks runs where they are installed."""

from __future__ import annotations

from pathlib import Path

from tests.docs import test_pages

surroundings = test_pages.surroundings


def test_the_code_of_the_page_runs(surroundings: dict[str, str], tmp_path: Path) -> None:
    test_pages.test_every_code_block_of_the_page_runs(test_pages.ELSEWHERE, surroundings, tmp_path)
