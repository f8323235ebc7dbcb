"""A real inference on something tiny, for ``mlxengine doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxengine import Check, CheckStatus, SelfTestContext


def self_test(context: SelfTestContext) -> Sequence[Check]:  # noqa: ARG001
    """Look at two pictures with a SmolVLM of random weights: the answers to them must differ."""
    try:
        difference, repeated = _look()
    except Exception as error:
        return (
            Check(
                name="vision",
                status=CheckStatus.FAILED,
                detail=f"{type(error).__name__}: {error}",
                remedy='Install "mlxengine[vlm]" and a back end of mlx again.',
            ),
        )
    if repeated > 1e-3 or difference < 1e-3:
        problem = f"the same picture differs by {repeated:.0e}, another one by {difference:.0e}"
        return (Check(name="vision", status=CheckStatus.FAILED, detail=problem),)
    return (Check(name="vision", detail="a tiny model looks at pictures and tells them apart"),)


def _look() -> tuple[float, float]:
    """Largest difference of the logits for another picture, and for the same one from kept features."""
    import mlx.core as mx
    import numpy as np
    from mlx_vlm.models import smolvlm
    from mlx_vlm.models.cache import make_prompt_cache

    from ._prefill import embed

    layers = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = smolvlm.TextConfig(**layers, vocab_size=32, head_dim=16, num_key_value_heads=3)
    vision = smolvlm.VisionConfig(**layers, image_size=32, patch_size=8)
    network = smolvlm.Model(smolvlm.ModelConfig(text_config=text, vision_config=vision, image_token_id=7))
    network.eval()
    ids, tokens = [1, 5, 7, 7, 7, 7, 6, 9], frozenset({7})

    def logits(plan: Any) -> Any:
        inputs = plan.take(len(ids))
        output = network.language_model(
            inputs[0], cache=make_prompt_cache(network.language_model), **inputs[1]
        )
        return np.asarray(output.logits[0, -1].astype(mx.float32))

    first, other = (
        embed(network, "smolvlm", ids, {"pixel_values": mx.full((1, 1, 3, 32, 32), value)}, tokens)
        for value in (0.7, -0.3)
    )
    again = embed(network, "smolvlm", ids, {}, tokens, first.features)
    one, two, three = logits(first), logits(other), logits(again)
    return float(np.abs(one - two).max()), float(np.abs(one - three).max())


__all__ = ["self_test"]
