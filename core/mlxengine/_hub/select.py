"""Which of a repository's files are fetched: those that were asked for, and never a pickle."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..contract.configuration import FileInfo, ModelCard
from ..errors import CorruptFileError, IncompatibleWeightsError, ModelNotFoundError
from .names import PICKLES

USUAL = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""What a model needs as a rule, where no plugin said it: configurations, weights, tokenizers, templates."""

_WEIGHTS = (".safetensors", ".gguf")


def select(card: ModelCard, patterns: Sequence[str], *, pickles: bool = False) -> tuple[FileInfo, ...]:
    """The files whose paths match one of the patterns (``fnmatch``, case matters), without pickles.

    Args:
        card: the model.
        patterns: what is wanted.
        pickles: take pickles too, for whoever reads them without running them.

    Raises:
        IncompatibleWeightsError: weights were asked for and the repository has them as pickles only.
        ModelNotFoundError: no file matches.
        CorruptFileError: the hub gives no hash for a file.
    """
    matching = [file for file in card.files if any(fnmatchcase(file.path, each) for each in patterns)]
    safe = tuple(file for file in matching if pickles or file.suffix not in PICKLES)
    weights_wanted = len(safe) < len(matching) or any(fnmatchcase("model.safetensors", p) for p in patterns)
    found = [file.path for file in card.files if file.suffix in PICKLES]
    if weights_wanted and found and not (pickles or any(file.suffix in _WEIGHTS for file in safe)):
        raise IncompatibleWeightsError(
            f"{card.id} has its weights only as pickles ({', '.join(found[:3])}), which can run any code.",
            hint="Use a repository with safetensors; mlx-community has converted copies of many models. "
            "mlxengine convert --from-bin makes one without running anything.",
        )
    if not safe:
        raise ModelNotFoundError(
            f"{card.id} has no file that matches {', '.join(patterns)}.",
            hint=f"It has: {', '.join(card.names()[:10]) or 'no files'}.",
        )
    for file in safe:
        if file.hash is None and card.path is None:
            raise CorruptFileError(
                f"The hub does not say what the content of {file.path} of {card.id} should be.",
                hint="Use an endpoint that lists the hashes of files.",
                recoverable=False,
            )
    return safe


def usual(card: ModelCard) -> tuple[str, ...]:
    """The patterns to fetch a model by where nobody named any.

    Raises:
        ModelNotFoundError: the repository holds several GGUF files and nothing else: one must be named.
    """
    ggufs = card.names(".gguf")
    if card.names(".safetensors") or not ggufs:
        return USUAL
    if len(ggufs) > 1:
        raise ModelNotFoundError(
            f"{card.id} holds {len(ggufs)} GGUF files.",
            hint=f"Name the one that you want, for example {ggufs[0]!r}.",
        )
    return ("*.json", *ggufs)
