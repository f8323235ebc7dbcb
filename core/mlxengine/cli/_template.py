"""What ``mlxengine plugins new NAME`` writes: a package that works and keeps every clause of the kit."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from pathlib import Path
from string import Template

from .._version import __version__
from ..errors import InvalidParameterError

_NAME = re.compile(r"[a-z][a-z0-9]*")

FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "mlxengine-$name"
version = "0.1.0"
description = "Models of the kind $name for MLXEngine."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["mlxengine$range", "attrs>=24.2"]

[project.optional-dependencies]
test = ["mlxengine[testing]$range"]

[project.entry-points.mlxengine]
$name = "mlxengine_$name.plugin"

[tool.hatch.build.targets.wheel]
packages = ["src/mlxengine_$name"]
""",
    "README.md": """\
# mlxengine-$name

Models of the kind `$name` for MLXEngine.

```console
$$ pip install -e ".[test]"
$$ python -m pytest -q
$$ mlxengine plugins check $name
```

Replace what `_load.py` loads and what `_generate.py` does with it. `specimen/` is the model that the tests
run: put a small one of yours in its place.
""",
    "src/mlxengine_$name/__init__.py": '''\
"""Models of the kind $name."""

from .types import ${title}Request

__all__ = ["${title}Request"]
''',
    "src/mlxengine_$name/py.typed": "",
    "src/mlxengine_$name/types.py": '''\
"""What can be asked of a model of this kind."""

from __future__ import annotations

from attrs import frozen
from mlxengine import Request


@frozen(kw_only=True)
class ${title}Request(Request):
    """Answer a text.

    Args:
        text: what to answer.
        times: how often.
    """

    text: str
    times: int = 3
''',
    "src/mlxengine_$name/features.py": '''\
"""The choices that a user of this kind has."""

from mlxengine import Feature

LOUD = Feature[bool](name="$name.loud", default=True, summary="Answer with an exclamation mark.")
FEATURES = (LOUD,)
''',
    "src/mlxengine_$name/_load.py": '''\
"""From a folder to a model. Import model libraries here, inside the function."""

from __future__ import annotations

import json

from mlxengine import LoadContext, Loaded, ModelCard
from mlxengine.errors import IncompatibleWeightsError


class Model:
    """What `generate` is given."""

    def __init__(self, answer: str) -> None:
        self.answer = answer


def load(card: ModelCard, context: LoadContext) -> Loaded:
    """Read the model, or say in an error of the engine's own what is wrong with it."""
    try:
        weights = json.loads((context.path / "weights.json").read_text(encoding="utf-8"))
        return Loaded(model=Model(str(weights["answer"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IncompatibleWeightsError(f"weights.json of {card.id} cannot be used: {error}.") from error
''',
    "src/mlxengine_$name/_generate.py": '''\
"""One request: each step of the iterator is short, and the last event is exactly one Finished."""

from __future__ import annotations

from collections.abc import Iterator

from mlxengine import Event, Finished, FinishReason, RunContext, TextDelta, TokenUsage
from mlxengine.errors import UnsupportedInputError

from ._load import Model
from .features import LOUD
from .types import ${title}Request


def generate(model: Model, request: ${title}Request, context: RunContext) -> Iterator[Event]:
    """Validate the request now; a generator could do so only at its first step."""
    if not request.text:
        raise UnsupportedInputError("There is no text to answer.", hint="Give a text.")
    return _steps(model, request, "!" if context.features.get(LOUD) else ".")


def _steps(model: Model, request: ${title}Request, end: str) -> Iterator[Event]:
    for _ in range(request.times):
        yield TextDelta(text=f"{request.text}: {model.answer}{end} ")
    yield Finished(reason=FinishReason.DONE, usage=TokenUsage(completion_tokens=request.times))
''',
    "src/mlxengine_$name/plugin.py": '''\
"""The hooks. The entry point names this module, so it imports no model library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlxengine import Claim, Event, Feature, Fit, LoadContext, Loaded, ModelCard, Request, RunContext
from mlxengine.contract.hookspecs import hookimpl

from .features import FEATURES
from .types import ${title}Request


@hookimpl
def list_features() -> Sequence[Feature[Any]]:
    return FEATURES


@hookimpl
def claim_model(card: ModelCard) -> Claim | None:
    if card.architecture != "$name":
        return None
    return Claim(
        kind="$name",
        fit=Fit.NATIVE,
        files=("config.json", "weights.json"),
        uses_mlx=False,
        reason="config.json says model_type $name",
    )


@hookimpl
def load_model(card: ModelCard, context: LoadContext) -> Loaded | None:
    from ._load import load

    return load(card, context)


@hookimpl
def generate(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    from ._generate import generate
    from ._load import Model

    if not isinstance(model, Model) or not isinstance(request, ${title}Request):
        return None
    return generate(model, request, context)
''',
    "specimen/config.json": '{"model_type": "$name"}\n',
    "specimen/weights.json": '{"answer": "this is where a model would speak"}\n',
    "tests/test_conformance.py": '''\
"""The clauses that every plugin keeps, on this one."""

from pathlib import Path

from mlxengine.errors import UnsupportedInputError
from mlxengine.testing import Example, PluginConformance, Specimen
from mlxengine_$name import ${title}Request

pytest_plugins = ["mlxengine.testing.pytest"]


# `mlxengine plugins check $name --specimen tests.test_conformance:SPECIMEN` takes it too.
SPECIMEN = Specimen(
    path=Path(__file__).parent.parent / "specimen",
    examples=[
        Example(request=${title}Request(text="one")),
        Example(request=${title}Request(text="another", times=5)),
    ],
    refused=[(${title}Request(text=""), UnsupportedInputError)],
)


class Test$title(PluginConformance):
    name = "$name"
    specimen = SPECIMEN
''',
}


def write(name: str, parent: Path) -> Iterator[Path]:
    """Write the package ``mlxengine-NAME`` into a new folder of that name; the files, as they are written.

    Raises:
        InvalidParameterError: the name cannot be a plugin's, or the folder is there already.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise InvalidParameterError(
            f"{name!r} cannot be a plugin's name.", hint="Use lower-case letters and digits, such as speech."
        )
    folder = parent / f"mlxengine-{name}"
    if folder.exists():
        raise InvalidParameterError(f"{folder} is there already.", hint="Choose another name or folder.")
    major, minor = (int(part) for part in __version__.split(".")[:2])
    words = {"name": name, "title": name.capitalize(), "range": f">={major}.{minor},<{major}.{minor + 1}"}
    for path, text in FILES.items():
        target = folder / Template(path).substitute(words)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(text).substitute(words), encoding="utf-8")
        yield target
