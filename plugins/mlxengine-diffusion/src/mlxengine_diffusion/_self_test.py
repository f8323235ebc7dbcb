"""A real inference on something tiny, for ``mlxengine doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxengine import Check, CheckStatus, SelfTestContext

UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 32,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "in_channels": 4,
    "out_channels": 4,
}


def self_test(context: SelfTestContext) -> Sequence[Check]:  # noqa: ARG001
    """One denoising step of a tiny UNet with random weights, for two latents alone and together."""
    try:
        import mlx.core as mx

        from .sd.unet import build_unet

        unet = build_unet(UNET)
        key = mx.random.key(0)
        latents, prompts = mx.random.normal((2, 8, 8, 4), key=key), mx.random.normal((2, 5, 32), key=key)
        time = mx.array([500.0, 500.0])
        together = unet(latents, time, prompts)
        alone = mx.concatenate([unet(latents[i : i + 1], time[:1], prompts[i : i + 1]) for i in range(2)])
        difference: Any = mx.max(mx.abs(together - alone)).item()
    except Exception as error:
        return (
            Check(
                name="denoising",
                status=CheckStatus.FAILED,
                detail=f"{type(error).__name__}: {error}",
                remedy='Install "mlxengine[diffusion]" and a back end of mlx again.',
            ),
        )
    if not difference < 1e-2:
        problem = f"a batch changes the step by {difference:.0e}"
        return (Check(name="denoising", status=CheckStatus.FAILED, detail=problem),)
    return (Check(name="denoising", detail="a tiny UNet runs; a batch changes nothing"),)


__all__ = ["self_test"]
