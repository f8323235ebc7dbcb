"""The gallery shows what its code makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .blocks import ROOT

sys.path.append(str(ROOT / "scripts"))

import draw_gallery


def test_every_picture_is_there_once_and_small() -> None:
    assert sorted(path.name for path in draw_gallery.PICTURES.iterdir()) == sorted(draw_gallery.names())
    assert max(path.stat().st_size for path in draw_gallery.PICTURES.iterdir()) < 16_000


@pytest.mark.slow
def test_the_pages_code_makes_its_pictures(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "scripts/draw_gallery.py", str(tmp_path)], cwd=ROOT, check=True)
    for name in draw_gallery.names():
        made, kept = (
            np.array(Image.open(folder / name).convert("RGB"), np.int16)
            for folder in (tmp_path, draw_gallery.PICTURES)
        )
        assert np.abs(made - kept).mean() < 3, f"{name}: run scripts/draw_gallery.py"
