"""Two ranks on something tiny, for ``mlxengine doctor``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxengine import Check, CheckStatus, SelfTestContext
from mlxengine.errors import FeatureUnavailableError

from ._transport import transport_of

PROMPT = [3, 5, 7, 9, 11]
NEW_TOKENS = 3  # each by far the most probable: sums in another order draw it, too
_SECONDS = 60.0  # for what takes five
_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 64,
}


def self_test(context: SelfTestContext) -> Sequence[Check]:
    """Decode a prompt with a tiny llama of random weights, whole and over two ranks, and compare."""
    try:
        transport = transport_of(context.device.backend, 2)
    except FeatureUnavailableError as error:
        return (Check(name="ranks", detail=f"not run: {error.message}"),)
    try:
        whole = _whole(context.folder)
        spread = _spread(context.folder, transport)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        remedy = 'Install "mlxengine[shard]" and a back end of mlx again.'
        return (Check(name="ranks", status=CheckStatus.FAILED, detail=detail, remedy=remedy),)
    if spread != whole:
        problem = f"two ranks change tokens: {spread} instead of {whole}"
        return (Check(name="ranks", status=CheckStatus.FAILED, detail=problem),)
    return (Check(name="ranks", detail=f"a tiny model decodes over two ranks ({transport})"),)


def _whole(folder: Path) -> list[int]:
    """Write the model; what it says."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    network: Any = Model(ModelArgs.from_dict(_CONFIG))
    named: Any = tree_flatten(network.parameters())
    weights = {
        name: mx.random.normal(value.shape, scale=0.5, key=mx.random.key(at))
        for at, (name, value) in enumerate(named)
    }
    network.load_weights(list(weights.items()))
    folder.joinpath("config.json").write_text(json.dumps(_CONFIG))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    said: list[Any] = []
    for _ in range(NEW_TOKENS):
        said.append(mx.argmax(network(mx.array([PROMPT + said]))[0, -1]).item())
    return said


def _spread(folder: Path, transport: str) -> list[int]:
    """What two ranks of it say."""
    from mlxengine.toolkit.rows import Row, SharedBatch

    from ._decoder import LeadingDecoder
    from ._ranks import Ranks, Settings

    class Answer(Row):
        def take(self, token: int, logprobs: object) -> None:  # noqa: ARG002
            self.done = len(self.tokens) == NEW_TOKENS

    ranks = Ranks(
        Settings(
            path=str(folder),
            ranks=2,
            split="tensor",
            transport=transport,
            context=None,
            prefix_bytes=0,
            token_bytes=1,
            shape_seconds=0.0,
        )
    )
    batch = SharedBatch(lambda _: LeadingDecoder(ranks, None, _SECONDS, False, lambda _: None))
    end = time.monotonic() + _SECONDS
    row = Answer(PROMPT)
    batch.admit(row)
    try:
        while not row.done and row.failure is None:
            if time.monotonic() > end:
                raise TimeoutError(f"two ranks have not answered after {_SECONDS:.0f} s")
            batch.advance(_SECONDS)
    finally:
        ranks.end("the self test is over")
    if row.failure is not None:
        raise row.failure
    return row.tokens


__all__ = ["self_test"]
