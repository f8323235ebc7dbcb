"""mteb's scores of our encoder are those of sentence-transformers: two tasks made here, real weights."""

from __future__ import annotations

import random
from typing import Any

import mteb
import pytest
import sentence_transformers
from datasets import Dataset, DatasetDict
from mlxengine import InferenceEngine
from mlxengine.integrations.mteb import MLXEngineEncoder
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol

WHO = ("a cat", "the banker", "my neighbour", "an engineer", "the river", "a choir")
DOES = {
    "Somebody rests": "sleeps",
    "Something is built": "repairs a bridge",
    "The stock exchange": "sells shares",
    "Music": "sings loudly",
    "A disaster": "floods the valley",
    "Astronomy": "reads about stars",
}
WHERE = {
    "in the capital of France": "in Paris",
    "after sunset": "at night",
    "below a plant": "under the old tree",
    "by the sea": "near the harbour",
    "silently": "without a word",
}
SENTENCES = [f"{who} {does} {where}." for who in WHO for does in DOES.values() for where in WHERE.values()]


def about(kind: str, name: str, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        type=kind,
        description="Made for this test.",
        dataset={"path": "NA", "revision": "NA"},
        main_score=score,
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        modalities=["text"],
    )


class Likeness(AbsTaskSTS):
    """Pairs of sentences; their score is the share of what they have in common."""

    metadata = about("STS", "Likeness", "cosine_spearman")
    min_score, max_score = 0, 3

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        source = random.Random(4)
        pairs = [source.choices(range(len(SENTENCES)), k=2) for _ in range(60)]
        parts = [(place // 30, place // 5 % 6, place % 5) for place in range(len(SENTENCES))]
        shared = [sum(x == y for x, y in zip(parts[a], parts[b], strict=True)) for a, b in pairs]
        columns = {
            "sentence1": [SENTENCES[a] for a, _ in pairs],
            "sentence2": [SENTENCES[b] for _, b in pairs],
            "score": shared,
        }
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


class Meant(AbsTaskRetrieval):
    """Which sentences say the same in other words?"""

    metadata = about("Retrieval", "Meant", "ndcg_at_10")

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        kept = [text for place, text in enumerate(SENTENCES) if place % 3]
        asked = {
            f"{did} {there}": f" {does} {where}."
            for did, does in DOES.items()
            for there, where in WHERE.items()
        }
        split = {
            "queries": Dataset.from_list([{"id": text, "text": text} for text in asked]),
            "corpus": Dataset.from_list([{"id": text, "text": text, "title": ""} for text in kept]),
            "relevant_docs": {
                text: {found: 1 for found in kept if found.endswith(end)} for text, end in asked.items()
            },
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def scores(model: Any) -> dict[str, dict[str, float]]:
    """All numbers of both tasks."""
    done = mteb.evaluate(model, [Likeness(), Meant()], cache=None, show_progress_bar=False, co2_tracker=False)
    return {
        result.task_name: {
            key: value for key, value in result.scores["test"][0].items() if type(value) is float
        }
        for result in done.task_results
    }


@pytest.mark.parametrize(
    "prompts", [None, {"query": "question: ", "Likeness": "topic: "}], ids=["none", "some"]
)
def test_two_tasks_give_the_scores_of_sentence_transformers(
    minilm: str, engine: InferenceEngine, prompts: dict[str, str] | None
) -> None:
    encoder = MLXEngineEncoder(minilm, engine=engine, model_prompts=prompts)
    assert isinstance(encoder, EncoderProtocol)
    ours = scores(encoder)
    theirs = scores(sentence_transformers.SentenceTransformer(minilm, device="cpu", prompts=prompts))
    assert ours.keys() == theirs.keys() == {"Likeness", "Meant"}
    assert 0.1 < ours["Likeness"]["cosine_spearman"] < 0.95
    assert 0.3 < ours["Meant"]["ndcg_at_10"] < 0.99
    for name, expected in theirs.items():
        assert len(expected) > 5
        assert {key: ours[name][key] for key in expected} == pytest.approx(expected, abs=1e-4, nan_ok=True)
