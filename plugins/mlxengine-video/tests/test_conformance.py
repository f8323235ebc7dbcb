"""The clauses that every plugin keeps, on a tiny Wan 2.2 that takes pictures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tiny_wan
from mlxengine import ModelConfiguration
from mlxengine.errors import InvalidParameterError, UnsupportedInputError
from mlxengine.testing import Example, PluginConformance, Specimen
from mlxengine_video import VideoRequest

pytest_plugins = ["mlxengine.testing.pytest"]

_FOLDER = tempfile.TemporaryDirectory(prefix="mlxengine-video-")
TINY = tiny_wan.write("ti2v", Path(_FOLDER.name) / "tiny")
GREY = np.full((40, 40, 3), 128, np.uint8)


def ask(**values: Any) -> VideoRequest:
    wanted = {"prompt": "a red fox", "size": (32, 32), "frames": 5, "steps": 2, "seed": 0, **values}
    return VideoRequest(**wanted)


class TestVideo(PluginConformance):
    name = "video"
    specimen = Specimen(
        path=TINY,
        configuration=ModelConfiguration(id="tiny", features=(("video.reserve", "32x32x5"),)),
        examples=[
            Example(request=ask(), shows={"video_generation"}),
            Example(request=ask(negative="a cat", guidance=3.0, seed=1)),
            Example(request=ask(image=GREY, frames=1), shows={"image_to_video"}),
        ],
        refused=[
            (ask(frames=6), InvalidParameterError),
            (ask(size=(40, 32)), InvalidParameterError),
            (ask(negative="a cat", guidance=1.0), InvalidParameterError),
            (ask(image=b"no picture"), UnsupportedInputError),
        ],
    )
