"""Merging an adapter into the weights: a checkpoint that needs no adapter any more."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlxengine.errors import ConfigurationError, IncompatibleWeightsError

from .convert import copy_documents, fetched, load_network

if TYPE_CHECKING:
    import argparse

    from mlxengine.cli.verbs import Output


def fuse(source: Path, adapter: Path, target: Path, *, scale: float = 1.0, dequantize: bool = False) -> Path:
    """Write a model with an adapter merged into its weights, as safetensors.

    ``target`` appears whole or not at all. The sums are made in fp32 and kept in the weights' own dtype.

    Args:
        source: the model's folder.
        adapter: the adapter's folder, in mlx-lm's or PEFT's format.
        target: a folder that does not exist yet.
        scale: multiplies the adapter's own.
        dequantize: unpack a quantized model; packing the sum again would lose most of the adapter.

    Raises:
        ConfigurationError: the target exists.
        IncompatibleWeightsError: the adapter is another model's, or the model is quantized and may not be
            unpacked.
        LoadError, CorruptFileError: the model or the adapter cannot be read.
    """
    import mlx.core as mx
    from mlx_lm.utils import dequantize_model, save_config, save_model
    from mlxengine.toolkit.adapters import merged

    from ._experts import EXPERTS

    if target.exists():
        raise ConfigurationError(f"{target} exists already.", hint="Name a new folder.")
    network, config = load_network(source)
    if config.get("quantization") or config.get("quantization_config"):
        if not dequantize:
            raise IncompatibleWeightsError(
                f"{source} is quantized: an adapter cannot be merged into packed weights without loss.",
                hint="Merge it into the unquantized model, or unpack this one with dequantize.",
            )
        network = dequantize_model(network)
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    for layer, weight in merged(network, adapter, scale, EXPERTS):
        layer.weight = weight
        mx.eval(weight)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        made = scratch / "model"
        save_model(made, network)
        save_config(config, made / "config.json")
        copy_documents(source, made)
        made.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``mlxengine fuse``."""
    parser.add_argument("model", help="org/name or a folder")
    parser.add_argument("adapter", help="org/name or a folder")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the adapter's own")
    parser.add_argument("--dequantize", action="store_true", help="unpack a quantized model")


def run(options: argparse.Namespace, out: Output) -> int:
    """The command ``mlxengine fuse``."""
    from mlxengine import hub
    from mlxengine.cli.verbs import ProgressLine
    from mlxengine.toolkit.folders import ADAPTER_FILES

    _, source = fetched(options.model, out)
    adapter = Path(options.adapter).expanduser()
    if not adapter.is_dir():
        with ProgressLine(out) as progress:
            adapter = hub.fetch(options.adapter, files=ADAPTER_FILES, report=progress)
    made = fuse(source, adapter, options.target, scale=options.scale, dequantize=options.dequantize)
    size = sum(file.stat().st_size for file in made.glob("*.safetensors"))
    kind = json.loads(made.joinpath("config.json").read_text("utf-8")).get("model_type")
    value = {"path": made, "bytes": size, "model_type": kind}
    out.emit(value, lambda: out.line(f"{made}: {size / 1e6:.1f} MB of weights, {kind}"))
    return 0


__all__ = ["configure", "fuse", "run"]
