"""Draw the pictures of the gallery: run the code of its page with the tiny model, and keep what it shows.

``.venv/bin/python scripts/draw_gallery.py`` writes ``docs/pictures/gallery``; with a folder it writes there.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "how-to" / "picture-gallery.md"
PICTURES = ROOT / "docs" / "pictures" / "gallery"
MODEL = ROOT / "tests" / "models" / "tiny-shapes-sd"
_CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COLOURS = 64  # as many as these pictures need, in a third of the bytes


def names() -> list[str]:
    """The files that the page shows."""
    return re.findall(r"\.\./pictures/gallery/(\S+)", PAGE.read_text("utf-8"))


def draw(target: Path) -> None:
    """Write them."""
    code = "\n".join(_CODE.findall(PAGE.read_text("utf-8"))).replace("mlxengine/tiny-shapes-sd", str(MODEL))
    target = target.resolve()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile(code, str(PAGE), "exec"), {})
        for name in names():
            with Image.open(name) as picture:
                picture.quantize(_COLOURS).save(target / name, optimize=True)
        os.chdir(ROOT)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES)
