"""Reading tokenizers: mlx-lm's wrapper around the model's own, or around the one that the caller wants."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxengine import LoadContext, ModelCard
from mlxengine.errors import IncompatibleWeightsError, LoadError, RemoteCodeRefusedError
from mlxengine.toolkit.estimate import text_config
from mlxengine.toolkit.folders import local_folder
from mlxengine.toolkit.speech import Dialect

from . import features
from .library import tokenizer_defaults

_log = logging.getLogger("mlxengine.llm.load")
_FILES = ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja")
REMOTE = "Read the repository's code first; then load with trust_remote_code=True if you trust it."


def load_tokenizer(card: ModelCard, folder: Path, context: LoadContext, config: Mapping[str, Any]) -> Any:
    """mlx-lm's tokenizer wrapper, of the model's tokenizer or the caller's, and the caller's chat template.

    Raises:
        RemoteCodeRefusedError: the tokenizer is code of the repository and that is not allowed.
        LoadError: there is no tokenizer that can be read, or it has more tokens than the model.
    """
    own = context.features.get(features.TOKENIZER)
    if own is not None:
        folder = local_folder(own, context.fetch, _FILES, "tokenizer")
    settings: dict[str, Any] = {"trust_remote_code": context.configuration.trust_remote_code}
    if context.configuration.chat_template is not None:
        settings["chat_template"] = context.configuration.chat_template
    try:
        defaults = tokenizer_defaults(config) if own is None else None
        tokenizer = _wrapped(folder, settings, config.get("eos_token_id"), defaults)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise RemoteCodeRefusedError(
                f"The tokenizer of {card.id} is code of the repository.", hint=REMOTE
            ) from error
        raise LoadError(
            f"The tokenizer of {card.id} cannot be read: {error}.",
            hint="The repository needs a tokenizer.json (or tokenizer.model) that fits its configuration.",
        ) from error
    size = text_config(config).get("vocab_size")
    if own is not None and isinstance(size, int) and len(tokenizer) > size:
        raise IncompatibleWeightsError(
            f"The tokenizer {own} has {len(tokenizer)} tokens, the vocabulary of {card.id} {size}.",
            hint="Choose a tokenizer that was made for this model.",
        )
    return tokenizer


def _wrapped(folder: Path, settings: dict[str, Any], eos: Any, defaults: dict[str, Any] | None) -> Any:
    """mlx-lm's wrapper; without the model's configuration where transformers refuses that one.

    To find a tokenizer's class transformers reads ``config.json`` too, into a class whose checks know less
    than the checkpoint does. A ``tokenizer.json`` needs none of it.
    """
    from mlx_lm.tokenizer_utils import load as load_wrapper

    try:
        return load_wrapper(folder, settings, eos_token_ids=eos, defaults=defaults)
    except Exception as error:
        if "trust_remote_code" in str(error) or not folder.joinpath("tokenizer.json").is_file():
            raise
        with tempfile.TemporaryDirectory(prefix="mlxengine-") as place:
            alone = Path(place)
            for pattern in _FILES:
                for file in folder.glob(pattern):
                    if file.name != "config.json":
                        shutil.copyfile(file, alone / file.name)
            try:
                found = load_wrapper(alone, settings, eos_token_ids=eos, defaults=defaults)
            except Exception:
                raise error from None  # what was wrong first
        _log.info("The tokenizer was read without config.json, which transformers refuses: %r", error)
        return found


def stop_ids(tokenizer: Any, extra: tuple[str, ...]) -> frozenset[int]:
    """The tokens that end an answer: the model's own and those that the caller names.

    Raises:
        LoadError: a name is not a token of the model.
    """
    found = set(tokenizer.eos_token_ids)
    vocabulary = tokenizer.get_vocab()
    for text in extra:
        if text not in vocabulary:
            raise LoadError(f"extra_eos_tokens: {text!r} is not a token of this model.")
        found.add(vocabulary[text])
    return frozenset(found)


def dialect_of(tokenizer: Any) -> Dialect:
    """How the model of a tokenizer writes reasoning and tool calls."""
    template = getattr(tokenizer, "chat_template", None)  # some have several, by name
    return Dialect.of(tokenizer, str(template or ""))


def abilities(tokenizer: Any) -> frozenset[str]:
    """What its template lets the model do."""
    return dialect_of(tokenizer).abilities | ({"chat"} if tokenizer.has_chat_template else set())


__all__ = ["REMOTE", "abilities", "dialect_of", "load_tokenizer", "stop_ids"]
