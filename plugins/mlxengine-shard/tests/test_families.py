"""Each architecture that a claim allows, split each way that it allows, against the same network whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llm_harness import write_tiny
from mlx_lm.models.cache import make_prompt_cache
from mlxengine.toolkit.rows import SharedBatch
from mlxengine_llm.parts import load_network, widen
from mlxengine_shard._claim import PIPELINE, TENSOR
from mlxengine_shard._ranks import Ranks
from shard_harness import Told, alone, opened, settings

CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "mlxengine-llm" / "tests" / "architectures.json").read_text("utf-8")
)
CONFIGS["ministral3"] = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 16,
    "head_dim": 8,
    "rope_parameters": {
        "rope_theta": 10000.0,
        "rope_type": "default",
        "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 32,
    },
}
PROMPTS = [[5, 9, 7], list(range(3, 60)), [8] * 20]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split"),
    [(name, "tensor") for name in sorted(TENSOR)] + [(name, "pipeline") for name in sorted(PIPELINE)],
)
def test_two_ranks_say_what_one_says(name: str, split: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / name, **{**CONFIGS[name], "model_type": name})
    network, _ = load_network(folder)
    widen(network)
    ranks = Ranks(settings(folder, split=split))
    batch = SharedBatch(lambda _: opened(ranks), first_piece=16)
    try:
        rows = [Told(prompt, 12, scored=at == 1) for at, prompt in enumerate(PROMPTS)]
        for row in rows:
            batch.admit(row)
        while not all(row.done for row in rows):
            assert [row.failure for row in rows] == [None] * len(rows)
            batch.advance(100.0)
        assert ranks.generation == 1
        for row in rows:
            assert row.tokens == alone(network, make_prompt_cache(network), row)
    finally:
        ranks.end("the test is over")
