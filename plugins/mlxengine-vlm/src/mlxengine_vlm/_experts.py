"""The classes of experts of mlx-vlm."""

from __future__ import annotations

from mlx_vlm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP
from mlxengine.toolkit.adapted_experts import Experts

EXPERTS = Experts(layers=(SwitchLinear, QuantizedSwitchLinear), blocks=(SwitchGLU, SwitchMLP))

__all__ = ["EXPERTS"]
