"""The classes of experts of mlx-lm."""

from __future__ import annotations

from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP
from mlxengine.toolkit.adapted_experts import Experts

EXPERTS = Experts(layers=(SwitchLinear, QuantizedSwitchLinear), blocks=(SwitchGLU, SwitchMLP))

__all__ = ["EXPERTS"]
