"""What can be asked of a model. A plugin for a new kind subclasses `Request`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import field, frozen

from ._convert import anything, texts
from .errors import InvalidParameterError
from .messages import Message
from .params import GenerateParams


def _messages(value: Iterable[Message]) -> tuple[Message, ...]:
    return tuple(value)


def _optional_tuple(value: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidParameterError(
            "A single text where a sequence of texts is wanted.", hint="Write (text,) or [text]."
        )
    return tuple(value)


def _ranges(value: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if value is None:
        return None
    lowest, highest = (tuple(map(float, side)) for side in value)
    return lowest, highest


def _type_name(value: Any) -> str:
    return f"<{type(value).__name__}>"


@frozen(kw_only=True)
class Request:
    """Base of every request.

    Args:
        priority: a higher one is admitted first where a plugin has to choose; 0 is normal.
        features: feature flags for this call only, as ``(name, value)`` pairs.
    """

    priority: int = 0
    features: tuple[tuple[str, object], ...] = ()


@frozen(kw_only=True)
class TextRequest(Request):
    """Text (and pictures, sound) in, text out.

    Args:
        messages: the conversation; rendered with the model's chat template.
        prompt: raw text instead of messages; no template is applied.
        prompt_tokens: token ids instead of either.
        params: how to generate.
        instructions: a system message put before the conversation.
        tools: Python functions, or descriptions of tools as JSON-schema function objects.
        add_generation_prompt: end the rendered conversation where the assistant starts to speak.
    """

    messages: tuple[Message, ...] = field(default=(), converter=_messages)
    prompt: str | None = None
    prompt_tokens: tuple[int, ...] | None = field(default=None, converter=_optional_tuple)
    params: GenerateParams = field(factory=GenerateParams)
    instructions: str | None = None
    tools: tuple[Any, ...] = field(default=(), converter=anything)
    add_generation_prompt: bool = True

    def __attrs_post_init__(self) -> None:
        given = [bool(self.messages), self.prompt is not None, self.prompt_tokens is not None]
        if sum(given) != 1:
            raise InvalidParameterError(
                "A text request takes exactly one of messages (at least one), prompt and prompt_tokens."
            )
        if not isinstance(self.params, GenerateParams):
            raise InvalidParameterError(f"params must be GenerateParams, found {type(self.params).__name__}.")


@frozen(kw_only=True)
class ScoreRequest(Request):
    """How probable a text is to a language model.

    Args:
        text: what to score; the tokenizer's own opening tokens are put before it.
        tokens: token ids instead of a text, at least two; the first is only context.
        adapter: as in `GenerateParams`.
    """

    text: str | None = None
    tokens: tuple[int, ...] | None = field(default=None, converter=_optional_tuple)
    adapter: str | None = None

    def __attrs_post_init__(self) -> None:
        if (self.text is None) == (self.tokens is None):
            raise InvalidParameterError("A score request takes exactly one of text and tokens.")


@frozen(kw_only=True)
class LoadAdapterRequest(Request):
    """Load a LoRA or DoRA adapter beside the weights of a model.

    Args:
        name: what requests will call it.
        source: a folder, or a repository on the hub, in mlx-lm's or PEFT's format.
        scale: multiplies the adapter's own.
        default: use it for requests that name no adapter.
    """

    name: str
    source: str = field(converter=str)
    scale: float = 1.0
    default: bool = False


@frozen(kw_only=True)
class UnloadAdapterRequest(Request):
    """Forget an adapter of a model."""

    name: str


@frozen(kw_only=True)
class EmbedRequest(Request):
    """Texts in, one vector each out.

    Args:
        texts: what to embed.
        prompt: put before every text, as it is.
        prompt_name: name of one of the model's own prompts (``"query"``, ``"document"``).
        normalize: scale vectors to unit length; ``None`` does what the model's repository says.
        truncate_dim: keep the first dimensions only (and normalise again if normalised).
        precision: ``"float32"``, ``"float16"``, ``"int8"``, ``"uint8"``, ``"binary"`` or ``"ubinary"``.
        output: ``"pooled"`` (one vector a text) or ``"tokens"`` (one a token).
        batch_tokens: most padded tokens in one step; ``None`` lets the plugin choose.
    """

    texts: tuple[str, ...] = field(converter=texts)
    prompt: str | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    truncate_dim: int | None = None
    precision: str = "float32"
    output: str = "pooled"
    batch_tokens: int | None = None
    ranges: tuple[tuple[float, ...], tuple[float, ...]] | None = field(
        default=None, converter=_ranges, repr=False
    )


@frozen(kw_only=True)
class RankRequest(Request):
    """A query and documents in, one relevance score each out (cross-encoders).

    Args:
        query: the query.
        documents: what to score against it.
        batch_tokens: most padded tokens in one step.
    """

    query: str
    documents: tuple[str, ...] = field(converter=texts)
    batch_tokens: int | None = None


@frozen(kw_only=True)
class ImageRequest(Request):
    """Text (and a picture) in, pictures out. ``None`` is the model's own default.

    Args:
        prompt: what the picture shows.
        negative: what it should not show.
        size: (width, height) in pixels.
        steps: denoising steps, at least 1.
        guidance: classifier-free guidance scale.
        seed: 0 is a seed; picture i of n uses ``seed + i``.
        scheduler: name of the sampler, for example ``"euler"``.
        init_image: a picture to start from: whatever `ImagePart` takes.
        strength: how far to leave ``init_image``, 0 (keep) to 1 (forget).
        n: number of pictures.
        lora: folders or repositories of LoRA weights, each with its scale.
        low_memory: free each part of the pipeline after its stage.
        preview_every: emit an `ImagePreview` every so many steps; 0 never does.
    """

    prompt: str
    negative: str | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    scheduler: str | None = None
    init_image: Any = field(default=None, repr=_type_name)
    strength: float | None = None
    n: int = 1
    lora: tuple[tuple[str, float], ...] = ()
    low_memory: bool | None = None
    preview_every: int = 0


__all__ = [
    "EmbedRequest",
    "ImageRequest",
    "LoadAdapterRequest",
    "RankRequest",
    "Request",
    "ScoreRequest",
    "TextRequest",
    "UnloadAdapterRequest",
]
