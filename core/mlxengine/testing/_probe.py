"""Run in a process of its own: import a plugin, ask its pure hooks, and say what that did.

Reads ``{"value": entry-point value, "name": …, "paths": sys.path additions, "specimen": its configuration or
null}`` from standard input, writes a JSON report to standard output.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

HEAVY = (
    "mlx", "mlx_lm", "mlx_vlm", "mlx_embeddings", "mlx_audio", "diffuse_mlx", "diffusionkit", "mflux",
    "numpy", "scipy", "pandas", "torch", "jax", "tensorflow", "transformers", "tokenizers", "safetensors",
    "sentencepiece", "huggingface_hub", "datasets", "PIL", "cv2", "soundfile", "librosa",
)  # fmt: skip
_IO = ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen")
_watching: list[str] | None = None
_own = "\0"  # the folder of the plugin's package


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is None or event not in _IO:
        return
    name = str(arguments[0]) if arguments else ""
    # Reading a module, or what the plugin's package holds, is an import, which the deny-list looks at.
    caller = sys._getframe(1).f_code.co_filename
    importing = name.endswith(".py") or caller.startswith("<frozen importlib") or "site-packages" in name
    if not importing and not name.startswith(_own):
        _watching.append(f"{event}({name})")


@contextlib.contextmanager
def _watched(report: dict[str, Any], key: str) -> Iterator[None]:
    global _watching
    before = heavy()
    _watching = []
    try:
        yield
    finally:
        report[key] = {"io": _watching, "heavy": sorted(heavy() - before)}
        _watching = None


def heavy() -> set[str]:
    """The model libraries that this process has imported."""
    return {name.partition(".")[0] for name in sys.modules} & set(HEAVY)


def _card(told: dict[str, Any]) -> Any:
    """The card of the specimen, from its configuration as JSON has it."""
    from mlxengine import ModelConfiguration
    from mlxengine._hub import resolve

    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
    }
    values["features"] = tuple(tuple(pair) for pair in values["features"])
    return resolve(ModelConfiguration(**values))


def main() -> None:
    asked = json.load(sys.stdin)
    sys.path[:0] = [path for path in asked["paths"] if path not in sys.path]
    from importlib.metadata import EntryPoint

    import mlxengine
    from mlxengine.testing._hooks import Hooks
    from mlxengine.testing._strangers import foreign_cards

    for name in mlxengine.__all__:  # what core itself costs is not the plugin's
        with contextlib.suppress(ImportError):
            getattr(mlxengine, name)
    before, report = heavy(), dict[str, Any]()
    start = time.perf_counter()
    loaded = EntryPoint(name=asked["name"], value=asked["value"], group="mlxengine").load()
    report["import_seconds"] = time.perf_counter() - start
    report["import_heavy"] = sorted(heavy() - before)
    hooks = Hooks(asked["name"], loaded, lambda call: call())
    for key in ("features", "models", "kinds", "commands"):
        with _watched(report, key):
            getattr(hooks, key)()
    cards = (*foreign_cards(), *([] if asked["specimen"] is None else [_card(asked["specimen"])]))
    package = sys.modules[asked["value"].partition(":")[0].partition(".")[0]]
    global _own
    _own = next(iter(getattr(package, "__path__", ())), _own)
    sys.addaudithook(_hook)
    with _watched(report, "claims"):  # the first one too: whoever loads anything pays for it
        start = time.process_time()
        hooks.claim(cards[0])
        report["first_claim_seconds"] = time.process_time() - start
        for card in cards:
            hooks.claim(card)
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
