"""Networks of other libraries, which build one geometry: the geometry of the repository, strictly filled."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlxengine import LoadContext

from ..features import QUANTIZE
from ..sd.weights import Origin, fill_by_name, read_tensors

# Frequencies of rotary embeddings, which some libraries keep among the parameters.
_COMPUTED = "inv_freq"


def usual_dtype() -> mx.Dtype:
    """What networks compute in here: half precision is slow on a CPU."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return mx.float32 if on_cpu else mx.bfloat16


def quantized(network: Any, bits: int) -> Any:
    """The network with its linear layers packed, in groups of 32."""

    def fits(_path: str, module: Any) -> bool:
        return isinstance(module, nn.Linear) and module.weight.shape[1] % 32 == 0

    nn.quantize(network, group_size=32, bits=bits, class_predicate=fits)
    return network


def facts(library: str, dtype: mx.Dtype, context: LoadContext) -> dict[str, Any]:
    """What a pipeline says about itself."""
    bits = context.features.get(QUANTIZE) or None
    return {"library": library, "dtype": str(dtype).removeprefix("mlx.core."), "unet_bits": bits}


def resize(network: nn.Module, sizes: Mapping[int, int]) -> None:
    """Replace every parameter by one whose sides are those that ``sizes`` says instead.

    A library that writes its geometry into its layers can so serve another one, and the sizes that a
    checkpoint has to have are still known.
    """

    def resized(value: mx.array) -> mx.array:
        return mx.zeros([sizes.get(side, side) for side in value.shape], dtype=value.dtype)

    network.update(tree_map(resized, network.parameters()))


def renamed(*pairs: tuple[str, str]) -> Callable[[str], str]:
    """A function from a parameter's path to its name in the checkpoint: patterns replaced in their order."""

    def name_of(path: str) -> str:
        for pattern, text in pairs:
            path = re.sub(pattern, text, path)
        return path

    return name_of


def filled(
    network: Any,
    part: str,
    files: Sequence[Path],
    name_of: Callable[[str], str],
    dtype: mx.Dtype,
    *,
    ignored: str | None = None,
) -> Any:
    """The network with the weights of ``files``, lazily; those whose names match ``ignored`` are left out.

    Raises:
        IncompatibleWeightsError: tensors are missing, left over or of the wrong shape; they are named.
    """
    source = {
        name: tensor
        for name, tensor in read_tensors(files).items()
        if ignored is None or not re.search(ignored, name)
    }
    fill_by_name(
        network,
        part,
        source,
        lambda path: None if path.endswith(_COMPUTED) else Origin(name_of(path)),
        dtype,
    )
    return network


__all__ = ["facts", "filled", "quantized", "renamed", "resize", "usual_dtype"]
