"""What a request asks for, held to what a model makes and takes."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve
from mlxengine import EmbedRequest, ImagePart, PredictRequest, RunContext
from mlxengine.errors import InvalidParameterError, UnsupportedInputError

from . import features
from ._model import EmbeddingModel, RankModel
from ._precision import NEEDS_RANGES, PRECISIONS


def validated(model: EmbeddingModel, request: EmbedRequest) -> EmbedRequest:
    """The request with the prompt and the dimension that it stands for."""
    if tokenized := any(isinstance(item, tuple) for item in request.texts[:1]):
        _check_ids(model, request)
    else:
        # A picture is no text, and a model that sees takes both.
        check_texts(["" if isinstance(item, ImagePart) else item for item in request.texts], "texts")
    _check_budget(request.batch_tokens)
    recipe = model.recipe
    for name, value, allowed in (
        ("precision", request.precision, PRECISIONS),
        ("output", request.output, ("pooled", "tokens", "sparse")),
    ):
        if value not in allowed:
            raise InvalidParameterError(f"{name}={value!r} is not one of {', '.join(allowed)}.")
    _check_output(model, request)
    if request.output == "tokens" and request.precision not in ("float32", "float16"):
        raise InvalidParameterError(f'output="tokens" does not go with precision={request.precision!r}.')
    prompt = None if tokenized else prompt_of(model, request)
    size = request.truncate_dim
    if size is None and (request.output == "pooled" or model.terms is not None):
        size = recipe.truncate_dim
    elif size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise InvalidParameterError(f"truncate_dim must be a positive whole number, found {size!r}.")
    elif size is not None and size > model.dimension:
        raise InvalidParameterError(
            f"truncate_dim={size} is more than the {model.dimension} dimensions of {model.id}."
        )
    if request.precision in NEEDS_RANGES and request.ranges is None and len(request.texts) == 1:
        raise InvalidParameterError(
            f"precision={request.precision!r} cannot find each dimension's range in a single text.",
            hint="Give ranges=(lowest, highest), taken from the float32 vectors of a sample.",
        )
    return evolve(request, prompt=prompt or None, truncate_dim=size)


def _check_output(model: EmbeddingModel, request: EmbedRequest) -> None:
    """A model makes the vectors that it was trained for, and no others."""
    made = "tokens" if model.recipe.late else "sparse" if model.terms else "pooled"
    bare = made == "pooled" and model.eye is None  # an encoder's hidden vectors, before they are pooled
    if request.output not in (made, *model.recipe.further, *(("tokens",) if bare else ())):
        what = {"tokens": "token", "sparse": "sparse", "pooled": "dense"}[made]
        raise UnsupportedInputError(
            f"{model.id} makes {what} vectors, not what output={request.output!r} asks for.",
            hint=f'Use embed(…, output="{made}"), with task="query" or task="document".'
            if made != "pooled"
            else f"Leave out output={request.output!r}.",
        )
    if request.output == "sparse" and (request.precision != "float32" or request.normalize is not None):
        raise InvalidParameterError(
            "Sparse vectors are float32, and as long as their weights make them.",
            hint="Leave out precision and normalize.",
        )


def prompt_of(model: EmbeddingModel | RankModel, request: EmbedRequest | PredictRequest) -> str | None:
    """The text that a request wants before each of its own: given, named, or the model's default."""
    prompts, default = model.recipe.prompts, model.recipe.default_prompt
    if request.prompt is not None and request.prompt_name is not None:
        raise InvalidParameterError("Give either prompt or prompt_name, not both.")
    if request.prompt is not None and not isinstance(request.prompt, str):
        raise InvalidParameterError(f"prompt must be a text, found {type(request.prompt).__name__}.")
    if request.prompt is not None:
        return request.prompt
    if request.prompt_name is None:
        return None if default is None else prompts.get(default)
    if request.prompt_name not in prompts:
        known = ", ".join(map(repr, prompts)) or "none"
        raise InvalidParameterError(
            f"prompt_name={request.prompt_name!r} is no prompt of {model.id}; it has {known}.",
            hint="Name one of these, or give the text itself as prompt.",
        )
    return prompts[request.prompt_name]


def check_texts(texts: Sequence[object], name: str) -> None:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidParameterError(
                f"{name}[{index}] is a {type(text).__name__}, not a text.", hint="Give a sequence of str."
            )


def check_pictures(model: EmbeddingModel, request: EmbedRequest, context: RunContext) -> None:
    place = next((at for at, item in enumerate(request.texts) if isinstance(item, ImagePart)), None)
    if place is None:
        return
    if model.eye is None:
        raise UnsupportedInputError(
            f"texts[{place}]: {model.id} takes texts, not pictures.",
            hint="Load a model that sees, such as google/siglip2-base-patch16-224.",
        )
    context.features.require(features.PICTURES)


def _check_ids(model: EmbeddingModel, request: EmbedRequest) -> None:
    """Token ids are read as they are, so they have to be what the encoder takes."""
    if request.prompt or request.prompt_name is not None:
        raise InvalidParameterError(
            "No prompt can be put before token ids.", hint="Tokenize the prompt and the text as one text."
        )
    longest, size = model.tokenizer.max_length, model.tokenizer.size
    for index, ids in enumerate(request.texts):
        if not isinstance(ids, tuple):
            raise InvalidParameterError(
                f"texts[{index}] is a {type(ids).__name__}, others are token ids.",
                hint="Give texts, or the token ids of each, in one request.",
            )
        if not 0 < len(ids) <= longest:
            raise InvalidParameterError(
                f"texts[{index}] has {len(ids)} token ids; {model.id} takes 1 to {longest}.",
                hint="Give the text itself, which is cut to that length, or cut the ids.",
            )
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
                raise InvalidParameterError(
                    f"texts[{index}] holds {token!r}, which is no token id; {model.id} has {size} tokens."
                )


def _check_budget(tokens: int | None) -> None:
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise InvalidParameterError(f"batch_tokens must be a positive whole number, found {tokens!r}.")


__all__ = ["check_pictures", "check_texts", "prompt_of", "validated"]
