"""Silero VAD's 16 kHz branch on mlx-audio's module, from the weights as their author publishes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxengine import LoadContext, Loaded, ModelCard
from mlxengine.errors import IncompatibleWeightsError


class Detector:
    """What `generate` is given: the network, emptied when the model is closed."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def close(self) -> None:
        """Let go of the weights."""
        self.network = None


def load(card: ModelCard, context: LoadContext) -> Loaded:
    """Build the network lazily; `warm` evaluates it on the scheduler's thread."""
    import mlx.core as mx
    from mlx_audio.vad.models.silero_vad.config import BranchConfig
    from mlx_audio.vad.models.silero_vad.silero_vad import SileroVADBranch

    try:
        loaded: Any = mx.load(str(context.path / "model.safetensors"))
        weights = _renamed(loaded)
        network = SileroVADBranch(BranchConfig())
        network.load_weights(list(weights.items()), strict=True)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise IncompatibleWeightsError(f"model.safetensors of {card.id} does not fit: {error}.") from error

    def warm() -> Iterator[None]:
        for value in weights.values():
            mx.eval(value)
            yield None

    detector = Detector(network)
    return Loaded(model=detector, warm=warm(), close=detector.close, info={"library": "mlx-audio"})


def _renamed(weights: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's names and layouts as mlx has them: convolutions (out, width, in), one LSTM bias."""
    found = {}
    for name, value in weights.items():
        if name.endswith("conv.weight") or (name.startswith("conv") and name.endswith("weight")):
            found[name] = value.transpose(0, 2, 1)
        elif not name.startswith("lstm_cell."):
            found[name] = value
    found["lstm.Wx"] = weights["lstm_cell.weight_ih"]
    found["lstm.Wh"] = weights["lstm_cell.weight_hh"]
    found["lstm.bias"] = weights["lstm_cell.bias_ih"] + weights["lstm_cell.bias_hh"]
    return found
