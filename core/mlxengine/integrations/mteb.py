"""For mteb: ``mteb.evaluate(MLXEngineEncoder("org/name"), tasks)``.

Scores a model on the tasks of the Massive Text Embedding Benchmark, with the prompts that mteb's rules choose
among the model's own. Needs mteb: ``pip install "mlxengine[embed,mteb]"``.
"""

from __future__ import annotations

from typing import Any

from ..engine import InferenceEngine
from ._needs import needs
from ._source import Model
from .sentence_transformers import SentenceTransformer

with needs("mteb", "mteb"):
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType


class MLXEngineEncoder(AbsEncoder):  # type: ignore[misc]
    """An embedding model as mteb's ``EncoderProtocol`` wants it, for texts.

    As mteb does for sentence-transformers, a prompt that belongs to the task, its type, or queries and
    documents is put before the texts; where the model has none, ``encode_query`` and ``encode_document`` say
    what is.

    Args:
        model_name: ``"org/name"``, a folder, a configuration, or a loaded model; loaded now.
        revision: branch, tag or commit.
        device: the engine's own, or ``None``.
        engine: what loads it; ``None`` is one that all adapters of the process share.
        model_prompts: added to the model's own, by task, task type, ``"query"`` or ``"document"``.
        truncate_dim: keep the first dimensions only.

    Raises:
        InvalidParameterError: an argument cannot be had here.
        ResolutionError, DownloadError, LoadError: the model cannot be loaded.
    """

    def __init__(
        self,
        model_name: Model,
        revision: str | None = None,
        *,
        device: str | None = None,
        engine: InferenceEngine | None = None,
        model_prompts: dict[str, str] | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        self.model = SentenceTransformer(
            model_name,
            revision=revision,
            device=device,
            engine=engine,
            prompts=model_prompts,
            truncate_dim=truncate_dim,
        )
        self.model_prompts, _ = self.validate_task_to_prompt_name(
            self.model.prompts, raise_for_invalid_keys=False
        )
        about = {"name": self._id(), "revision": revision, "loader": None}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=about)

    def _id(self) -> str:
        """A name of the form that mteb keeps results under, ``"org/name"``."""
        name = self.model.handle.id.strip("/")
        return "/".join(name.split("/")[-2:]) if "/" in name else f"local/{name}"

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        **options: Any,
    ) -> Any:
        """Vectors of all texts of a loader's batches, float32 (texts, dimension).

        Args:
            inputs: batches, each a mapping with ``"text"``.
            task_metadata: the task, which chooses the prompt.
            hf_split, hf_subset: of the task's data; they change nothing.
            prompt_type: whether these are queries or documents.
            options: those of `SentenceTransformer.encode`.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        name = self.get_prompt_name(task_metadata, prompt_type)
        prompt = None if name is None else (self.model_prompts or {}).get(name)
        encode = {PromptType.query: self.model.encode_query, PromptType.document: self.model.encode_document}
        options.setdefault("show_progress_bar", False)
        return encode.get(prompt_type, self.model.encode)(texts, prompt=prompt, **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """By the model's own function, a tensor."""
        import torch

        return torch.as_tensor(self.model.similarity(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """By the model's own function, a tensor."""
        import torch

        return torch.as_tensor(self.model.similarity_pairwise(embeddings1, embeddings2))


__all__ = ["MLXEngineEncoder"]
