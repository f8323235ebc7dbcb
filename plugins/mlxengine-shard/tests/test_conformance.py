"""The clauses that every plugin keeps, on a tiny random model over two ranks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llm_harness import raw, write_tiny
from mlxengine import GenerateParams, ImagePart, Message, ModelConfiguration, TextRequest
from mlxengine.errors import InvalidParameterError, UnsupportedInputError
from mlxengine.testing import Example, PluginConformance, Specimen

pytest_plugins = ["mlxengine.testing.pytest"]

_FOLDER = tempfile.TemporaryDirectory(prefix="mlxengine-shard-")


def _tiny() -> Path:
    folder = Path(_FOLDER.name) / "llama"
    return folder if folder.exists() else write_tiny(folder)


class TestShard(PluginConformance):
    name = "shard"

    @staticmethod
    def specimen(_test: object) -> Specimen:
        picture = TextRequest(messages=(Message.user([ImagePart("a.png"), "What?"]),))
        chat = TextRequest(
            messages=(Message.user("Hi"),), params=GenerateParams(max_tokens=12, temperature=0)
        )
        folder = _tiny()
        return Specimen(
            path=folder,
            configuration=ModelConfiguration(id=str(folder), features=(("shard.ranks", 2),)),
            examples=[
                Example(request=raw("once", max_tokens=24, ignore_eos=True), shows={"text"}),
                Example(request=raw("x", max_tokens=16, temperature=1.0, seed=3, ignore_eos=True)),
                Example(request=chat, shows={"chat"}),
            ],
            refused=[
                (picture, UnsupportedInputError),
                (raw(""), InvalidParameterError),
                (raw("x", adapter="a"), UnsupportedInputError),
            ],
        )
