"""The calls of sentence-transformers' ``SentenceTransformer``, answered by the engine.

For programs that were written for it: change the import, keep the calls. ``encode``, ``encode_query``,
``encode_document``, ``similarity`` and what goes with them give what sentence-transformers gives. What
cannot be had here is refused by name; new programs are better served by what is underneath,
``InferenceEngine().load_embeddings(…)``::

    from mlxengine.integrations.sentence_transformers import SentenceTransformer

    model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
    vectors = model.encode(["A cat sleeps.", "A kitten naps."])

Tensors are given where they are asked for and torch is installed, else numpy arrays: ``similarity`` of arrays
is an array.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..contract._convert import only
from ..contract.configuration import ModelConfiguration
from ..engine import InferenceEngine
from ..errors import InvalidParameterError
from ..vectors._vectors import pairwise_of, similarity_of
from ..vectors.handle import EmbeddingHandle
from ._arrays import like, quantized, torch_for
from ._source import Model, Source

_log = logging.getLogger("mlxengine.integrations")
_PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


class EncodeOptions(TypedDict, total=False):
    """What a call of ``encode`` may say, with sentence-transformers' names, meanings and defaults.

    ``prompt_name``, ``prompt``: one of ``prompts``, or a text, before every text (``prompt`` wins).
    ``batch_size``: checked, and left to the engine, whose batches are made by tokens; it changes no vector.
    ``show_progress_bar``: a bar on stderr; ``None`` shows none.
    ``output_value``: ``"sentence_embedding"`` or, where torch is installed, ``"token_embeddings"``.
    ``precision``: ``"float32"``, ``"int8"``, ``"uint8"``, ``"binary"``, ``"ubinary"``.
    ``convert_to_numpy``, ``convert_to_tensor``: an array (the default), a tensor, or a list of tensors.
    ``device``: the engine's own, by its name, or ``None``.
    ``normalize_embeddings``: scale to unit length, after ``truncate_dim``.
    ``truncate_dim``: keep the first dimensions only; they are normalised again only if that is asked for.
    """

    prompt_name: str | None
    prompt: str | None
    batch_size: int
    show_progress_bar: bool | None
    output_value: str | None
    precision: str
    convert_to_numpy: bool
    convert_to_tensor: bool
    device: str | None
    normalize_embeddings: bool
    truncate_dim: int | None


_ORDER = tuple(EncodeOptions.__annotations__)


class SentenceTransformer:
    """An embedding model with the calls of sentence-transformers' class of this name.

    Args:
        model_name_or_path: ``"org/name"``, a folder, a configuration, or a loaded model; a name without a
            slash is one of ``sentence-transformers/``. It is loaded now.
        engine: what loads it; ``None`` is one that all adapters of the process share.
        device: the engine's own (``"cpu"``, ``"mps"`` for Metal, ``"cuda"``), or ``None``.
        prompts: added to the model's own, by name.
        default_prompt_name: the one that `encode` takes if nothing is said.
        revision: branch, tag or commit.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"``, ``"manhattan"``; else the model's own.
        truncate_dim: keep the first dimensions only, unless a call says otherwise.

    Raises:
        InvalidParameterError: an argument cannot be had here.
        ResolutionError, DownloadError, LoadError: the model cannot be loaded.
    """

    def __init__(
        self,
        model_name_or_path: Model,
        *,
        engine: InferenceEngine | None = None,
        device: str | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        revision: str | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        self._source = Source(_named(model_name_or_path, revision), engine)
        self.handle: EmbeddingHandle = self._source.handle
        """The model as the engine has it."""
        info = self.handle.info
        self._size = int(info.get("full_dimension") or self._source.dimension)
        self._check_device(device)
        own = {"query": None, "document": None} | (prompts or {})
        stored = {name: text for name, text in info.get("prompts", {}).items() if own.get(name) is None}
        self.prompts: dict[str, str] = {name: text or "" for name, text in (own | stored).items()}
        """Texts that `encode` can put before others, by name."""
        self.default_prompt_name = default_prompt_name or info.get("default_prompt")
        if self.default_prompt_name is not None:
            self._prompt(self.default_prompt_name)
        self.similarity_fn_name = similarity_fn_name or str(info.get("similarity") or "cosine")
        if self.similarity_fn_name not in _SIMILARITIES:
            raise InvalidParameterError(
                f"similarity_fn_name={similarity_fn_name!r} is not known.",
                hint=f"Known: {', '.join(_SIMILARITIES)}.",
            )
        known = self._source.dimension
        self.truncate_dim = (
            truncate_dim if truncate_dim is not None else known if known < self._size else None
        )

    # -- vectors -------------------------------------------------------------------------------------

    def encode(self, inputs: Any = None, *places: Any, **options: Unpack[EncodeOptions]) -> Any:
        """Vectors of texts.

        Args:
            inputs: a text, or any sequence of texts. (``sentences=`` is the older name.)
            places: the options in the order that `EncodeOptions` has them.

        Returns:
            float32 (texts, dimension), or (dimension,) of a single text; see `EncodeOptions` for others.

        Raises:
            InvalidParameterError: an argument is unknown, or cannot be had here.
            ConfigurationError: a tensor is asked for, and torch is not installed.
        """
        import numpy as np

        options = _joined(places, options)
        inputs = options.pop("sentences", inputs)  # type: ignore[typeddict-item]
        only(options, EncodeOptions, "inputs")
        self._check_device(options.get("device"))
        batch_size, precision = options.get("batch_size", 32), options.get("precision") or "float32"
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidParameterError(f"batch_size must be a positive whole number, found {batch_size!r}.")
        if precision not in _PRECISIONS:
            raise InvalidParameterError(f"precision={precision!r} is not one of {', '.join(_PRECISIONS)}.")
        single = isinstance(inputs, str)
        texts = [inputs] if single else _texts(inputs)
        prompt = self._resolved(options)
        kind = options.get("output_value", "sentence_embedding")
        with _bar(options.get("show_progress_bar"), len(texts)) as progress:
            if kind == "token_embeddings":
                torch = torch_for('output_value="token_embeddings"')
                found = self.handle.embed(
                    texts, output="tokens", prompt=prompt, normalize=False, progress=progress
                )
                tensors = [torch.from_numpy(item.numpy().copy()) for item in found]
                return tensors[0] if single else tensors
            if kind != "sentence_embedding":
                raise InvalidParameterError(
                    f"output_value={kind!r} cannot be had here.",
                    hint='Give "sentence_embedding" or "token_embeddings".',
                )
            # All dimensions: the engine would normalise again what it truncates.
            vectors = self.handle.embed(
                texts, prompt=prompt, truncate_dim=self._size, progress=progress
            ).numpy()
        size = options.get("truncate_dim")
        size = self.truncate_dim if size is None else size
        if size is not None:
            vectors = np.ascontiguousarray(vectors[:, : _positive(size)])
        if options.get("normalize_embeddings"):
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        if not texts:
            vectors = np.array([], dtype=np.float32)
        elif precision != "float32":
            vectors = quantized(vectors, precision)
        if options.get("convert_to_tensor"):
            tensor = torch_for("convert_to_tensor=True").from_numpy(vectors.copy())
            return tensor[0] if single else tensor
        if options.get("convert_to_numpy", True):
            vectors = vectors if vectors.flags.writeable else vectors.copy()
            return vectors[0] if single else vectors
        rows = list(torch_for("convert_to_numpy=False").from_numpy(vectors.copy()))
        return rows[0] if single else rows

    def encode_query(self, inputs: Any = None, *places: Any, **options: Unpack[EncodeOptions]) -> Any:
        """`encode` with the prompt named ``"query"``, unless a prompt is given."""
        return self.encode(inputs, **self._for(("query",), places, options))

    def encode_document(self, inputs: Any = None, *places: Any, **options: Unpack[EncodeOptions]) -> Any:
        """`encode` with the prompt ``"document"``, ``"passage"`` or ``"corpus"``, unless one is given."""
        return self.encode(inputs, **self._for(("document", "passage", "corpus"), places, options))

    def _for(self, names: Sequence[str], places: Sequence[Any], options: EncodeOptions) -> EncodeOptions:
        options = _joined(places, options)
        if options.get("prompt") is None and options.get("prompt_name") is None:
            options["prompt_name"] = next((name for name in names if name in self.prompts), None)
        return options

    def _resolved(self, options: EncodeOptions) -> str:
        prompt, name = options.get("prompt"), options.get("prompt_name")
        if prompt is None:
            name = self.default_prompt_name if name is None else name
            return "" if name is None else self._prompt(name)
        if name is not None:
            _log.warning("encode was given a prompt and a prompt_name; the prompt is taken")
        return prompt

    def _prompt(self, name: str) -> str:
        if name not in self.prompts:
            raise InvalidParameterError(
                f"{self.handle.id} has no prompt {name!r}; it has {', '.join(map(repr, self.prompts))}.",
                hint="Name one of these, or give the text itself as prompt.",
            )
        return self.prompts[name]

    # -- similarity ----------------------------------------------------------------------------------

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Of each row of one matrix with each of another: float32 (rows of 1, rows of 2)."""
        return like(
            similarity_of(embeddings1, embeddings2, self.similarity_fn_name), embeddings1, embeddings2
        )

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Of each row of one matrix with the same row of another: float32 (rows,)."""
        return like(pairwise_of(embeddings1, embeddings2, self.similarity_fn_name), embeddings1, embeddings2)

    # -- what it is ----------------------------------------------------------------------------------

    def get_embedding_dimension(self) -> int:
        """Length of a vector, ``truncate_dim`` considered."""
        return self._size if self.truncate_dim is None else min(self._size, self.truncate_dim)

    get_sentence_embedding_dimension = get_embedding_dimension

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special ones included; what is longer is cut."""
        return int(self.handle.info["max_length"])

    def get_max_seq_length(self) -> int:
        """`max_seq_length`."""
        return self.max_seq_length

    @property
    def device(self) -> str:
        """``"cpu"``, ``"mps"`` (Metal) or ``"cuda"``: the engine's."""
        backend = self.handle._engine.device.backend
        return "mps" if backend == "metal" else backend

    def _check_device(self, device: Any) -> None:
        if device is not None and str(device).partition(":")[0] != self.device:
            raise InvalidParameterError(
                f"device={device!r} cannot be had: the engine runs on {self.device!r}.",
                hint="Leave it out; mlx's own settings choose the device.",
            )

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Within the block vectors have this many dimensions; ``None``: all."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings


def _named(model: Model, revision: str | None) -> Model:
    if isinstance(model, str) and "/" not in model and not Path(model).exists():
        model = f"sentence-transformers/{model}"
    if revision is None or not isinstance(model, str):
        return model
    return ModelConfiguration(id=model, revision=revision)


def _joined(places: Sequence[Any], options: EncodeOptions) -> EncodeOptions:
    """The options, those that were given by their place among them."""
    given = dict(zip(_ORDER, places, strict=False))
    twice = sorted(given.keys() & options.keys())
    if twice or len(places) > len(_ORDER):
        what = f"{twice[0]} is given twice" if twice else f"{len(places) + 1} places are given"
        raise InvalidParameterError(f"{what} to encode.", hint=f"The order is inputs, {', '.join(_ORDER)}.")
    return {**given, **options}  # type: ignore[typeddict-item]


def _texts(inputs: Any) -> list[str]:
    """A list of texts of whatever holds some."""
    if inputs is None or isinstance(inputs, dict | bytes | set):
        raise InvalidParameterError(
            f"inputs must be a text or a sequence of texts, found a {type(inputs).__name__}."
        )
    return list(inputs.tolist() if hasattr(inputs, "tolist") else inputs)


def _positive(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InvalidParameterError(f"truncate_dim must be a positive whole number, found {size!r}.")
    return size


@contextmanager
def _bar(show: bool | None, total: int) -> Iterator[Any]:
    """What takes note of how many texts are done; shown as a bar if that is asked for."""
    if not show:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Texts") as bar:
        yield lambda done, _total: bar.update(done - bar.n)


__all__ = ["EncodeOptions", "SentenceTransformer"]
