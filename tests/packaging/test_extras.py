"""Each extra alone, in a fresh environment: what it brings, what it must not, and how large it is."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path

import pytest

from .environments import ROOT, Environment, installed, megabytes, published

DENIED = {
    "core": {"mlx", "numpy", "transformers", "torch", "pillow"},
    "llm": {"mlx-vlm", "mlx-embeddings", "mlx-audio", "diffuse-mlx", "opencv-python", "pandas", "torch"},
    "vlm": {"mlx-embeddings", "diffuse-mlx", "torch"},
    "embed": {"diffuse-mlx", "torch"},
    "diffusion": {"mlx-lm", "mlx-vlm", "mlx-embeddings", "opencv-python", "torch"},
    "video": {"mlx-embeddings", "diffuse-mlx", "torch"},
    "serve": {"mlx", "numpy", "transformers", "torch", "pillow", "fastapi", "pydantic"},
    "ray": {"mlx", "numpy", "transformers", "torch", "pillow", "ray", "pyarrow"},
    "shard": {"mlx-vlm", "mlx-embeddings", "mlx-audio", "diffuse-mlx", "opencv-python", "pandas", "torch"},
}
BRINGS = {"shard": ["llm"]}  # packages of ours that another one of ours requires
IMPORT = """
from mlxengine import InferenceEngine
with InferenceEngine() as engine:
    assert [record.error for record in engine.plugins] == [None] * len(engine.plugins), engine.plugins
    print(*[record.name for record in engine.plugins])
"""


def third_party(folder: Path) -> list[str]:
    required: list[str] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
    return [item for item in required if not item.startswith("mlxengine")]


@pytest.mark.slow
@pytest.mark.parametrize("extra", DENIED)
def test_an_extra_alone_brings_its_own_kind_and_nothing_of_the_others(
    extra: str, tmp_path: Path, wheels: Path
) -> None:
    environment = Environment.make(tmp_path / "env", wheels)
    began = time.monotonic()
    environment.others(*third_party(ROOT))
    environment.ours("mlxengine")
    if extra == "core":
        took = time.monotonic() - began
        assert took < 15, f"core alone took {took:.0f} s to install"
        assert megabytes(environment.site) < 30
    else:
        # the back end is the user's choice, by the extras cpu, cuda12 and cuda13
        back_end = [] if "mlx" in DENIED[extra] else ["mlx[cpu]"]
        kinds = [*BRINGS.get(extra, ()), extra]
        for kind in kinds:
            environment.others(*back_end, *third_party(ROOT / "plugins" / f"mlxengine-{kind}"))
            environment.ours(f"mlxengine-{kind}")
        assert environment.run(IMPORT).stdout.split() == kinds
    assert installed(environment) & DENIED[extra] == set()
    size = megabytes(environment.site)
    assert published()[extra] == pytest.approx(size, rel=0.2), f"{extra} takes {size:.0f} MB"
