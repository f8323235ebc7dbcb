"""A real inference on something tiny, for ``mlxengine doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxengine import Check, CheckStatus, SelfTestContext

PROMPTS = ([3, 5, 7, 9, 11], [2, 4])
NEW_TOKENS = 4


def self_test(context: SelfTestContext) -> Sequence[Check]:  # noqa: ARG001
    """Decode two prompts with a tiny llama of random weights, alone and in one batch, and compare."""
    try:
        model = _tiny()
        together = _decode(model, PROMPTS)
        alone = [_decode(model, [prompt])[0] for prompt in PROMPTS]
    except Exception as error:
        return (
            Check(
                name="decoding",
                status=CheckStatus.FAILED,
                detail=f"{type(error).__name__}: {error}",
                remedy='Install "mlxengine[llm]" and a back end of mlx again.',
            ),
        )
    if together != alone:
        problem = f"a batch changes tokens: {together} instead of {alone}"
        return (Check(name="decoding", status=CheckStatus.FAILED, detail=problem),)
    return (Check(name="decoding", detail="a tiny model decodes; a batch changes nothing"),)


def _tiny() -> Any:
    from mlx_lm.models.llama import Model, ModelArgs

    return Model(
        ModelArgs(
            model_type="llama",
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=64,
            num_attention_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=64,
        )
    )


def _decode(model: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Greedy tokens of each prompt, decoded in one batch."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(model, max_tokens=NEW_TOKENS)
    try:
        rows: dict[int, list[int]] = {uid: [] for uid in generator.insert(list(prompts))}
        finished = 0
        while finished < len(rows):
            for response in generator.next()[1]:
                rows[response.uid].append(response.token)
                finished += response.finish_reason is not None
    finally:
        generator.close()
    return [rows[uid] for uid in sorted(rows)]


__all__ = ["self_test"]
